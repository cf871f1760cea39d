"""Whole-run files of a format: VOC's tar archive and COCO's results file."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gmtool.classes import ClassSet
from gmtool.errors import DataError
from gmtool.files import open_atomically, open_unlinked
from gmtool_serving.outputs.coco import EMPTY, entries_of
from gmtool_serving.outputs.formats import FormatName, paths
from gmtool_serving.outputs.tool_formats import TOOL_RESULTS, ToolFormat, is_tool_format, write_tool_result

RESULT_NAMES: dict[FormatName, str] = {
    "voc-submission": "results.tar",
    "coco": "results.json",
    **{name: file for name, file in TOOL_RESULTS.items()},  # noqa: C416  a narrower type of key
}


def finish(
    name: FormatName, folder: Path, outputs: Sequence[PurePosixPath], classes: ClassSet | None = None
) -> Path | None:
    """Write the whole-run file of a format; return its path, or None if the format has none.

    It contains the masks of `outputs` that exist on disk, in the order of their names: a repeated, resumed or
    sharded run ends with the same file. Shards that end at the same time may all call it. One image is in memory
    at a time.

    Args:
        name: Format.
        folder: Folder of the format, see `format_dirs`.
        outputs: `InputImage.output` of all images of the job, of all shards. Images without a mask are left out.
        classes: Classes of the masks, for the formats of labeling tools.

    Raises:
        DataError: The file cannot be written, or the COCO results of an image are damaged or cannot be read.
    """
    if name not in RESULT_NAMES:
        return None
    try:
        return _make(name, folder, outputs, classes)
    except OSError as error:
        where = error.filename or folder / RESULT_NAMES[name]
        raise DataError(f"{RESULT_NAMES[name]} was not written: {where}: {error.strerror or error}") from error


def _make(name: FormatName, folder: Path, outputs: Sequence[PurePosixPath], classes: ClassSet | None) -> Path:
    write: Callable[[BinaryIO, Path, Sequence[PurePosixPath]], None]
    if is_tool_format(name):
        assert classes is not None
        write = partial(_write_tool, name, classes)
    else:
        write = _write_archive if name == "voc-submission" else _write_results
    files = sorted({paths(name, output)[0] for output in outputs}, key=str)
    target = folder / RESULT_NAMES[name]
    target.parent.mkdir(exist_ok=True)
    present = [file for file in files if _is_there(folder / file)]
    while True:
        with open_atomically(target) as file:
            write(file, folder, present)
        # Another shard may meanwhile have written its last image, and this file without the images of this shard
        now = [file for file in files if _is_there(folder / file)]
        if now == present:
            return target
        present = now


def _write_tool(
    name: ToolFormat, classes: ClassSet, file: BinaryIO, folder: Path, files: Sequence[PurePosixPath]
) -> None:
    write_tool_result(name, file, folder, files, classes)


def _is_there(path: Path) -> bool:
    """Return whether a regular file exists (no link); False if its name is too long for the file system."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _write_archive(file: BinaryIO, folder: Path, files: Sequence[PurePosixPath]) -> None:
    """Write a tar archive of the masks under their relative names; its bytes depend on names and contents only."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in files:
            with os.fdopen(open_unlinked(folder / name), "rb") as mask:
                member = tarfile.TarInfo(str(name))
                member.size = os.fstat(mask.fileno()).st_size
                archive.addfile(member, mask)
            archive.getmembers().clear()  # the list would keep a kilobyte of each


def _write_results(file: BinaryIO, folder: Path, files: Sequence[PurePosixPath]) -> None:
    """Write the entries of all images as one JSON list, an entry a line."""
    separator = b"[\n"
    for name in files:
        with os.fdopen(open_unlinked(folder / name), "rb") as piece:
            content = piece.read()
        for line in entries_of(content, where=folder / name):
            file.write(separator + line)
            separator = b",\n"
    file.write(b"\n]\n" if separator == b",\n" else EMPTY)
