"""The manifest and the lock: what survives a crash at any moment, and who may write at the same time."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from gmtool_serving.outputs.lock import FolderLock, holder_of
from gmtool_serving.outputs.manifest import Conditions, Manifest, PastRecords, Record, read_manifest, was_closed
from gmtool_serving.outputs.write import OutputFile

from gmtool.errors import DataError

HERE = Path(__file__).parent
CONDITIONS = Conditions("f" * 64, ("voc", "color"), {"exif": True, "pad_px": 0, "tiling": None})


def record(output: str, *, path: str = "x.jpg", status: str = "ok") -> Record:
    return Record(
        path=path,
        frame=None,
        output=output,
        sha256="0" * 64,
        status=status,  # type: ignore[arg-type]
        code=None,
        error=None,
        warning=None,
        outputs=(OutputFile(f"{output}.png", 12, "1" * 64),),
        conditions=CONDITIONS,
    )


def test_case_08_any_name_comes_back_as_the_bytes_that_it_was(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff new\nline \xc3\xa9 \xe2\x82 %d [1]*.jpg")
    manifest = Manifest(tmp_path / "manifest.jsonl")
    manifest.add(record("x", path=name))
    manifest.close()
    (back,) = read_manifest(manifest.path)
    assert back == record("x", path=name)
    assert os.fsencode(back.path) == os.fsencode(name)
    assert manifest.path.read_bytes().isascii()


def test_the_last_line_of_an_output_counts_and_what_was_cut_short_does_not(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    manifest = Manifest(path)
    manifest.add(record("a", status="failed"))
    manifest.add(record("b"))
    manifest.close()
    with path.open("ab") as file:
        file.write(record("c").to_line()[:40])  # killed in the middle of a line
    assert not was_closed(path)
    manifest = Manifest(path)
    manifest.add(record("a"))
    past = PastRecords([path])
    assert len(past) == 2
    assert past.get("a") == record("a") and past.get("c") is None
    manifest.finish({"inputs": 2}, None)
    manifest.close()
    assert was_closed(path)
    assert [entry.output for entry in read_manifest(path)] == ["b", "a"]


def test_a_finished_manifest_has_one_line_for_each_input_in_their_order(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "manifest.jsonl")
    for output in ("c", "a", "old", "b", "a"):
        manifest.add(record(output))
    manifest.finish({"inputs": 3}, ["a", "b", "c"])
    manifest.close()
    lines = [json.loads(line) for line in manifest.path.read_text().splitlines()]
    assert [line.get("output") for line in lines] == ["a", "b", "c", None]
    assert lines[-1] == {"summary": {"inputs": 3}}


def test_lines_reach_the_disk_while_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    manifest = Manifest(tmp_path / "manifest.jsonl")
    monkeypatch.setattr("gmtool_serving.outputs.manifest.SYNC_EVERY_S", 3600.0)
    manifest.add(record("a"))
    assert len(synced) == 0
    monkeypatch.setattr("gmtool_serving.outputs.manifest.SYNC_EVERY_S", 0.0)
    manifest.add(record("b"))
    manifest.add(record("c"))
    assert len(synced) == 2
    manifest.close()


def test_a_finished_manifest_replaces_the_one_of_lines_as_they_came(tmp_path: Path) -> None:
    """Written in place, a crash would leave half of it."""
    manifest = Manifest(tmp_path / "manifest.jsonl")
    for output in "ba":
        manifest.add(record(output))
    with manifest.path.open("rb") as as_it_came:
        manifest.finish({"inputs": 2}, ["a", "b"])
        manifest.close()
        lines = as_it_came.read().splitlines()
    assert [json.loads(line).get("output") for line in lines] == ["b", "a", None]
    assert [entry.output for entry in read_manifest(manifest.path)] == ["a", "b"]


CRASHING = """
import os, shutil, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:4]
from fakes import CLASSES
from test_manifest import record
import numpy as np
from gmtool_serving.outputs.formats import MaskItem
from gmtool_serving.outputs.manifest import Manifest, read_manifest
from gmtool_serving.outputs.write import MaskFolders, write_outputs
from pathlib import PurePosixPath

root = Path(sys.argv[1])
done = crash_at = 0

def counted(function):
    def wrapper(*arguments, **keywords):
        global done
        done += 1
        if done == crash_at:
            os._exit(9)
        return function(*arguments, **keywords)
    return wrapper

def job(out):
    manifest = Manifest(out / "manifest.jsonl")
    folders = MaskFolders(out)
    items = [MaskItem(PurePosixPath(f"x{index}"), np.full((4, 4), index, np.uint8)) for index in range(2)]
    for index, written in enumerate(write_outputs(items, CLASSES, ["voc"], folders)):
        assert isinstance(written, tuple)
        from dataclasses import replace
        manifest.add(replace(record(f"x{index}"), outputs=written))
    manifest.finish({"inputs": 2}, ["x0", "x1"])
    manifest.close()

def names(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())

whole = root / "whole"
whole.mkdir()
job(whole)
contents = {name: (whole / name).read_bytes() for name in names(whole)}
os.open, os.write, os.fsync, os.close = map(counted, (os.open, os.write, os.fsync, os.close))
os.replace = counted(os.replace)
Path.open, Path.replace, Path.mkdir = map(counted, (Path.open, Path.replace, Path.mkdir))
for crash_at in range(1, 200):
    out = root / str(crash_at)
    os.mkdir(out)
    child = os.fork()
    if child == 0:
        done = 0
        job(out)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    crash_at, here = 0, crash_at
    for name in names(out):
        if name.endswith(".png") and not Path(name).name.startswith("."):
            assert (out / name).read_bytes() == contents[name], (here, name)
    if (out / "manifest.jsonl").exists():
        for entry in read_manifest(out / "manifest.jsonl"):
            assert all(file.is_whole(out) for file in entry.outputs), here
    job(out)  # the next run finds nothing in its way
    assert {name: (out / name).read_bytes() for name in names(out) if not ".gmtool-tmp" in name} == contents, here
    crash_at = here
    if code == 0:
        break
    shutil.rmtree(out)
print(crash_at)
"""


def test_case_19_a_crash_at_any_operation_leaves_whole_masks_and_a_true_manifest(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(CRASHING)
    memory = Path("/dev/shm")  # where syncing costs nothing
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        done = subprocess.run(
            [sys.executable, script, folder, HERE, HERE.parents[1]], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_case_26_a_folder_has_one_run_or_shards_of_one_division(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    for shard in ("", "1-of-2"):
        with pytest.raises(DataError, match=f"another gmtool predict .process {os.getpid()} on "):
            FolderLock(tmp_path, shard)
    first.release()
    shards = [FolderLock(tmp_path, "1-of-2"), FolderLock(tmp_path, "2-of-2")]
    for shard in ("", "1-of-2", "1-of-4"):
        with pytest.raises(DataError, match="wait, or stop that run"):
            FolderLock(tmp_path, shard)
    for lock in shards:
        lock.release()
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_case_26_the_lock_of_a_killed_run_holds_nobody_up(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        FolderLock(tmp_path, "1-of-3")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".gmtool-predict-1-of-3.lock"]
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [b"", b"{}", b"5", b"[" * 100_000, b"\xff", b'{"process": 1}'])
def test_a_lock_that_says_nothing_of_its_holder_still_holds(text: bytes) -> None:
    assert holder_of(text) == "another gmtool predict"
