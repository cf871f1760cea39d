import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gmtool import files
from gmtool.files import (
    OLD_S,
    OPEN_FILES,
    open_atomically,
    open_unlinked,
    sha256_of_file,
    sweep_leftovers,
    temporary_path,
    write_atomically,
    write_together,
)

CRASHING_WRITER = """
import os, sys
from pathlib import Path
from gmtool import files

path, crash_at = Path(sys.argv[1]), int(sys.argv[2])
done = 0

def counted(function):
    def wrapper(*arguments, **keywords):
        global done
        done += 1
        if done == crash_at:
            os._exit(9)
        return function(*arguments, **keywords)
    return wrapper

os.fsync, os.open, os.close = counted(os.fsync), counted(os.open), counted(os.close)
Path.open, Path.replace, Path.chmod = counted(Path.open), counted(Path.replace), counted(Path.chmod)
files.write_atomically(path, b"new" * 1000)
os._exit(0)
"""


@pytest.mark.parametrize("old", [None, b"old"])
def test_case_19_a_crash_at_any_operation_leaves_the_old_or_the_new_file(
    tmp_path: Path, old: bytes | None
) -> None:
    script = tmp_path / "writer.py"
    script.write_text(CRASHING_WRITER)
    crashes = 0
    for crash_at in range(1, 20):
        folder = tmp_path / str(crash_at)
        folder.mkdir()
        path = folder / "file"
        if old is not None:
            path.write_bytes(old)
        code = subprocess.run([sys.executable, script, path, str(crash_at)], check=False).returncode
        assert (path.read_bytes() if path.exists() else None) in (old, b"new" * 1000)
        sweep_leftovers(folder)
        assert [item.name for item in folder.iterdir()] in ([], ["file"])
        if code == 0:
            break
        crashes += 1
    assert crashes >= 4
    assert path.read_bytes() == b"new" * 1000


def test_a_failed_write_leaves_the_old_file_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_files_that_are_written_together_one_may_fail(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "old").chmod(0o640)
    names = ["a", "taken", "x" * 256, "none/b", "old"]
    errors = write_together([(tmp_path / name, name.encode()) for name in names])
    assert [type(error).__name__ for error in errors] == [
        "NoneType",
        "IsADirectoryError",
        "OSError",
        "FileNotFoundError",
        "NoneType",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "taken", "old"}
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "old").read_bytes()) == (b"a", b"old")
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640


def test_files_are_whole_on_disk_before_they_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, events = os.fsync, list[str]()
    folder = tmp_path / "out"
    folder.mkdir()

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append("folder" if path == folder else f"{path.stat().st_size} bytes")
        events.extend(sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert write_together([(folder / "a", b"1"), (folder / "b", b"22")]) == [None, None]
    assert events == ["1 bytes", "2 bytes", "folder", "a", "b"]


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, most = os.open, 0

    def count(*arguments: Any, **more: Any) -> int:
        nonlocal most
        descriptor = real(*arguments, **more)
        most = max(most, sum(1 for _ in Path("/proc/self/fd").iterdir()))
        return descriptor

    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(os, "open", count)
    assert not any(write_together([(tmp_path / str(number), b"x") for number in range(100)]))
    assert most <= before + OPEN_FILES + 1
    assert len(list(tmp_path.iterdir())) == 100


def test_the_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomically(path, "nü")
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text(encoding="utf-8") == "nü"


def test_until_a_file_is_whole_its_name_has_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = path.stat().st_ino
    with open_atomically(path) as file:
        file.write(b"new" * 10_000)
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" * 10_000
    assert path.stat().st_ino != before


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, b"content")
    assert path.read_bytes() == b"content"


def test_case_44_a_link_under_a_guessed_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"precious")
    (tmp_path / f".file.{os.getpid()}.gmtool-tmp").symlink_to(victim)
    write_atomically(path, b"new")
    assert (path.read_bytes(), victim.read_bytes()) == (b"new", b"precious")
    assert not path.is_symlink()
    path.unlink()
    path.symlink_to(victim)
    write_atomically(path, b"newer")
    assert (path.read_bytes(), victim.read_bytes()) == (b"newer", b"precious")


def test_case_44_a_temporary_name_that_is_taken_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"precious")
    guessed = tmp_path / ".guessed.gmtool-tmp"
    guessed.symlink_to(victim)
    monkeypatch.setattr(files, "temporary_path", lambda folder: folder / guessed.name)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"new")
    assert victim.read_bytes() == b"precious"


def test_case_50_two_writers_with_one_process_id_do_not_mix(tmp_path: Path) -> None:
    """As in two containers that share a volume, each with a process 1."""
    path = tmp_path / "file"
    with open_atomically(path) as first:
        first.write(b"first" * 1000)
        with open_atomically(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_deleted_unless_their_writer_may_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = temporary_path(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        dead = temporary_path(tmp_path)
        patch.setattr(files, "_host", lambda: "0123456789ab")
        elsewhere, old = temporary_path(tmp_path), temporary_path(tmp_path)
    for path in (living, dead, elsewhere, old):
        path.write_bytes(b"half")
    written = old.stat().st_mtime - OLD_S - 60
    os.utime(old, (written, written))
    assert sweep_leftovers(tmp_path) == sorted([dead, old])
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere])
    assert sweep_leftovers(tmp_path / ("x" * 300)) == []


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR | os.O_CREAT])
def test_a_file_with_a_known_name_is_opened_only_if_it_is_no_link_and_no_pipe(tmp_path: Path, flags: int) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.close(open_unlinked(tmp_path / "file", flags))
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("dangling", "link", "zero"):
        with pytest.raises(OSError, match=f"{name} is a link: remove it, or put the file that it names"):
            open_unlinked(tmp_path / name, flags)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is not a regular file: remove it"):
        open_unlinked(tmp_path / "pipe", flags)
    assert not (tmp_path / "nothing").exists()


def test_a_hard_link_is_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    os.link(tmp_path / "file", tmp_path / "second")
    os.close(open_unlinked(tmp_path / "second"))
    with pytest.raises(OSError, match="second is a hard link: remove it"):
        open_unlinked(tmp_path / "second", os.O_RDWR)


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "file") == expected
