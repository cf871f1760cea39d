"""A folder of anything into a folder of masks: what is done, what is recorded, and what a second run does."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from fakes import CLASSES, FakeBackend
from gmtool_serving.inputs.collect import InputImage, collect_images
from gmtool_serving.inputs.decode import DecodeOptions
from gmtool_serving.inputs.shards import Shard
from gmtool_serving.outputs.folder import OutputFolder
from gmtool_serving.outputs.manifest import Record, read_manifest
from gmtool_serving.pipeline import pipeline
from gmtool_serving.pipeline import run as predict
from gmtool_serving.pipeline.batching import padded_size
from gmtool_serving.pipeline.pipeline import Outcome
from gmtool_serving.pipeline.run import PredictionRun, PredictOptions, predict_images
from PIL import Image

from gmtool.errors import ConfigError, DataError
from gmtool.files import temporary_path
from gmtool.images import UInt8Array
from gmtool.masks.files import read_mask

OPTIONS = PredictOptions(workers=0)


def make_images(folder: Path, count: int, *, width: int = 9) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 256, (6, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def run(folder: Path, out: Path, options: PredictOptions = OPTIONS, **model: Any) -> dict[str, Outcome]:
    """Predict with pixels as the model; return outcomes by the name of the image."""
    images = collect_images([str(folder)], out)
    return {
        outcome.image.path.name: outcome for outcome in predict_images(FakeBackend(**model), images, out, options)
    }


def codes(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: outcome.failure.code for name, outcome in outcomes.items() if outcome.failure is not None}


def summary_of(manifest: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(manifest.read_text().splitlines()[-1])["summary"]
    assert summary["inputs"] == summary["ok"] + summary["failed"] + summary["skipped"] + summary["not_reached"]
    return summary


def tree(out: Path) -> dict[str, bytes]:
    """Return every file but manifests, by its path."""
    paths = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".jsonl")
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def test_case_01_each_bad_file_has_its_code_and_the_others_their_masks(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "in", 3)
    for name, content in {"text.jpg": b"text", "page.jpg": b"<html></html>", "empty.jpg": b""}.items():
        (folder / name).write_bytes(content)
    whole = (folder / "000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:-20])
    flipped = bytearray(whole)
    flipped[whole.index(b"IDAT") + 10] ^= 1
    (folder / "flipped.png").write_bytes(flipped)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tiff")
    out = tmp_path / "out"
    outcomes = run(folder, out, replace(OPTIONS, decode=DecodeOptions(max_pixels=60)))
    assert codes(outcomes) == {
        "text.jpg": "not_an_image",
        "page.jpg": "not_an_image",
        "empty.jpg": "not_an_image",
        "cut.png": "truncated",
        "flipped.png": "damaged",
        "float.tiff": "unsupported",
    }
    assert sorted(tree(out)) == ["000.png", "001.png", "002.png"]
    summary = summary_of(out / "manifest.jsonl")
    assert (summary["inputs"], summary["ok"], summary["failed"]) == (9, 3, 6)
    assert summary["failures"]["not_an_image"] == 3
    records = {Path(record.path).name: record for record in read_manifest(out / "manifest.jsonl")}
    assert set(records) == set(outcomes)
    for name, outcome in outcomes.items():
        assert records[name].sha256 == outcome.sha256
        assert records[name].status == ("ok" if outcome.failure is None else "failed")
        assert records[name].error == outcome.error
    for index in range(3):
        image = np.asarray(Image.open(folder / f"{index:03d}.png"))
        mask = read_mask(out / f"{index:03d}.png", CLASSES)
        np.testing.assert_array_equal(mask, (image[..., 0] // 85).clip(0, 2))


def test_case_06_what_is_not_a_file_fails_at_once(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "in", 1)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # a socket's name has at most 108 bytes
    server.bind("socket.jpg")
    os.chdir(here)
    (folder / "zero.jpg").symlink_to("/dev/zero")
    started = time.monotonic()
    outcomes = run(folder, tmp_path / "out")
    named = run(folder / "folder.jpg" / ".." / "pipe.jpg", tmp_path / "out")
    server.close()
    assert time.monotonic() - started < 1.5
    assert codes(outcomes)["pipe.jpg"] == codes(outcomes)["zero.jpg"] == codes(named)["pipe.jpg"] == "not_a_file"
    assert codes(outcomes)["socket.jpg"] in ("not_a_file", "unreadable")
    assert outcomes["000.png"].failure is None


def test_case_07_links_fail_or_are_followed_and_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    folder, elsewhere = make_images(tmp_path / "in", 1), make_images(tmp_path / "elsewhere", 1)
    before = tree(elsewhere)
    (folder / "dangling.jpg").symlink_to(tmp_path / "nothing.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "outside.png").symlink_to(elsewhere / "000.png")
    out = tmp_path / "out"
    assert codes(run(folder, out)) == {"dangling.jpg": "unreadable", "loop.jpg": "unreadable"}
    assert sorted(tree(out)) == ["000.png", "outside.png"]
    assert tree(elsewhere) == before


def test_case_08_strange_names_get_masks_and_records(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "in", 1)
    names = [b"a b", b"-x", b"100%d", b"[1]*", b"new\nline", b"\xff\xfe", "é".encode(), "e\u0301".encode()]
    for name in names:
        os.link(folder / "000.png", os.path.join(os.fsencode(folder), name + b".png"))  # noqa: PTH118
    out = tmp_path / "out"
    assert codes(run(folder, out, replace(OPTIONS, workers=1))) == {}
    written = {name for name in os.listdir(os.fsencode(out)) if name.endswith(b".png")}  # noqa: PTH208
    assert written == {name + b".png" for name in [*names, b"000"]}
    recorded = {os.path.basename(os.fsencode(record.path)) for record in read_manifest(out / "manifest.jsonl")}  # noqa: PTH119
    assert recorded == written


def test_case_11_masks_are_of_the_displayed_image_or_of_the_stored_one(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "in", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "000.png").save(folder / "turned.png", exif=exif)
    run(folder, tmp_path / "shown")
    run(folder, tmp_path / "stored", replace(OPTIONS, decode=DecodeOptions(exif=False)))
    stored = read_mask(tmp_path / "stored" / "turned.png", CLASSES)
    np.testing.assert_array_equal(stored, read_mask(tmp_path / "stored" / "000.png", CLASSES))
    np.testing.assert_array_equal(read_mask(tmp_path / "shown" / "turned.png", CLASSES), np.rot90(stored, -1))


def test_case_13_the_first_of_several_frames_is_taken_and_it_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    frames = [Image.new("RGB", (8, 6), color) for color in ("white", "black")]
    for name, kind in (("x.webp", "WEBP"), ("x.png", "PNG"), ("x.tif", "TIFF")):
        frames[0].save(folder / name, kind, save_all=True, append_images=frames[1:])
    frames[0].save(folder / "one.png")
    outcomes = run(folder, tmp_path / "out")
    warned = {name for name, outcome in outcomes.items() if outcome.warning is not None}
    assert warned == {"x.webp", "x.png", "x.tif"}
    assert "the first of several frames" in str(outcomes["x.tif"].warning)
    for path in (tmp_path / "out").glob("*.png"):
        assert (read_mask(path, CLASSES) == 2).all()


def test_case_17_masks_that_do_not_fit_fail_and_those_of_before_stand(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "in", 3)
    random = np.random.default_rng(0)
    for name in ("large", "old"):
        Image.fromarray(random.integers(0, 256, (600, 800, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.png").write_bytes(b"the mask of before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        outcomes = run(folder, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert codes(outcomes) == {"large.png": "cannot_write", "old.png": "cannot_write"}
    assert "large.png: cannot be written: File too large" in str(outcomes["large.png"].error)
    assert (out / "old.png").read_bytes() == b"the mask of before"
    assert sorted(tree(out)) == ["000.png", "001.png", "002.png", "old.png"]


def test_case_17_a_disk_that_stays_full_ends_the_run_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = make_images(tmp_path / "in", 30), tmp_path / "out"
    synced, fsync = 0, os.fsync

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced > 20:  # a file and its folder: ten masks
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError, match=r"(No space left on device: \d+ of 30 images have no mask: free disk space)"
    ):
        run(folder, out)
    monkeypatch.undo()
    records = list(read_manifest(out / "manifest.jsonl"))
    done = {record.outputs[0].path for record in records if record.status == "ok"}
    assert done <= set(tree(out))
    assert {record.code for record in records if record.status == "failed"} == {"disk_full"}
    run(folder, out, replace(OPTIONS, resume=True))
    assert len(tree(out)) == 30


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A folder that this process may read and not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_case_18_a_folder_that_cannot_be_written_is_said_before_anything_else(
    tmp_path: Path, unwritable: Path
) -> None:
    image = InputImage(Path("x.png"), PurePosixPath("x"))
    for out, expected in (
        (unwritable, "cannot be written: Permission denied"),
        (unwritable / "new", "cannot be created: Permission denied"),
        (unwritable / "no" / "new", "cannot be created: its parent"),
    ):
        with pytest.raises(DataError, match=expected):
            PredictionRun([image], out, OPTIONS)


JOB = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from fakes import FakeBackend
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.pipeline.run import PredictOptions, predict_images

images = collect_images([sys.argv[1]], Path(sys.argv[2]))
options = PredictOptions(formats=("voc", "color"), workers=0)
for number, outcome in enumerate(predict_images(FakeBackend(), images, Path(sys.argv[2]), options), start=1):
    if number == 17:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_case_21_killed_and_resumed_is_as_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_images(tmp_path / "in", 40)
    options = replace(OPTIONS, formats=("voc", "color"))
    run(folder, tmp_path / "whole", options)
    script, out = tmp_path / "job.py", tmp_path / "out"
    script.write_text(JOB)
    done = subprocess.run([sys.executable, script, folder, out, Path(__file__).parents[2]], check=False)
    assert done.returncode == -signal.SIGKILL
    known = {record.output for record in read_manifest(out / "manifest.jsonl")}
    assert 17 <= len(known) < 40
    ended = subprocess.Popen(["true"])
    ended.wait()
    with monkeypatch.context() as patch:  # what a kill in the middle of a write leaves
        patch.setattr(os, "getpid", lambda: ended.pid)
        temporary_path(out / "voc").write_bytes(b"half")
    outcomes = run(folder, out, replace(options, resume=True))
    assert {Path(name).stem for name, outcome in outcomes.items() if outcome.skipped} == known
    assert tree(out) == tree(tmp_path / "whole")
    assert summary_of(out / "manifest.jsonl")["skipped"] == len(known)
    assert len(list(read_manifest(out / "manifest.jsonl"))) == 40


def test_case_22_only_what_changed_is_done_again(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", 6), tmp_path / "out"
    (folder / "bad.jpg").write_text("text")
    resume = replace(OPTIONS, resume=True)

    def redone(options: PredictOptions = resume, **model: Any) -> list[str]:
        return sorted(name for name, outcome in run(folder, out, options, **model).items() if not outcome.skipped)

    everything = sorted(path.name for path in folder.iterdir())
    assert redone() == everything  # there was nothing to resume
    assert redone() == redone() == ["bad.jpg"]  # what failed is tried again
    Image.new("RGB", (5, 5), "white").save(folder / "002.png")
    assert redone() == ["002.png", "bad.jpg"]
    (out / "003.png").write_bytes(b"another")
    (out / "004.png").unlink()
    assert redone() == ["003.png", "004.png", "bad.jpg"]
    assert redone(replace(resume, decode=DecodeOptions(exif=False))) == everything
    assert redone(replace(resume, decode=DecodeOptions(exif=False)), model_sha256="1" * 64) == everything
    assert redone(OPTIONS) == everything


def test_shards_do_each_image_once_and_know_of_each_other(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", 60), tmp_path / "out"
    run(folder, tmp_path / "whole")
    runs = [run(folder, out, replace(OPTIONS, shard=Shard(number, 3))) for number in (1, 2, 3)]
    assert sorted(name for names in runs for name in names) == sorted(path.name for path in folder.iterdir())
    assert all(len(names) >= 10 for names in runs)
    assert tree(out) == tree(tmp_path / "whole")
    names = [f"manifest-{number}-of-3.jsonl" for number in (1, 2, 3)]
    assert sorted(path.name for path in out.glob("*.jsonl")) == names
    assert [summary_of(out / name)["inputs"] for name in names] == [len(outcomes) for outcomes in runs]
    assert all(outcome.skipped for outcome in run(folder, out, replace(OPTIONS, resume=True)).values())
    for text in ("0/3", "4/3", "3", "a/b", "1/"):
        with pytest.raises(ConfigError, match="expected NUMBER/COUNT"):
            Shard.parse(text)


def test_a_shard_leaves_the_temporary_files_of_others_alone(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", 6), tmp_path / "out"
    out.mkdir()
    (out / "manifest-1-of-2.jsonl").write_bytes(b"{")  # a run that was killed
    young, old = out / ".a.png.1.gmtool-tmp", out / ".b.png.1.gmtool-tmp"
    for path in (young, old):
        path.touch()
    os.utime(old, (0, 0))
    run(folder, out, replace(OPTIONS, shard=Shard(1, 2)))
    assert young.exists() and not old.exists()


def test_an_interrupted_run_closes_its_manifest_and_keeps_what_was_known(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", 30), tmp_path / "out"
    images = collect_images([str(folder)], out)
    run(folder, out)
    (out / "029.png").unlink()
    with PredictionRun(images, out, OPTIONS) as interrupted:
        for number, _ in enumerate(interrupted.outcomes(FakeBackend(seconds=0.005))):
            if number == 3:
                interrupted.interrupt()
    summary = summary_of(out / "manifest.jsonl")
    assert 0 < summary["not_reached"] < 30
    redone = [
        name for name, outcome in run(folder, out, replace(OPTIONS, resume=True)).items() if not outcome.skipped
    ]
    assert redone == ["029.png"]


def test_case_42_a_run_that_is_interrupted_before_its_first_image_predicts_nothing(tmp_path: Path) -> None:
    folder, out = make_images(tmp_path / "in", 30), tmp_path / "out"
    backend = FakeBackend(seconds=0.005)
    with PredictionRun(collect_images([str(folder)], out), out, OPTIONS) as interrupted:
        assert not interrupted.interrupt(), "there is nothing yet that it could end"
        assert list(interrupted.outcomes(backend)) == []
    assert summary_of(out / "manifest.jsonl")["not_reached"] == 30
    assert len(backend.batches) < 10


def test_a_bug_in_a_stage_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    def check(_: UInt8Array) -> None:
        raise ZeroDivisionError

    folder = make_images(tmp_path / "in", 20)
    with pytest.raises(ZeroDivisionError):
        run(folder, tmp_path / "out", check=check)
    assert summary_of(tmp_path / "out" / "manifest.jsonl")["not_reached"] == 20


def test_no_stage_runs_ahead_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gmtool_serving.inputs import decode as decoding
    from gmtool_serving.pipeline import decoder_pool as decoders

    folder, out = make_images(tmp_path / "in", 120), tmp_path / "out"
    decoded = 0
    decode = decoding.decode

    def counted(*arguments: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return decode(*arguments)

    monkeypatch.setattr(decoders, "decode", counted)
    backend = FakeBackend(seconds=0.002)
    images = collect_images([str(folder)], out)
    ahead_of_computing = ahead_of_writing = 0
    for done, _ in enumerate(predict_images(backend, images, out, OPTIONS), start=1):
        ahead_of_computing = max(ahead_of_computing, decoded - len(backend.batches))
        ahead_of_writing = max(ahead_of_writing, decoded - done)
    assert decoded == 120
    assert ahead_of_computing <= 12
    assert ahead_of_writing <= 25


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8, 16])
def test_case_41_images_of_rising_and_falling_sizes_all_have_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, batch: int
) -> None:
    folder, out = images_of_mixed_sizes(tmp_path / "in"), tmp_path / "out"
    monkeypatch.setattr(pipeline, "MAX_BYTES", LARGEST_BYTES)
    monkeypatch.setattr(predict, "DECODING_THREADS", workers)
    assert codes(run(folder, out, replace(OPTIONS, batch=batch))) == {}
    assert_masks_are_those_of(folder, out)


@pytest.mark.parametrize(("workers", "batch"), [(1, 8), (8, 1)])
def test_case_41_decoding_processes_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, batch: int
) -> None:
    folder, out = images_of_mixed_sizes(tmp_path / "in"), tmp_path / "out"
    monkeypatch.setattr(pipeline, "MAX_BYTES", LARGEST_BYTES)
    assert codes(run(folder, out, PredictOptions(workers=workers, batch=batch))) == {}
    assert_masks_are_those_of(folder, out)


WIDTHS = [*[8] * 20, 96, *[8] * 20, *range(8, 104, 8), *range(96, 0, -8), 96, 8, 96, 8]
LARGEST_BYTES = 2 * 96 * 6 * 3
"""Two of the largest images: one of them shrinks what may be decoded ahead below what already is."""


def images_of_mixed_sizes(folder: Path) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index, width in enumerate(WIDTHS):
        Image.fromarray(random.integers(0, 256, (6, width, 3), dtype=np.uint8)).save(folder / f"{index:03d}.png")
    return folder


def assert_masks_are_those_of(folder: Path, out: Path) -> None:
    assert sorted(tree(out)) == [f"{index:03d}.png" for index in range(len(WIDTHS))]
    for path in folder.iterdir():
        expected = (np.asarray(Image.open(path))[..., 0] // 85).clip(0, 2)
        np.testing.assert_array_equal(read_mask(out / path.name, CLASSES), expected)


def test_an_output_folder_knows_its_inputs_by_name(tmp_path: Path) -> None:
    """What another engine than the pipeline needs: the folder and its records alone."""
    folder = OutputFolder(tmp_path / "out", shard=None, resume=False)
    images = [InputImage(Path(f"{name}.png"), PurePosixPath(name)) for name in "ba"]
    conditions = OPTIONS.conditions("0" * 64)
    for image in images:
        folder.add(
            Record(
                str(image.path), None, str(image.output), None, "failed", "unreadable", "", None, (), conditions
            )
        )
        assert folder.find_done(image, conditions) is None
    folder.finish({"inputs": 2}, images)
    folder.close()
    assert [record.output for record in read_manifest(folder.manifest_path)] == ["b", "a"]
    assert padded_size(5, 9, 4) == (8, 12)
