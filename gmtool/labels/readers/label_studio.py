"""Read Label Studio's JSON and JSON-MIN: polygons, brush strokes, bit masks, rectangles, ellipses."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.errors import DataError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.json_toml import read_json, shown
from gmtool.labels.brush import decode_brush
from gmtool.labels.image_finder import ImageFinder, part_of, plain_name
from gmtool.labels.reading import damaged, no_area, numbers_of, points_of, size_of, unclosed
from gmtool.labels.shapes import (
    Bitmap,
    Geometry,
    LabeledImage,
    Polygon,
    Problem,
    RunLengths,
    Shape,
    ShapeList,
    Source,
    rotate,
)
from gmtool.labels.shapes import ellipse as make_ellipse

LABEL_KEYS = ("polygonlabels", "brushlabels", "bitmasklabels", "rectanglelabels", "ellipselabels", "labels")
LINES = ("keypointlabels", "vectorlabels")
DATA_URL = "data:image/png;base64,"


def read_label_studio(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return the tasks of exported files. Predictions are no labels, and skipped annotations neither.

    Raises:
        DataError: Not an export of Label Studio.
    """
    images: list[LabeledImage] = []
    names: set[str] = set()
    problems: list[Problem] = []
    for path in files:
        value = read_json(path, what="an export of Label Studio", any_number=True)
        if not is_label_studio(value):
            raise DataError(f"{path}: not an export of Label Studio: expected a list of tasks")
        for place, task in enumerate(value):
            where = f"{path} task {shown(task.get('id', place))}"
            reference = _image_name(task)
            if reference is None:
                problems.append(Problem("tasks without image", where, f"{where}: names no image: left out"))
                continue
            image = finder.find(reference, near=path.parent)
            name = finder.relative(image) if image else plain_name(reference)
            results = _results_of(task, where, problems)
            if results is None and task.get("predictions"):
                line = f"{where} has predictions alone, which are no labels: accept them in Label Studio"
                problems.append(Problem("tasks with predictions alone", where, line))
            drawn = (result for result in results or () if result.get("type") not in LINES)
            names |= {label for result in drawn for label in _labels_of(result)[:1]}
            labels = None if results is None else partial(_shapes_of, results, where)
            images.append(LabeledImage(name, image, labels, part_of("/".join(name.split("/")[:-1])), where))
    return Source(
        tool="label-studio",
        found=f"Label Studio: {len(files)} JSON file{'s' if len(files) > 1 else ''}, {len(images)} tasks",
        images=tuple(images),
        class_names=tuple(sorted(names)),
        problems=tuple(problems),
    )


def is_label_studio(value: Any) -> bool:
    """Return whether a JSON value is a list of tasks, in full or as JSON-MIN."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(task, dict)
            and (isinstance(task.get("data"), dict) or (_image_name(task) is not None and "annotator" in task))
            for task in value
        )
    )


def _image_name(task: dict[str, Any]) -> str | None:
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = {key: text for key, text in data.items() if isinstance(text, str)}
    named = texts.get("image") or texts.get("img")
    found = (text for text in texts.values() if plain_name(text).lower().endswith(IMAGE_SUFFIXES))
    return named or next(found, None)


def _results_of(task: dict[str, Any], where: str, problems: list[Problem]) -> list[dict[str, Any]] | None:
    """Return the results of the annotation of a task; None if it has none."""
    if not isinstance(task.get("data"), dict):  # JSON-MIN: results in one list a control
        lists = [value for value in task.values() if isinstance(value, list)]
        found = [item for value in lists for item in value if isinstance(item, dict) and _labels_of(item)]
        return found or None
    listed = task.get("annotations", task.get("completions"))
    done = [
        each
        for each in (listed if isinstance(listed, list) else [])
        if isinstance(each, dict) and not each.get("was_cancelled") and isinstance(each.get("result"), list)
    ]
    if not done:
        return None
    if len(done) > 1:
        line = f"{where} has {len(done)} annotations: the last one was taken"
        problems.append(Problem("tasks annotated several times", where, line))
    return [result for result in done[-1]["result"] if isinstance(result, dict)]


def _labels_of(result: dict[str, Any]) -> list[str]:
    value = result["value"] if isinstance(result.get("value"), dict) else result
    for key in (*LABEL_KEYS, *LINES):
        found = value.get(key)
        if isinstance(found, list) and found and all(isinstance(label, str) for label in found):
            return found
    return []


def _shapes_of(results: list[dict[str, Any]], where: str, size: tuple[int, int]) -> ShapeList:
    shapes, problems = [], []
    own_size = None
    for place, result in enumerate(results):
        value = result["value"] if isinstance(result.get("value"), dict) else result
        kind, labels = str(result.get("type", "")).lower(), _labels_of(result)
        if not labels:
            continue  # choices, texts, relations, and the first half of a region with <Labels>
        spot = f"{where} region {result.get('id', place)} ({shown(labels[0])})"
        own_size = size_of(result.get("original_height"), result.get("original_width")) or own_size
        if kind in LINES:
            problems.append(no_area(spot, kind))
            continue
        turned = result.get("image_rotation") or 0
        geometry = (
            damaged(spot, f"the image was turned by {shown(turned)} degrees in the tool")
            if turned
            else _geometry_of(value, own_size or size, where=spot)
        )
        if isinstance(geometry, Problem):
            problems.append(geometry)
        else:
            shapes.append(Shape(labels[0], geometry))
    return ShapeList(tuple(shapes), own_size, tuple(problems))


def _geometry_of(value: dict[str, Any], size: tuple[int, int], *, where: str) -> Geometry | Problem:  # noqa: PLR0911
    """Return a region; lengths are in percent of the image's width or height."""
    percent = np.array([size[1], size[0]]) / 100
    if "points" in value:
        points = points_of(value["points"])
        if points is None:
            return damaged(where, "points are not [[x, y], ...]")
        if len(points) < 3 or value.get("closed") is False:
            return unclosed(where, len(points))
        return Polygon((points * percent,))
    if "rle" in value:
        try:
            mask = decode_brush(value["rle"], size, where=where)
        except DataError as error:
            return Problem("damaged shapes", where, f"{error}: left out")
        flat = mask.reshape(-1)
        edges = np.flatnonzero(np.diff(flat, prepend=False, append=False))
        return RunLengths(np.diff(edges, prepend=0), *size)
    if isinstance(value.get("imageDataURL"), str):
        try:
            return Bitmap(base64.b64decode(value["imageDataURL"].removeprefix(DATA_URL), validate=True))
        except (binascii.Error, ValueError):
            return damaged(where, "imageDataURL is not a PNG in base64")
    box = numbers_of(value, "x", "y", "width", "height", "rotation")
    if box is not None:
        x, y, width, height, turn = box
        corners = np.array([(0, 0), (width, 0), (width, height), (0, height)]) * percent
        return Polygon((rotate(corners, turn) + np.array([x, y]) * percent,))
    oval = numbers_of(value, "x", "y", "radiusX", "radiusY", "rotation")
    if oval is not None:
        x, y, rx, ry, turn = oval
        return make_ellipse(x * percent[0], y * percent[1], rx * percent[0], ry * percent[1], turn)
    return damaged(where, "no points, rle, rectangle or ellipse")
