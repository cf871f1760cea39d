"""What is made once at the end of a run from the files of its images: VOC's archive and COCO's results."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from gmtool.files import open_atomically
from gmtool_serving.coco_results import EMPTY, entries_of
from gmtool_serving.formats import FormatName, paths

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
        DataError: The COCO results of an image are damaged.
    """
    if name not in RESULT_NAMES:
        return None
    write = _write_archive if name == "voc-submission" else _write_results
    files = sorted({paths(name, output)[0] for output in outputs}, key=str)
    target = folder / RESULT_NAMES[name]
    present = [file for file in files if (folder / file).is_file()]
    while True:
        with open_atomically(target) as file:
            write(file, folder, present)
        # Another shard may have written its last image, and this file without ours, since we looked
        now = [file for file in files if (folder / file).is_file()]
        if now == present:
            return target
        present = now


def _write_archive(file: BinaryIO, folder: Path, files: Sequence[PurePosixPath]) -> None:
    """Write a tar of the masks under their relative names; its bytes depend on names and contents alone."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in files:
            with (folder / name).open("rb") as mask:
                member = tarfile.TarInfo(str(name))
                member.size = (folder / name).stat().st_size
                archive.addfile(member, mask)
            archive.getmembers().clear()  # it would keep a kilobyte of each


def _write_results(file: BinaryIO, folder: Path, files: Sequence[PurePosixPath]) -> None:
    """Write the entries of all images as one JSON list, an entry a line."""
    separator = b"[\n"
    for name in files:
        for line in entries_of((folder / name).read_bytes(), where=folder / name):
            file.write(separator + line)
            separator = b",\n"
    file.write(b"\n]\n" if separator == b",\n" else EMPTY)
