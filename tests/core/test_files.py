import os
import subprocess
import sys
from pathlib import Path

import pytest

from gmtool.files import sha256_of_file, sweep_leftovers, write_atomically

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


def test_the_mode_of_a_replaced_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomically(path, "nü")
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text(encoding="utf-8") == "nü"


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "file") == expected
