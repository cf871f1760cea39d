"""Read YOLO's segmentation labels: data.yaml, and a text file of polygons for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from gmtool.class_lists import read_class_list
from gmtool.errors import DataError
from gmtool.labels.image_finder import ImageFinder, part_of
from gmtool.labels.reading import damaged, points_of, unclosed
from gmtool.labels.shapes import LabeledImage, Polygon, Problem, Shape, ShapeList, Source

MAX_LABEL_BYTES = 64 << 20


def read_yolo(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return the images below the folder of `data.yaml` (or `classes.txt`), with the labels that lie beside them.

    The parts are those of the folders `train`, `valid` and `test`; the paths in data.yaml are those of another
    machine too often.

    Raises:
        DataError: data.yaml names no classes.
    """
    names = read_class_list(files[0]).names
    images = []
    for path in finder.all():
        name = finder.relative(path)
        labels = _label_file(path, finder)
        part = part_of("/".join(name.split("/")[:-1]))
        if labels is None:
            images.append(LabeledImage(name, path, None, part))
        else:
            shapes = partial(_shapes_of, labels, dict(enumerate(names)))
            images.append(LabeledImage(name, path, shapes, part, str(labels)))
    return Source(
        tool="yolo",
        found=f"YOLO: {files[0].name} and {sum(image.labels is not None for image in images)} label files",
        images=tuple(images),
        class_names=tuple(names),
    )


def _label_file(image: Path, finder: ImageFinder) -> Path | None:
    """Return the label file of an image: the same path with `labels` for `images`, or the file beside it."""
    root = next(root for root in finder.roots if image.is_relative_to(root))
    parts = list(image.relative_to(root).parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    for found in ((root / Path(*parts)).with_suffix(".txt"), image.with_suffix(".txt")):
        if found.is_file():
            return found
    return None


def _shapes_of(path: Path, names: Mapping[int, str], size: tuple[int, int]) -> ShapeList:
    shapes: list[Shape] = []
    problems: list[Problem] = []
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise DataError(f"{path} has {path.stat().st_size} bytes; expected at most {MAX_LABEL_BYTES}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        shape = _shape_of(line.split(), names, size, where=where)
        if isinstance(shape, Problem):
            problems.append(shape)
        else:
            shapes.append(shape)
    return ShapeList(tuple(shapes), None, tuple(problems))


def _shape_of(
    columns: list[str], names: Mapping[int, str], size: tuple[int, int], *, where: str
) -> Shape | Problem:
    try:
        numbers: list[Any] = [float(column) for column in columns]
    except ValueError:
        return damaged(where, "expected numbers")
    if not 0 <= numbers[0] < 1e6 or numbers[0] not in names:
        return damaged(where, f"class {columns[0]}, but {len(names)} are named")
    if len(numbers) == 5:
        return Problem("boxes without outline", where, f"{where} is a box, which gives no mask: left out")
    points = points_of(numbers[1:])
    if points is None:
        return damaged(where, f"{len(numbers) - 1} coordinates; expected x and y of each point")
    if len(points) < 3:
        return unclosed(where, len(points))
    return Shape(names[int(numbers[0])], Polygon((points * (size[1], size[0]),)))


def yolo_file(root: Path) -> Path | None:
    """Return the file of classes of a YOLO data set; None if the folder is none."""
    for path in sorted(root.glob("*.y*ml"), key=lambda found: (found.stem not in ("data", "dataset"), found.name)):
        if path.suffix in (".yaml", ".yml") and any(root.glob("**/labels/**/*.txt")):
            return path
    classes = root / "classes.txt"
    has_labels = PurePosixPath("labels") in map(PurePosixPath, (p.name for p in root.iterdir() if p.is_dir()))
    return classes if classes.is_file() and has_labels else None
