"""Files made once at the end of a run from those of its images: VOC's archive and COCO's results."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gmtool.errors import DataError
from gmtool.files import open_atomically, open_unlinked
from gmtool_serving.outputs.coco import EMPTY, entries_of
from gmtool_serving.outputs.formats import FormatName, paths

RESULT_NAMES: dict[FormatName, str] = {"voc-submission": "results.tar", "coco": "results.json"}


def finish(name: FormatName, folder: Path, outputs: Sequence[PurePosixPath]) -> Path | None:
    """Make the file that a format has once a run; return its path, or None where a format has none.

    It holds what lies on disk of `outputs` and nothing else, in the order of their names: a run that is
    repeated, resumed or sharded ends with the same file. Shards that end at the same time may all call it.
    One image is in memory at a time.

    Args:
        name: The format.
        folder: The format's folder, as `format_dirs` gives it.
        outputs: `InputImage.output` of all images of the run, those of all shards. One whose file is not there
            (it failed, or its shard is not done) is left out.

    Raises:
        DataError: The file cannot be written, or the COCO results of an image are damaged or cannot be read.
    """
    if name not in RESULT_NAMES:
        return None
    try:
        return _make(name, folder, outputs)
    except OSError as error:
        where = error.filename or folder / RESULT_NAMES[name]
        raise DataError(f"{RESULT_NAMES[name]} was not made: {where}: {error.strerror or error}") from error


def _make(name: FormatName, folder: Path, outputs: Sequence[PurePosixPath]) -> Path:
    write = _write_archive if name == "voc-submission" else _write_results
    files = sorted({paths(name, output)[0] for output in outputs}, key=str)
    target = folder / RESULT_NAMES[name]
    present = [file for file in files if _is_there(folder / file)]
    while True:
        with open_atomically(target) as file:
            write(file, folder, present)
        # Another shard may have written its last image, and this file without ours, since we looked
        now = [file for file in files if _is_there(folder / file)]
        if now == present:
            return target
        present = now


def _is_there(path: Path) -> bool:
    """Return whether an image has its file; links are not ours. False too where the name is too long for one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _write_archive(file: BinaryIO, folder: Path, files: Sequence[PurePosixPath]) -> None:
    """Write a tar of the masks under their relative names; its bytes depend on names and contents alone."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in files:
            with os.fdopen(open_unlinked(folder / name), "rb") as mask:
                member = tarfile.TarInfo(str(name))
                member.size = os.fstat(mask.fileno()).st_size
                archive.addfile(member, mask)
            archive.getmembers().clear()  # it would keep a kilobyte of each


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
