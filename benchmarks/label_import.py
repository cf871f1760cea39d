"""Speed of `gmtool data import` on labelme files, against bare JSON parsing and polygon filling.

    uv run python benchmarks/label_import.py [--files 2000] [--width 2000] [--height 1500] [--shapes 10]

Writes labelme files of random star-shaped polygons beside one JPEG (the files name the same photo under other
names), and times:

- bare: `json.loads` and Pillow's `ImageDraw.polygon`, as labelme fills polygons; nothing is written;
- the same with OpenCV's `fillPoly`, the fastest filler;
- a script: the first, and `Image.save` of a PNG, as labelme2voc does without its other files;
- the import in one process: reading and checking, painting, overlaps, PNG, fsync, links, lists;
- the import as users get it, in as many processes as there are processors (`taskset -c 0,1` for two);
- a second import without a change.

Prints milliseconds a file and ratios of speeds: by the clock, and by the processor time of all processes, which a
busy machine hardly changes. Time grows with the number of files; the processes take some 0.3 s each to start.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from gmtool.labels.dataset.importing import import_labels
from gmtool.labels.dataset.job import ImportOptions
from gmtool.resources import processors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("files", 2000), ("width", 2000), ("height", 1500), ("shapes", 10), ("points", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        write_source(source, asked)
        files = sorted(source.glob("*.json"))
        few = files[: max(1, len(files) // 10)]
        bare = timed(lambda: fill_with_pillow(files, None), len(files))
        script = timed(lambda: fill_with_pillow(few, Path(folder) / "mask.png"), len(few))
        opencv = timed(lambda: fill_with_opencv(files), len(files))
        alone = timed(lambda: run_import(source, Path(folder) / "alone", processes=1), len(files))
        imported = timed(lambda: run_import(source, out), len(files))
        again = timed(lambda: run_import(source, out), len(files))
        sizes = [path.stat().st_size for path in out.glob("masks/*/*.png")]
    print(f"{asked.files} files of {asked.width}x{asked.height}, {asked.shapes} polygons of {asked.points} points")
    print(f"{processors()} processors; {sum(sizes) / len(sizes) / 1000:.1f} kB a mask")
    print("ms a file                      wall  processor")
    for name, times in (
        ("parsing and filling, Pillow", bare),
        ("parsing and filling, OpenCV", opencv),
        ("script that writes PNGs", script),
        ("import in one process", alone),
        ("import", imported),
        ("second import, no change", again),
    ):
        print(f"{name:28}{times[0]:8.2f}{times[1]:10.2f}")
    for name, times in (("bare parsing and filling", bare), ("the script", script)):
        clock, processor = (one / other for one, other in zip(times, imported, strict=True))
        print(f"speed of the import over {name}: {clock:.2f} by the clock, {processor:.2f} by processor time")


def write_source(folder: Path, asked: argparse.Namespace) -> None:
    """Write the photo, its names as links, and a labelme file for each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    pixels = rng.integers(0, 255, (asked.height // 20, asked.width // 20, 3), dtype=np.uint8)
    photo = folder.parent / "photo.jpg"
    Image.fromarray(pixels).resize((asked.width, asked.height), Image.Resampling.BICUBIC).save(photo, quality=90)
    for number in range(asked.files):
        (folder / f"p{number}.jpg").hardlink_to(photo)
        shapes = []
        for place in range(asked.shapes):
            turn = np.sort(rng.uniform(0, 2 * np.pi, asked.points))
            radius = rng.uniform(40, 250) * (1 + 0.1 * rng.normal(size=asked.points))
            x = rng.uniform(0, asked.width) + radius * np.cos(turn)
            y = rng.uniform(0, asked.height) + radius * np.sin(turn)
            points = np.stack([x.clip(0, asked.width), y.clip(0, asked.height)], axis=1).tolist()
            shapes.append(
                {"label": f"class{place % 5}", "points": points, "group_id": None, "shape_type": "polygon"}
            )
        value: dict[str, Any] = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"p{number}.jpg",
            "imageData": None,
        }
        size = {"imageHeight": asked.height, "imageWidth": asked.width}
        (folder / f"p{number}.json").write_text(json.dumps(value | size, indent=2))


def fill_with_pillow(files: list[Path], mask: Path | None) -> None:
    for path in files:
        value = json.loads(path.read_bytes())
        image = Image.new("L", (value["imageWidth"], value["imageHeight"]))
        draw = ImageDraw.Draw(image)
        for shape in value["shapes"]:
            draw.polygon([tuple(point) for point in shape["points"]], fill=int(shape["label"][-1]) + 1)
        if mask is not None:
            image.putpalette(bytes(range(256)) * 3)
            image.save(mask)


def fill_with_opencv(files: list[Path]) -> None:
    for path in files:
        value = json.loads(path.read_bytes())
        mask = np.zeros((value["imageHeight"], value["imageWidth"]), dtype=np.uint8)
        for shape in value["shapes"]:
            cv2.fillPoly(mask, [np.round(shape["points"]).astype(np.int32)], int(shape["label"][-1]) + 1)


def run_import(source: Path, out: Path, processes: int | None = None) -> None:
    options = ImportOptions(unlabeled_is="background", processes=processes)
    import_labels(source, out, options, progress=lambda items, _: iter(items))


def timed(work: Callable[[], None], files: int) -> tuple[float, float]:
    """Return the milliseconds that a piece of work takes a file: by the clock, and of processors."""
    started, used = time.perf_counter(), sum(os.times()[:4])
    work()
    return 1000 * (time.perf_counter() - started) / files, 1000 * (sum(os.times()[:4]) - used) / files


if __name__ == "__main__":
    main()
