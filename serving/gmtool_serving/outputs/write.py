"""Write the masks of one image in each format, each file whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gmtool.classes import ClassSet
from gmtool.files import open_unlinked, write_atomically
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.outputs.formats import FormatName, MaskItem, encode

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
        try:
            with os.fdopen(open_unlinked(out / self.path), "rb") as file:
                is_as_long = os.fstat(file.fileno()).st_size == self.bytes
                return is_as_long and hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            return False


class MaskFolders:
    """Makes the folders of masks, and checks each once in a run.

    Args:
        out: The output folder.
        formats: Folder of each format, inside `out`.
    """

    def __init__(self, out: Path, formats: Mapping[FormatName, Path]) -> None:
        self.out, self.formats = out, formats
        self._checked = {out}

    def make(self, folder: Path) -> None:
        """Make a folder, and those it lies in.

        Raises:
            OSError: It cannot be made, or a part of its path below the output folder is a link: a mask would be
                written elsewhere.
        """
        if folder in self._checked:
            return
        for below in reversed([folder, *folder.parents]):
            if below in self._checked or not below.is_relative_to(self.out):
                continue
            below.mkdir(exist_ok=True)
            if below.is_symlink():
                raise OSError(errno.ELOOP, f"{below} is a link: remove it")
            self._checked.add(below)


def write_outputs(item: MaskItem, classes: ClassSet, folders: MaskFolders) -> tuple[OutputFile, ...] | Failure:
    """Encode and write the files of one image in each format."""
    written = []
    for name, folder in folders.formats.items():
        for relative, content in encode(name, item, classes):
            path = folder / relative
            try:
                folders.make(path.parent)
                write_atomically(path, content)
            except OSError as error:
                reason = error.strerror or str(error)
                code = "disk_full" if error.errno in DISK_FULL else "cannot_write"
                return Failure(code, f"{path}: cannot be written: {reason}")
            digest = hashlib.sha256(content).hexdigest()
            written.append(OutputFile(path.relative_to(folders.out).as_posix(), len(content), digest))
    return tuple(written)
