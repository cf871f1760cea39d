"""What others planted in an output folder, or left there: links, pipes, damaged manifests, names of 255 bytes."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeBackend
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.outputs import write as writing
from gmtool_serving.outputs.folder import OutputFolder
from gmtool_serving.outputs.manifest import MAX_LINE_BYTES, Record, read_manifest
from gmtool_serving.pipeline.pipeline import Outcome
from gmtool_serving.pipeline.run import PredictionRun, PredictOptions, predict_images
from PIL import Image

from gmtool.errors import DataError
from gmtool.files import temporary_path, write_atomically

OPTIONS = PredictOptions(workers=0)
RESUME = replace(OPTIONS, resume=True)


def make_images(folder: Path, names: list[str]) -> Path:
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def run(folder: Path, out: Path, options: PredictOptions = OPTIONS) -> dict[str, Outcome]:
    """Predict with pixels as the model; return outcomes by the name of the image."""
    images = collect_images([str(folder)], out)
    return {outcome.image.path.name: outcome for outcome in predict_images(FakeBackend(), images, out, options)}


def redone(folder: Path, out: Path, options: PredictOptions = RESUME) -> list[str]:
    return sorted(name for name, outcome in run(folder, out, options).items() if not outcome.skipped)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", [".gmtool-predict.lock", "manifest.jsonl"])
def test_case_44_a_run_refuses_links_in_place_of_its_own_files(
    tmp_path: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    out.mkdir()
    link(out / name, victim)
    for options in (OPTIONS, RESUME):
        with pytest.raises(
            DataError, match=rf"output folder {out}: cannot be written: {name} is a .*link: remove it"
        ):
            run(folder, out, options)
    assert victim.read_bytes() == b"precious"
    assert sorted(path.name for path in out.iterdir()) == [name]  # and no lock stays behind
    (out / name).unlink()
    assert redone(folder, out) == ["a.png"]


def test_case_44_a_moved_and_linked_manifest_counts_again_once_it_is_put_back(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png", "b.png"]), tmp_path / "out"
    run(folder, out)
    moved = (out / "manifest.jsonl").rename(tmp_path / "moved.jsonl")
    content = moved.read_bytes()
    (out / "manifest.jsonl").symlink_to(moved)
    with pytest.raises(
        DataError, match=r"manifest.jsonl is a link: remove it, or put the file that it names in its"
    ):
        run(folder, out, RESUME)
    assert moved.read_bytes() == content
    moved.replace(out / "manifest.jsonl")
    assert redone(folder, out) == []


@pytest.mark.parametrize("name", [".gmtool-predict.lock", ".gmtool-predict-1-of-2.lock", "manifest.jsonl"])
def test_case_44_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / name)
    with pytest.raises(DataError, match=f"{name} is not a regular file: remove it"):
        run(folder, out)
    assert [path.name for path in out.iterdir()] == [name]


def test_case_44_no_mask_goes_through_a_linked_folder(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png", "sub/b.png", "sub/deep/c.png"]), tmp_path / "out"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(elsewhere)
    outcomes = run(folder, out)
    assert not list(elsewhere.iterdir())
    assert (out / "a.png").is_file()
    for name in ("b.png", "c.png"):
        failure = outcomes[name].failure
        assert failure is not None and failure.code == "cannot_write"
        assert f"{out}/sub is a link: remove it" in failure.message


def test_case_44_no_file_of_the_whole_goes_through_a_linked_folder(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "coco").symlink_to(elsewhere)
    images = collect_images([str(folder)], out)
    with PredictionRun(images, out, replace(OPTIONS, formats=("voc", "coco"))) as job:
        list(job.outcomes(FakeBackend()))
        with pytest.raises(DataError, match=f"{out}/coco: cannot be written: .*is a link: remove it"):
            job.make_files_of_the_whole(images)
    assert not list(elsewhere.iterdir())


def test_case_44_leftovers_behind_a_link_are_not_swept(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    leftover = temporary_path(elsewhere)
    leftover.touch()
    os.utime(leftover, (0, 0))
    (out / "sub").symlink_to(elsewhere)
    holder = OutputFolder(out, shard=None, resume=False)
    holder.sweep([out, out / "sub"])
    assert leftover.exists()
    holder.sweep([])
    holder.close()


def change(line: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(line), **changes}).encode() + b"\n"


FILE = {"path": "a.png", "bytes": 1, "sha256": "0" * 64}
WRONG: dict[str, dict[str, Any]] = {
    "output": {"output": ["a"]},
    "path": {"path": 7},
    "frame": {"frame": True},
    "hash": {"sha256": {}},
    "status": {"status": "fine"},
    "error": {"error": 1},
    "no files": {"outputs": []},
    "another file": {"outputs": [{**FILE, "path": "b.png"}]},
    "a file elsewhere": {"outputs": [{**FILE, "path": "/dev/zero", "bytes": 0}]},
    "a file above": {"outputs": [{**FILE, "path": "../a.png"}]},
    "a NUL": {"outputs": [{**FILE, "path": "a\0.png"}]},
    "size": {"outputs": [{**FILE, "bytes": "1"}]},
    "hash of a file": {"outputs": [{**FILE, "sha256": None}]},
    "files": {"outputs": 5},
    "model": {"model_sha256": 5},
    "formats": {"formats": [1]},
    "options": {"options": []},
    "more": {"color": "red"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_case_51_a_record_with_wrong_fields_counts_as_not_done(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    run(folder, out)
    assert redone(folder, out) == []
    manifest = out / "manifest.jsonl"
    (line, *_) = manifest.read_bytes().splitlines()
    manifest.write_bytes(change(line, **wrong))
    assert redone(folder, out) == ["a.png"]
    (record,) = read_manifest(manifest)
    assert (record.path, record.status) == (str(folder / "a.png"), "ok")


def test_case_51_a_record_without_a_hash_does_not_hide_an_unreadable_image(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    run(folder, out)
    manifest = out / "manifest.jsonl"
    manifest.write_bytes(change(manifest.read_bytes().splitlines()[0], sha256=None))
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "nothing")
    (outcome,) = run(folder, out, RESUME).values()
    assert outcome.failure is not None and outcome.failure.code == "unreadable"


def test_case_51_lines_of_any_length_and_depth_are_passed_over(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png", "b.png"]), tmp_path / "out"
    run(folder, out)
    manifest = out / "manifest.jsonl"
    first, second, summary = manifest.read_bytes().splitlines(keepends=True)
    junk = b"\0" * (2 * MAX_LINE_BYTES + 5) + second  # a hole, as after a power cut, swallows the line behind it
    manifest.write_bytes(first + b"[" * 100_000 + b"\n" + b"9" * 6000 + b"\n" + junk + summary)
    assert redone(folder, out) == ["b.png"]
    assert sorted(record.output for record in read_manifest(manifest)) == ["a", "b"]


def test_case_51_other_manifests_that_are_no_files_tell_nothing(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "manifest-1-of-2.jsonl")
    (out / "manifest-2-of-2.jsonl").mkdir()
    (out / "manifest-1-of-3.jsonl").symlink_to("/dev/zero")
    (out / "manifest-2-of-3.jsonl").symlink_to(tmp_path / "nothing")
    assert redone(folder, out) == ["a.png"]
    assert redone(folder, out) == []


def test_masks_of_one_size_in_bytes_are_told_apart_by_their_content(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png", "b.png"]), tmp_path / "out"
    run(folder, out)
    content = bytearray((out / "b.png").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "b.png").write_bytes(content)
    assert redone(folder, out) == ["b.png"]


def test_other_formats_are_made_although_their_files_have_the_same_names(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    run(folder, out)
    assert redone(folder, out, replace(RESUME, formats=("color",))) == ["a.png"]
    with Image.open(out / "a.png") as mask:
        assert mask.mode == "RGB"
    assert redone(folder, out, replace(RESUME, formats=("color", "voc"))) == ["a.png"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_case_17_after_five_masks_that_find_the_disk_full_a_run_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder, out = make_images(tmp_path / "in", [f"{index:02d}.png" for index in range(20)]), tmp_path / "out"

    def full(files: Sequence[object]) -> list[OSError]:
        return [OSError(code, os.strerror(code)) for _ in files]

    monkeypatch.setattr(writing, "write_together", full)
    monkeypatch.setattr("gmtool_serving.pipeline.pipeline.MAX_GROUP", 1)  # all of a group are recorded
    monkeypatch.setattr("gmtool_serving.pipeline.run.WRITERS", 1)
    with pytest.raises(DataError, match=f"{os.strerror(code)}: 20 of 20 images have no mask: free disk space"):
        run(folder, out)
    records = list(read_manifest(out / "manifest.jsonl"))
    assert [record.code for record in records] == ["disk_full"] * 5


def test_one_mask_that_fits_ends_the_count_of_full_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = make_images(tmp_path / "in", [f"{index:02d}.png" for index in range(20)]), tmp_path / "out"
    calls = 0

    def often_full(files: Sequence[tuple[str, bytes]]) -> list[OSError | None]:
        nonlocal calls
        errors: list[OSError | None] = []
        for path, content in files:
            calls += 1
            errors.append(OSError(errno.ENOSPC, "No space left on device") if calls % 5 else None)
            if not calls % 5:
                write_atomically(Path(path), content)
        return errors

    monkeypatch.setattr("gmtool_serving.pipeline.run.WRITERS", 1)  # in the order of the images
    monkeypatch.setattr(writing, "write_together", often_full)
    assert len(run(folder, out)) == 20


def test_a_name_of_255_bytes_has_its_mask(tmp_path: Path) -> None:
    name = "x" * 251 + ".png"
    folder, out = make_images(tmp_path / "in", [name, "a.png"]), tmp_path / "out"
    outcomes = run(folder, out)
    assert [outcome.failure for outcome in outcomes.values()] == [None, None]
    assert (out / name).is_file()
    assert redone(folder, out) == []


def test_a_name_too_long_for_a_format_costs_one_image(tmp_path: Path) -> None:
    name = "x" * 251 + ".png"  # five more letters than .json leaves room for
    folder, out = make_images(tmp_path / "in", [name, "a.png", "b.png"]), tmp_path / "out"
    images = collect_images([str(folder)], out)
    with PredictionRun(images, out, replace(OPTIONS, formats=("coco",))) as job:
        outcomes = {outcome.image.path.name: outcome for outcome in job.outcomes(FakeBackend())}
        job.make_files_of_the_whole(images)
    assert "File name too long: give the image a shorter name" in str(outcomes[name].error)
    assert (job.tally.ok, job.tally.failed) == (2, 1)
    assert {entry["image_id"] for entry in json.loads((out / "results.json").read_text())} == {"a", "b"}


def test_a_killed_run_with_names_too_long_is_swept_and_resumed(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    out.mkdir()
    (out / "manifest.jsonl").write_bytes(b'{"path": ')
    listed = tmp_path / "list.txt"
    listed.write_text(f"{folder}/a.png\n{folder}/{'y' * 300}/b.png\n")
    images = collect_images([f"@{listed}"], out)
    outcomes = list(predict_images(FakeBackend(), images, out, RESUME))
    assert sorted(outcome.failure.code if outcome.failure else "" for outcome in outcomes) == ["", "unreadable"]


def test_a_record_is_what_was_written(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", ["a.png"]), tmp_path / "out"
    run(folder, out)
    (line, _) = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    record = Record.from_line(line)
    assert record is not None
    assert record.to_line() == line
