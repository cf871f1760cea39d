"""The third stage: from the labels of one image to its files, each whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gmtool.classes import ClassSet
from gmtool.files import sha256_of_file, write_atomically
from gmtool_serving.decoding import Failure
from gmtool_serving.formats import FormatName, MaskItem, encode

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class OutputFile:
    """A file that was written."""

    path: str
    """Relative to the output folder, with forward slashes."""
    bytes: int
    sha256: str

    def is_whole(self, out: Path) -> bool:
        """Return whether the file is still what was written."""
        path = out / self.path
        try:
            return path.stat().st_size == self.bytes and sha256_of_file(path) == self.sha256
        except OSError:
            return False


def write_outputs(
    item: MaskItem, classes: ClassSet, *, out: Path, folders: Mapping[FormatName, Path]
) -> tuple[OutputFile, ...] | Failure:
    """Encode and write the files of one image in each format.

    Args:
        item: The image's labels.
        classes: Those of the model.
        out: The output folder.
        folders: Folder of each format, inside `out`.
    """
    written = []
    for name, folder in folders.items():
        for relative, content in encode(name, item, classes):
            path = folder / relative
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, content)
            except OSError as error:
                reason = error.strerror or str(error)
                code = "disk_full" if error.errno in DISK_FULL else "cannot_write"
                return Failure(code, f"{path}: cannot be written: {reason}")
            digest = hashlib.sha256(content).hexdigest()
            written.append(OutputFile(path.relative_to(out).as_posix(), len(content), digest))
    return tuple(written)
