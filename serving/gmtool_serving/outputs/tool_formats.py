"""Formats of labeling tools: predicted masks as shapes that are imported and corrected there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, TypeGuard, get_args

from gmtool.classes import ClassSet
from gmtool.files import open_unlinked, write_atomically
from gmtool.images import UInt8Array
from gmtool.labels.outlines import OutlineOptions
from gmtool.labels.writers.coco import write_coco
from gmtool.labels.writers.cvat import write_cvat
from gmtool.labels.writers.datumaro import write_datumaro
from gmtool.labels.writers.label_studio import label_config, write_label_studio
from gmtool.labels.writers.labelme import labelme_json
from gmtool.labels.writers.piece import Piece, make_piece
from gmtool.labels.writers.yolo import data_yaml, yolo_text

ToolFormat = Literal["labelme", "cvat", "label-studio", "coco-annotations", "yolo", "datumaro"]
TOOL_FORMATS: tuple[ToolFormat, ...] = get_args(ToolFormat)

PIECES = "pieces"
"""Folder of the outlines of single images, of which the file of the whole run is made."""
TOOL_RESULTS: dict[ToolFormat, str] = {
    "cvat": "annotations.xml",
    "label-studio": "tasks.json",
    "coco-annotations": "annotations/instances_default.json",
    "yolo": "data.yaml",
    "datumaro": "annotations/default.json",
}
"""File of the whole run, by format."""
_WRITERS: dict[ToolFormat, Callable[[BinaryIO, Callable[[], Iterator[Piece]], ClassSet], None]] = {
    "cvat": write_cvat,
    "label-studio": write_label_studio,
    "coco-annotations": write_coco,
    "datumaro": write_datumaro,
}


def is_tool_format(name: str) -> TypeGuard[ToolFormat]:
    """Return whether a format is that of a labeling tool."""
    return name in TOOL_FORMATS


def tool_path(name: ToolFormat, output: PurePosixPath) -> PurePosixPath:
    """Return the file of one image, relative to the format's folder."""
    if name == "yolo":
        return PurePosixPath("labels/train") / f"{output}.txt"
    file = output.with_name(f"{output.name}.json")
    return file if name == "labelme" else PIECES / file


def tool_content(
    name: ToolFormat,
    output: PurePosixPath,
    mask: UInt8Array,
    classes: ClassSet,
    options: OutlineOptions,
    *,
    confidence: UInt8Array | None,
    source: str | None,
    folder: str | None,
) -> bytes:
    """Return the content of the file of one image.

    Args:
        name: Format.
        output: `InputImage.output`.
        mask: Class indices, (H, W).
        classes: Classes of the mask.
        options: Detail of the outlines.
        confidence: Largest probability times 255, (H, W); None if unknown.
        source: Path of the image; None if unknown.
        folder: Folder of the format, to name the image relative to the file; None if unknown.
    """
    suffix = PurePosixPath(source).suffix if source else ".jpg"
    piece = make_piece(f"{output}{suffix}", mask, classes, options, confidence)
    if name == "labelme":
        return labelme_json(piece, _relative(source, folder, output, suffix))
    if name == "yolo":
        return yolo_text(piece, classes)
    return piece.to_json()


def write_tool_result(
    name: ToolFormat, file: BinaryIO, folder: Path, files: Sequence[PurePosixPath], classes: ClassSet
) -> None:
    """Write the file of the whole run from those of single images.

    Raises:
        DataError: The file of an image is damaged.
        OSError: A file cannot be read or written.
    """
    if name == "yolo":
        file.write(data_yaml(classes))
        return

    def pieces() -> Iterator[Piece]:
        for path in files:
            with os.fdopen(open_unlinked(folder / path), "rb") as piece:
                yield Piece.from_json(piece.read(), where=str(folder / path))

    _WRITERS[name](file, pieces, classes)
    if name == "label-studio":
        write_atomically(folder / "label_config.xml", label_config(classes))


def _relative(source: str | None, folder: str | None, output: PurePosixPath, suffix: str) -> str:
    """Return the path of an image relative to its labelme file; its name if that is not known."""
    if source is None or folder is None or "://" in source or "://" in folder:
        return f"{output.name}{suffix}"
    try:
        return os.path.relpath(source, (Path(folder) / output).parent).replace(os.sep, "/")
    except ValueError:  # another drive on Windows
        return Path(source).resolve().as_posix()
