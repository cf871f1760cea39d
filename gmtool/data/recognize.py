"""Recognise the layout of a data set from its folders."""

from __future__ import annotations

import os
from pathlib import Path

from gmtool.errors import DataError, some_names
from gmtool.json_toml import read_json

VOC_ROOTS = (".", "VOC2012", "VOCdevkit/VOC2012", "VOC2010", "VOCdevkit/VOC2010")
"""Where PASCAL VOC's folders lie below what a person calls the data set."""


def recognize_kind(root: Path) -> tuple[str, str]:
    """Return the kind of a data set, as `gmtool train` names it, and what it was recognised by.

    Raises:
        DataError: The folder does not exist, or has no layout that is known.
    """
    if not root.is_dir():
        raise DataError(f"data set folder {root} does not exist")
    if any((root / place / "JPEGImages").is_dir() for place in VOC_ROOTS):
        return "voc", "JPEGImages/"
    if (root / "leftImg8bit").is_dir():
        return "cityscapes", "leftImg8bit/"
    annotations = sorted((root / "annotations").glob("instances_*.json"))
    if annotations:
        return "coco", f"annotations/{annotations[0].name}"
    if (root / "images").is_dir():
        return "folder", "images/"
    found = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    raise DataError(
        f"{root}: no layout recognised in it (it has {some_names(found) or 'nothing'}); expected images/ and "
        "masks/, JPEGImages/, leftImg8bit/ or annotations/instances_*.json: gmtool train folder --data DIR with "
        "--set data.images=... and --set data.masks=... reads others, gmtool data import those of labeling tools"
    )


def ignores_on_purpose(root: Path) -> bool:
    """Return whether `gmtool data import` was told that ground without a label is ignored."""
    path = own_file(root, "import.json")
    record = None if path is None else read_json(path, what="the record of an import")
    return isinstance(record, dict) and record.get("unlabeled_is") == "ignore"


def own_file(root: str | os.PathLike[str] | None, name: str) -> Path | None:
    """Return a file that lies in the folder of a data set; None if it does not."""
    path = Path(root or ".") / name
    return path if path.is_file() else None
