"""Recognise which tool a folder or file comes from, by the files in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gmtool.class_lists import ClassList
from gmtool.errors import DataError, UsageError, some_names
from gmtool.folders import below
from gmtool.labels.image_finder import ImageFinder
from gmtool.labels.readers.coco import read_coco_source
from gmtool.labels.readers.cvat import read_cvat
from gmtool.labels.readers.datumaro import read_datumaro
from gmtool.labels.readers.label_studio import read_label_studio
from gmtool.labels.readers.labelme import Reading, read_labelme
from gmtool.labels.readers.mask_folders import (
    mask_folder,
    read_cvat_masks,
    read_plain_masks,
    read_roboflow_masks,
    read_voc,
)
from gmtool.labels.readers.supervisely import read_supervisely
from gmtool.labels.readers.yolo import read_yolo, yolo_file
from gmtool.labels.shapes import Source, ToolName

TOOL_NAMES: tuple[ToolName, ...] = get_args(ToolName)
PEEK_BYTES = 1 << 16
READERS: dict[ToolName, Callable[[Sequence[Path], Path, ImageFinder], Source]] = {
    "labelme": read_labelme,
    "cvat": read_cvat,
    "cvat-masks": read_cvat_masks,
    "label-studio": read_label_studio,
    "coco": read_coco_source,
    "yolo": read_yolo,
    "datumaro": read_datumaro,
    "supervisely": read_supervisely,
    "roboflow-masks": read_roboflow_masks,
    "voc": read_voc,
    "masks": read_plain_masks,
}
JSON_MARKS: tuple[tuple[ToolName, re.Pattern[bytes]], ...] = (
    ("labelme", re.compile(rb'"(shapes|imagePath)"\s*:')),
    ("datumaro", re.compile(rb'"(dm_format_version|items|label_groups)"\s*:')),
    ("coco", re.compile(rb'"(segmentation|iscrowd|file_name|supercategory|annotations)"\s*:')),
)
"""Keys in the first or last `PEEK_BYTES` of a JSON object that only one tool writes, in the order of asking."""


@dataclass(frozen=True)
class Recognized:
    """Tool that wrote some files of a source."""

    tool: ToolName
    files: tuple[Path, ...]
    """Files that its reader takes."""
    evidence: str
    """Name of the file or folder by which it was recognised."""


def open_source(
    path: Path,
    *,
    images: Path | None = None,
    tool: ToolName | None = None,
    classes: ClassList | None = None,
    out: Path | None = None,
    reading: Reading | None = None,
) -> Source:
    """Return the images and labels of a folder or file that a labeling tool wrote.

    Args:
        path: Folder, or one file such as annotations.xml or result.json.
        images: Folder of the images, if they are elsewhere.
        tool: Tool that wrote it; None: it is recognised.
        classes: Names of the values of plain masks.
        out: Folder of the data set, which may lie in the source.
        reading: Reads files of labelme, such as in several processes.

    Raises:
        DataError: Nothing was recognised, or the files are damaged.
        UsageError: Files of several tools.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if images is not None and not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    without = None if out is None else out.resolve()
    found = recognize(path, without=without)
    chosen = [each for each in found if tool in (None, each.tool)]
    if tool is None and len(found) > 1:
        listed = ", ".join(f"{each.tool} ({each.evidence})" for each in found)
        raise UsageError(f"{path} holds files of several tools: {listed}: choose one with --from {found[0].tool}")
    if not chosen:
        root = path if path.is_dir() else path.parent
        names = sorted(each.name for each in root.iterdir() if not each.name.startswith("."))
        asked = f"files of {tool}" if tool else "files of a labeling tool"
        raise DataError(
            f"{path}: no {asked} recognised (it has {some_names(names, 5) or 'nothing'}); known: labelme "
            "JSON, CVAT XML or masks, Label Studio JSON, COCO, YOLO data.yaml, Datumaro, Supervisely, Roboflow "
            "masks, VOC, images/ and masks/"
        )
    root = path if path.is_dir() else path.parent
    finder = ImageFinder([root, *([images] if images else [])], without=without)
    recognized = chosen[0]
    if recognized.tool == "masks":
        return read_plain_masks(recognized.files, root, finder, classes)
    if recognized.tool == "labelme":
        return read_labelme(recognized.files, root, finder, reading)
    return READERS[recognized.tool](recognized.files, root, finder)


def recognize(path: Path, *, without: Path | None = None) -> list[Recognized]:  # noqa: PLR0911  one tool a line
    """Return the tools whose files are in a folder or a file, the likeliest first; plain masks only if no other.

    The folder `without` is not searched.

    Raises:
        DataError: The folder cannot be read.
    """
    if path.is_file():
        tool = _tool_of_file(path)
        return [Recognized(tool, (path,), path.name)] if tool else []
    # Folders that a single file gives away
    meta = path / "meta.json"
    if meta.is_file() and any(path.glob("**/ann/*.json")):
        return [Recognized("supervisely", (meta,), "meta.json and ann/")]
    lists = sorted(path.glob("**/_classes.csv"))
    if lists and not any(path.glob("**/_annotations.coco.json")):
        return [Recognized("roboflow-masks", tuple(lists), "_classes.csv")]
    label_maps = sorted(path.glob("**/labelmap.txt"))
    if label_maps and (label_maps[0].parent / "SegmentationClass").is_dir():
        return [Recognized("cvat-masks", (label_maps[0],), "labelmap.txt and SegmentationClass/")]
    # Documents
    found = _documents(path, without)
    if found:
        return found
    yolo = yolo_file(path)
    if yolo is not None:
        return [Recognized("yolo", (yolo,), f"{yolo.name} and labels/")]
    masks = [folder for folder in sorted(path.glob("**/SegmentationClass")) if folder.is_dir()]
    if masks:
        return [Recognized("voc", (masks[0],), "SegmentationClass/")]
    folder = mask_folder(path)
    return [Recognized("masks", (folder,), f"{folder.name}/")] if folder else []


def _documents(path: Path, without: Path | None) -> list[Recognized]:
    """Return the tools of all JSON and XML files below a folder."""
    by_tool: dict[ToolName, list[Path]] = {}
    for name in below(path, suffixes=(".json", ".xml"), excluded=without):
        tool = _tool_of_file(path / name)
        if tool is not None:
            by_tool.setdefault(tool, []).append(path / name)
    return [
        Recognized(tool, tuple(files), some_names([str(file.relative_to(path)) for file in files], 1))
        for tool, files in by_tool.items()
    ]


def _tool_of_file(path: Path) -> ToolName | None:
    """Return the tool that wrote a file, by its first and last bytes; None if unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(PEEK_BYTES)
            file.seek(max(len(head), path.stat().st_size - PEEK_BYTES))
            tail = file.read(PEEK_BYTES)
    except OSError:
        return None
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        head, tail = head.replace(b"\0", b""), tail.replace(b"\0", b"")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.suffix.lower() == ".xml":
        return "cvat" if b"<annotations" in head else None
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    if start.startswith(b"["):
        marks = re.search(rb'"(data|annotations|completions|annotator)"\s*:', head)
        return "label-studio" if marks else None
    if start.startswith(b"{"):
        return next((tool for tool, mark in JSON_MARKS if mark.search(head) or mark.search(tail)), None)
    return None
