"""Speed of `gmtool predict` against the model alone, time to the first mask, and memory.

    uv run python benchmarks/predict.py [throughput|overlap|host|first|memory]... [--encoder resnet18]

Each prints ratios of one run, interleaved, the median of the rounds; models have random weights.
throughput: images/s from files to masks, against the bare ONNX Runtime session on the same images already decoded,
    same threads, and against a plain loop (open, run, save).
overlap: the same with a stand-in model that only waits 10 ms a batch, as an accelerator would, against the
    slowest stage alone and against the plain loop.
host: images/s behind a stand-in model that answers at once, in batches as of a GPU, against what the processors
    could decode and encode if they did nothing else (cores / seconds of both for an image on one core), with the
    program's decoder and encoder and with Pillow's; and against the same without fsync. Also the share of
    decoding and encoding alone in the processor time of all processes: other load disturbs it less.
first: seconds until `gmtool predict` has ended with one mask, against a script that imports onnxruntime and
    Pillow, loads the model and runs it.
memory: peak resident memory of a run over 10 000 small images against that of one over 200.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from gmtool_serving.backends.base import Backend
    from gmtool_serving.pipeline.pipeline import Outcome
    from gmtool_serving.pipeline.run import PredictOptions

    from gmtool.images import UInt8Array

BOUNDS = {
    "throughput resnet18": 0.90,
    "throughput resnet50": 0.95,
    "against the loop": 1.0,
    "overlap": 0.95,
    "overlap against the loop": 2.0,
    "host": 0.80,
    "host pillow": 1.0,
    "host durable": 0.90,
    "first": 1.25,
    "memory": 1.1,
}
WAIT_S = 0.01

FIRST = """
import sys, numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
image = numpy.asarray(Image.open(sys.argv[2]).convert("RGB"))
(mask,) = session.run(["mask"], {"image": image[None]})
Image.fromarray(mask[0]).save(sys.argv[3])
"""


def pictures(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Write JPEG pictures of smooth noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    paths = []
    for index in range(count):
        small = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        paths.append(folder / f"{index:05d}.jpg")
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def export(encoder: str, path: Path) -> Path:
    """Export a network with random weights."""
    program = Path(__file__).with_name("random_model.py")
    done = subprocess.run([sys.executable, program, encoder, path], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return path


def rate(count: int, act: Callable[[], object]) -> float:
    """Return the rate of a call that processes `count` items, per second."""
    started = time.perf_counter()
    act()
    return count / (time.perf_counter() - started)


def compare(name: str, ratios: Sequence[float], bound: float, *, at_most: bool = False) -> None:
    """Print the median ratio and whether it keeps its bound."""
    ratio = statistics.median(ratios)
    met = ratio <= bound if at_most else ratio >= bound
    rounds = " ".join(f"{value:.2f}" for value in ratios)
    print(f"{name:<42} {ratio:6.3f}  bound {bound:.2f} {'met' if met else 'MISSED'}  ({rounds})", flush=True)
    print(json.dumps({"name": name, "ratio": ratio, "bound": bound, "rounds": list(ratios)}), file=sys.stderr)


def throughput(root: Path, encoder: str, *, count: int, size: tuple[int, int], rounds: int) -> None:
    """Compare predict with the bare session and with the loop."""
    from gmtool_serving.backends.onnx_runtime import OrtBackend
    from gmtool_serving.pipeline.run import PredictOptions

    from gmtool.images import read_image

    model = export(encoder, root / f"{encoder}.onnx")
    paths = pictures(root / f"images-{encoder}", count, *size)
    backend = OrtBackend(model, device="cpu", threads=os.cpu_count() or 1)
    decoded = [read_image(path)[None] for path in paths]
    options = PredictOptions(workers=os.cpu_count() or 1)
    backend.predict(decoded[0])
    bare, loop = [], []
    for _ in range(rounds):
        bare_rate = rate(count, lambda: [backend.predict(image) for image in decoded])
        ours = predict_rate(backend, root, paths, options)
        loop_rate = rate(count, lambda: plain_loop(backend, paths, root / "loop"))
        bare.append(ours / bare_rate)
        loop.append(ours / loop_rate)
    what = f"{encoder}, {size[0]}x{size[1]}"
    compare(f"bare session, {what}", bare, BOUNDS.get(f"throughput {encoder}", 0.9))
    compare(f"plain loop, {what}", loop, BOUNDS["against the loop"])


def predict_rate(backend: Backend, root: Path, paths: list[Path], options: PredictOptions) -> float:
    """Return the images/s of a run into a fresh folder, from when a command would have loaded its model."""
    return predict_timed(backend, root, paths, options)[0]


def predict_timed(
    backend: Backend, root: Path, paths: list[Path], options: PredictOptions
) -> tuple[float, float, float]:
    """Return images/s as `predict_rate`, and the processor time of this process and of its decoders, ms an image.

    Decoding processes start before the model is loaded; here they are given the second that loading takes.
    """
    from gmtool_serving.inputs.collect import collect_images
    from gmtool_serving.pipeline.run import PredictionRun

    # A new folder: ext4 without a journal looks long for an inode that was not deleted a minute ago
    out = Path(tempfile.mkdtemp(dir=root, prefix="out-"))
    images = collect_images([str(paths[0].parent)], out)
    with PredictionRun(images, out, options) as run:
        time.sleep(1)
        own, decoders = time.process_time(), _children_s()
        images_per_s = rate(len(paths), lambda: [outcome for outcome in run.outcomes(backend) if _is_ok(outcome)])
        own, decoders = time.process_time() - own, _children_s() - decoders
    return images_per_s, 1000 * own / len(paths), 1000 * decoders / len(paths)


def _children_s() -> float:
    """Return the processor time of the child processes, seconds; 0 where Linux does not tell."""
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return sum(int(Path(f"/proc/{child}/schedstat").read_text().split()[0]) for child in children) / 1e9
    except OSError:
        return 0.0


def _is_ok(outcome: Outcome) -> bool:
    assert outcome.failure is None, outcome.failure
    return True


def plain_loop(backend: Backend, paths: list[Path], out: Path) -> None:
    """Open, run, save."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path in paths:
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = backend.predict(image[None]).mask[0]
        Image.fromarray(mask).save(out / f"{path.stem}.png")


def overlap(root: Path, *, count: int, rounds: int) -> None:
    """Compare predict with the slowest stage alone, and with the loop, behind a model that waits."""
    from gmtool_serving.pipeline.run import PredictOptions

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from fakes import FakeBackend
    from gmtool_serving.backends.base import Prediction

    paths = pictures(root / "images-overlap", count, 1024, 768)

    class Waiting(FakeBackend):
        """Takes no processor time, as a model on an accelerator."""

        def predict(self, images: UInt8Array) -> Prediction:
            time.sleep(WAIT_S)
            return Prediction(np.broadcast_to(mask, images.shape[:3]))

    options = PredictOptions(workers=os.cpu_count() or 1)
    image = np.asarray(Image.open(paths[0]))
    regions = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(
        Image.fromarray(regions).resize((image.shape[1], image.shape[0]), Image.Resampling.BICUBIC)
    )
    mask = FakeBackend().predict(smooth[None]).mask[0]
    backend = Waiting()
    alone, loop = [], []
    for _ in range(rounds):
        slowest = rate(count, lambda: [backend.predict(image[None]) for _ in paths])
        ours = predict_rate(backend, root, paths, options)
        alone.append(ours / slowest)
        loop.append(ours / rate(count, lambda: plain_loop(backend, paths, root / "loop")))
    compare("slowest stage alone, 10 ms model", alone, BOUNDS["overlap"])
    compare("plain loop, 10 ms model", loop, BOUNDS["overlap against the loop"])


def first(root: Path, encoder: str, *, rounds: int) -> None:
    """Compare the time until one mask is there."""
    model = export(encoder, root / "first.onnx")
    (path,) = pictures(root / "images-first", 1, 500, 375)
    bare = [sys.executable, "-c", FIRST, str(model), str(path), str(root / "first.png")]
    ours = [sys.executable, "-m", "gmtool", "predict", str(path), "--model", str(model), "--device", "cpu"]
    ratios = []
    for number in range(rounds):
        command = [*ours, "--out", str(root / f"first-{number}")]
        ratios.append(rate(1, lambda: _run(bare)) / rate(1, lambda command=command: _run(command)))  # type: ignore[misc]
    compare(f"first mask, {encoder}", ratios, BOUNDS["first"], at_most=True)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def memory(root: Path) -> None:
    """Compare peaks of resident memory, of the process and of its largest decoding process."""
    model = export("toy", root / "toy.onnx")
    paths = pictures(root / "small", 200, 64, 48)
    many = root / "many"
    many.mkdir()
    for index in range(10_000):
        os.link(paths[index % 200], many / f"{index:05d}.jpg")
    peaks = []
    for number, folder in enumerate((root / "small", many)):
        arguments = [
            str(folder),
            "--out",
            str(root / f"memory-{number}"),
            "--model",
            str(model),
            "--device",
            "cpu",
        ]
        child = os.fork()
        if child == 0:
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            os.execv(sys.executable, [sys.executable, "-m", "gmtool", "predict", *arguments])
        _, status, usage = os.wait4(child, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss / 1024)
    print(f"peak resident memory: 200 images {peaks[0]:.1f} MiB, 10 000 images {peaks[1]:.1f} MiB")
    compare("memory of 10 000 against 200 images", [peaks[1] / peaks[0]], BOUNDS["memory"], at_most=True)


def main() -> None:
    """Run the measurements of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["throughput", "overlap", "host", "first", "memory"])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    arguments = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ and "host" in arguments.parts:
        from gmtool_serving.pipeline.decoder_process import KEEP_MEMORY  # else decoding alone would be slower

        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    size = (arguments.width, arguments.height)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in arguments.parts:
            if part == "throughput":
                throughput(root, arguments.encoder, count=arguments.images, size=size, rounds=arguments.rounds)
            elif part == "overlap":
                overlap(root, count=400, rounds=arguments.rounds)
            elif part == "host":
                from predict_host import host  # type: ignore[import-not-found]

                host(root, count=1000, size=size, rounds=arguments.rounds)
            elif part == "first":
                first(root, arguments.encoder, rounds=arguments.rounds)
            else:
                memory(root)


if __name__ == "__main__":
    main()
