"""Decoding in processes that can die alone."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeBackend
from gmtool_serving.backends.onnx_runtime import OrtBackend
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.inputs.decode import Decoded, DecodeOptions, EncodedImage, Failure, decode
from gmtool_serving.pipeline import decoder_process as processes
from gmtool_serving.pipeline.compute import ComputeOptions, predict_batch
from gmtool_serving.pipeline.decoder_process import DecodingProcess
from gmtool_serving.pipeline.run import PredictOptions, predict_images
from PIL import Image

DEADLY = """
import os, signal, sys, time
import gmtool.images as images

decode_image = images.decode_image

def deadly(content, path, **options):
    if "crash" in path.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "killed" in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "stuck" in path.name:
        time.sleep(1000)
    if "waits" in path.name:
        path.with_suffix(".begun").touch()
        while not path.with_suffix(".go").exists():
            time.sleep(0.01)
    return decode_image(content, path, **options)

images.decode_image = deadly
"""


@pytest.fixture
def process() -> Iterator[DecodingProcess]:
    child = DecodingProcess(DecodeOptions())
    yield child
    child.close()
    child.join()


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes decoders that die of what is in a file's name: Python runs a sitecustomize that it finds."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])


def decode_in(process: DecodingProcess, path: Path) -> Decoded | Failure:
    """Decode an image file in a child."""
    (result,) = process.decode([EncodedImage(path)])
    return result


def white(path: Path, size: tuple[int, int] = (12, 8)) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, "white").save(path, "PNG")
    return path


def peak_bytes(process: DecodingProcess) -> int:
    """Return the most memory that the child had at any time."""
    assert process._process is not None
    status = Path(f"/proc/{process._process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def one_bit_png(path: Path, side: int) -> None:
    """Write a whole PNG of side x side black pixels: small on disk, large in memory."""
    rows = zlib.compress(bytes((1 + side // 8) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
            crc = struct.pack(">I", zlib.crc32(kind + content))
            file.write(struct.pack(">I", len(content)) + kind + content + crc)


def test_a_process_decodes_what_the_function_decodes(process: DecodingProcess, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"new\nline \xff %d.jpg")
    Image.fromarray(np.arange(24 * 16 * 3, dtype=np.uint8).reshape(16, 24, 3)).save(strange, "JPEG")
    (tmp_path / "bad.jpg").write_text("text")
    here, there = decode(strange, None, DecodeOptions()), decode_in(process, strange)
    assert isinstance(here, Decoded) and isinstance(there, Decoded)
    np.testing.assert_array_equal(there.pixels, here.pixels)
    assert (there.sha256, there.warning) == (here.sha256, here.warning)
    assert decode_in(process, tmp_path / "bad.jpg") == decode(tmp_path / "bad.jpg", None, DecodeOptions())


@pytest.mark.usefixtures("deadly")
def test_case_16_a_decoder_that_dies_takes_its_image_alone(tmp_path: Path) -> None:
    names = [*(f"{index}.png" for index in range(12)), "crash.png", "killed.png", "z.png"]
    for name in names:
        white(tmp_path / "in" / name)
    images, out = collect_images([str(tmp_path / "in")], tmp_path / "out"), tmp_path / "out"
    outcomes = list(predict_images(FakeBackend(), images, out, PredictOptions(workers=2)))
    failed = {outcome.image.path.name: outcome.failure for outcome in outcomes if outcome.failure}
    assert set(failed) == {"crash.png", "killed.png"}
    assert {failure.code for failure in failed.values()} == {"worker_died"}
    assert "SIGSEGV" in failed["crash.png"].message and "SIGKILL" in failed["killed.png"].message
    assert len(list(out.glob("*.png"))) == 13


@pytest.mark.usefixtures("deadly")
def test_case_16_of_images_that_are_decoded_together_one_dies_alone(
    process: DecodingProcess, tmp_path: Path
) -> None:
    names = ["a.png", "b.png", "crash.png", "bad.png", "c.png"]
    paths = [tmp_path / "in" / name for name in names]
    paths[0].parent.mkdir()
    for grey, path in enumerate(paths):
        Image.new("RGB", (12, 8), (grey, grey, grey)).save(path)
    paths[3].write_text("text")
    results = process.decode([EncodedImage(path) for path in paths])
    found = [result.code if isinstance(result, Failure) else result.pixels.shape for result in results]
    assert found == [(8, 12, 3), (8, 12, 3), "worker_died", "not_an_image", (8, 12, 3)]
    greys = [int(result.pixels.max()) for result in results if isinstance(result, Decoded)]
    assert greys == [0, 1, 4]  # each in memory of its own


def test_case_16_a_process_that_is_killed_between_images_costs_none(
    process: DecodingProcess, tmp_path: Path
) -> None:
    path = white(tmp_path / "x.png")
    assert isinstance(decode_in(process, path), Decoded)
    assert process._process is not None
    process._process.send_signal(signal.SIGKILL)
    process._process.wait()
    assert isinstance(decode_in(process, path), Decoded)


@pytest.mark.usefixtures("deadly")
def test_an_image_that_takes_too_long_is_given_up(
    process: DecodingProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE_S", 0.2)
    assert isinstance(decode_in(process, white(tmp_path / "in" / "x.png")), Decoded)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            process.count_time(0.05)

    threading.Thread(target=watch, daemon=True).start()
    started = time.monotonic()
    result = decode_in(process, white(tmp_path / "in" / "stuck.png"))
    done.set()
    assert isinstance(result, Failure) and result.code == "timed_out"
    assert time.monotonic() - started < 5


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("deadly")
def test_case_53_a_decoder_that_is_stopped_is_not_slow(process: DecodingProcess, tmp_path: Path) -> None:
    path, results = white(tmp_path / "in" / "waits.png"), []
    decoding = threading.Thread(target=lambda: results.append(decode_in(process, path)))
    decoding.start()
    wait_until(path.with_suffix(".begun").exists)
    assert process._process is not None
    pid = process._process.pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    for _ in range(3):
        process.count_time(1000.0)
    path.with_suffix(".go").touch()
    os.kill(pid, signal.SIGCONT)
    decoding.join()
    assert isinstance(results[0], Decoded)


STOPPED = """
import sys
from pathlib import Path
from gmtool_serving.pipeline import decoder_pool as decoders
from gmtool_serving.pipeline import decoder_process as processes
from gmtool_serving.inputs.decode import DecodeOptions
from gmtool_serving.inputs.collect import InputImage

processes.PATIENCE_S, decoders.WATCH_S = 2.0, 0.05
path = Path(sys.argv[1])
pool = decoders.Decoders(1, DecodeOptions(), isolated=True)
result = pool.submit(InputImage(path, path), lambda decode: decode(path, None)).result()
pool.close()
print(type(result).__name__, getattr(result, "message", ""))
"""


@pytest.mark.usefixtures("deadly")
def test_case_53_stopped_for_longer_than_the_limit_and_continued(tmp_path: Path) -> None:
    """Ctrl-Z stops the decoders and those who watch them; `fg` must not cost the image that was under way."""
    path = white(tmp_path / "in" / "waits.png")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen(
        [sys.executable, "-c", STOPPED, path],
        stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    wait_until(path.with_suffix(".begun").exists)
    os.killpg(program.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.killpg(program.pid, signal.SIGCONT)
    time.sleep(0.3)  # the watch has come round
    path.with_suffix(".go").touch()
    out, _ = program.communicate(timeout=30)
    assert out.split() == ["Decoded"]


def test_case_04_a_bomb_is_refused_before_it_takes_memory(process: DecodingProcess, tmp_path: Path) -> None:
    decode_in(process, white(tmp_path / "small.png"))
    before = peak_bytes(process)
    bomb = tmp_path / "bomb.png"
    one_bit_png(bomb, 20_000)
    assert bomb.stat().st_size < 400_000
    result = decode_in(process, bomb)
    assert isinstance(result, Failure) and result.code == "too_large"
    assert "20000x20000 pixels" in result.message
    assert peak_bytes(process) - before < 100e6


def test_case_14_a_hundred_megapixels_are_decoded_in_bounded_memory_and_refused_by_the_model(
    process: DecodingProcess, tmp_path: Path, toy_model: Path
) -> None:
    decode_in(process, white(tmp_path / "small.png"))
    before = peak_bytes(process)
    one_bit_png(tmp_path / "large.png", 10_000)
    result = decode_in(process, tmp_path / "large.png")
    assert isinstance(result, Decoded)
    assert result.pixels.shape == (10_000, 10_000, 3)
    assert peak_bytes(process) - before < 4 * result.pixels.nbytes
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    (failure,) = predict_batch(backend, [result.pixels], ComputeOptions(), names=["large.png"]).results
    assert isinstance(failure, Failure) and failure.code == "too_large"
    assert "large.png: 10000x10000 pixels" in failure.message
    remedy = "or cut it with --tile 1024x1024, which needs a model with logits: gmtool export --output logits"
    assert remedy in failure.message  # the model has masks alone
