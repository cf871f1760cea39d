"""Read COCO annotations as tools export them: Roboflow, Label Studio, CVAT and others, which bend the format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.classes import grouping_categories
from gmtool.errors import DataError
from gmtool.json_toml import read_json, shown
from gmtool.labels.image_finder import ImageFinder, part_of, plain_name
from gmtool.labels.reading import damaged, points_of, size_of, unclosed
from gmtool.labels.shapes import LabeledImage, Polygon, Problem, RunLengths, Shape, ShapeList, Source
from gmtool.masks.coco_annotations import checked_shapes


def read_coco_source(files: Sequence[Path], root: Path, finder: ImageFinder) -> Source:
    """Return the images of annotation files; the file or folder name says the part.

    Raises:
        DataError: Not an annotation file.
    """
    images: list[LabeledImage] = []
    names: list[str] = []
    problems: list[Problem] = []
    for path in files:
        value = read_json(path, what="a COCO annotation file", any_number=True)
        if not is_coco(value):
            raise DataError(f"{path}: not COCO annotations: expected lists images, annotations and categories")
        categories, dropped = _categories_of(value)
        problems += [
            Problem("categories without annotations", str(path), f"{path}: category {name} only groups others")
            for name in dropped
        ]
        names += [name for name in categories.values() if name not in names]
        by_image = _by_image(value["annotations"], categories, path, problems)
        part = part_of(path.stem) or part_of(path.parent.name if path.parent != root else "")
        for item in value["images"]:
            image = _image_of(item, by_image, path, finder, part)
            if image is None:
                problems.append(damaged(f"{path} image {shown(item)}", "no id or file_name"))
            else:
                images.append(image)
    return Source(
        tool="coco",
        found=f"COCO: {len(files)} annotation file{'s' if len(files) > 1 else ''}, {len(images)} images",
        images=tuple(images),
        class_names=tuple(names),
        on_top="smaller",
        problems=tuple(problems),
    )


def is_coco(value: Any) -> bool:
    """Return whether a JSON value is a COCO annotation file."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), list) for key in ("images", "annotations", "categories")
    )


def _categories_of(value: dict[str, Any]) -> tuple[dict[Any, str], list[str]]:
    """Return names by id, and the names of categories that have no annotation and only group others."""
    listed = [item for item in value["categories"] if isinstance(item, dict) and isinstance(item.get("name"), str)]
    groups = grouping_categories(value)
    kept = [item for place, item in enumerate(listed) if place not in groups]
    return {item.get("id"): item["name"] for item in kept}, [listed[place]["name"] for place in sorted(groups)]


def _by_image(
    annotations: list[Any], categories: dict[Any, str], path: Path, problems: list[Problem]
) -> dict[Any, list[tuple[str, str, Any]]]:
    """Return (place for messages, category, segmentation) of each annotation, by image id."""
    found: dict[Any, list[tuple[str, str, Any]]] = defaultdict(list)
    for place, item in enumerate(annotations):
        name = item.get("id", f"number {place}") if isinstance(item, dict) else f"number {place}"
        where = f"{path} annotation {name if isinstance(name, str) else shown(name)}"
        if not isinstance(item, dict) or not _is_id(item.get("image_id")):
            problems.append(damaged(where, "no image_id"))
        elif not _is_id(item.get("category_id")) or item["category_id"] not in categories:
            problems.append(damaged(where, f"category {shown(item.get('category_id'))} is not listed"))
        else:
            found[item["image_id"]].append((where, categories[item["category_id"]], item.get("segmentation")))
    return found


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _image_of(
    item: Any, by_image: dict[Any, list[tuple[str, str, Any]]], path: Path, finder: ImageFinder, part: Any
) -> LabeledImage | None:
    if not isinstance(item, dict) or not _is_id(item.get("id")) or not isinstance(item.get("file_name"), str):
        return None
    image = finder.find(item["file_name"], near=path.parent)
    name = finder.relative(image) if image else plain_name(item["file_name"])
    own_part = part or part_of("/".join(name.split("/")[:-1]))
    labels = partial(_shapes_of, by_image.get(item["id"], []), size_of(item.get("height"), item.get("width")))
    return LabeledImage(name, image, labels, own_part, f"{path} image {item['id']}")


def _shapes_of(
    annotations: list[tuple[str, str, Any]], own_size: tuple[int, int] | None, size: tuple[int, int]
) -> ShapeList:
    shapes: list[Shape] = []
    problems: list[Problem] = []
    for where, label, segmentation in annotations:
        if not segmentation:
            line = f"{where} is a box, which gives no mask: left out"
            problems.append(Problem("boxes without outline", where, line))
        elif isinstance(segmentation, dict):
            try:
                (runs,) = checked_shapes(segmentation, own_size or size, where=where)
            except DataError as error:
                problems.append(Problem("damaged shapes", where, f"{error}: left out"))
                continue
            counts = np.array(runs["counts"], dtype=np.int64)
            shapes.append(Shape(label, RunLengths(counts, runs["size"][0], runs["size"][1], by_column=True)))
        else:
            # The polygons of an annotation are united: holes need run lengths
            for polygon in segmentation if isinstance(segmentation, list) else [None]:
                points = points_of(polygon)
                if points is None:
                    problems.append(damaged(where, "a polygon is not a list of x, y, x, y, ..."))
                elif len(points) < 3:
                    problems.append(unclosed(where, len(points)))
                else:
                    shapes.append(Shape(label, Polygon((points,))))
    return ShapeList(tuple(shapes), own_size, tuple(problems))
