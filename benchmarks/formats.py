"""Time of each output format as a ratio to saving the mask with Pillow; time of collecting many images.

    python benchmarks/formats.py [--height 1024] [--width 2048] [--repeats 15] [--images 100000]

Encoding: the median over repeats, in which all formats take turns. Collecting: a list of names and a folder of
empty files, with the resident memory that it adds, against `Path.rglob` over the same folder.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.outputs.formats import FORMAT_NAMES, FormatName, MaskItem, encode
from PIL import Image, ImageFilter

from gmtool.classes import load_classes


def street_scene(height: int, width: int) -> MaskItem:
    """A mask of curved regions of 19 classes, and a smooth confidence."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (height // 64, width // 64), dtype=np.uint8))
    field = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    noise = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    pixels = np.asarray(noise.filter(ImageFilter.GaussianBlur(3)))
    mask = (field // 14).astype(np.uint8).clip(0, 18)
    return MaskItem(
        PurePosixPath("town_000000_000019"),
        mask,
        255 - np.abs(field.astype(np.int16) % 28 - 14).astype(np.uint8),
        pixels,
    )


def time_formats(item: MaskItem, repeats: int) -> None:
    def bare() -> int:
        buffer = io.BytesIO()
        Image.fromarray(item.mask).save(buffer, "PNG")
        return buffer.tell()

    def of(name: FormatName) -> Callable[[], int]:
        classes = load_classes("cityscapes" if name != "voc-submission" else "voc")
        return lambda: sum(len(content) for _, content in encode(name, item, classes))

    jobs: dict[str, Callable[[], int]] = {"Pillow alone": bare} | {name: of(name) for name in FORMAT_NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    sizes = {}
    for _ in range(repeats):
        for name, job in jobs.items():
            started = time.perf_counter()
            sizes[name] = job()
            seconds[name].append(time.perf_counter() - started)
    print(f"encoding {item.mask.shape[1]}x{item.mask.shape[0]}, median of {repeats}")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds["Pillow alone"], strict=True))
        print(
            f"  {name:<15}{statistics.median(values) * 1e3:8.1f} ms  x{ratio:5.2f}  {sizes[name] / 1024:8.0f} KiB"
        )


def time_collecting(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "in"
        names = [f"part{index // 1000:04}/frame_{index:08}.jpg" for index in range(count)]
        for folder in {file.split("/")[0] for file in names}:
            (root / folder).mkdir(parents=True)
        for file in names:
            (root / file).touch()
        (root / "list.txt").write_text("\n".join(names))
        print(f"collecting {count} images")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        jobs: dict[str, Callable[[], int]] = {
            "list": lambda: len(collect_images([f"@{root}/list.txt"], Path(name) / "out")),
            "folder": lambda: len(collect_images([str(root)], Path(name) / "out")),
            "Path.rglob": lambda: len(list(root.rglob("*.jpg"))),
        }
        for what, job in jobs.items():
            started = time.process_time()
            found = job()
            seconds = time.process_time() - started
            peak_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(f"  {what:<15}{found} in {seconds:5.2f} s of processor; peak so far +{peak_mib:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=int, default=100_000)
    arguments = parser.parse_args()
    time_formats(street_scene(arguments.height, arguments.width), arguments.repeats)
    time_collecting(arguments.images)


if __name__ == "__main__":
    main()
