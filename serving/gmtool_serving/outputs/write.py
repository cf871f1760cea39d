"""Encode the masks of an image in each format and write their files, each whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gmtool.classes import ClassSet
from gmtool.files import open_unlinked, write_together
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.outputs.formats import FormatName, MaskItem, encode, format_dirs

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class OutputFile:
    """Path, size and hash of a written mask file."""

    path: str
    """Relative to the output folder, with forward slashes."""
    bytes: int
    sha256: str

    def is_whole(self, out: Path) -> bool:
        """Return whether the file still has its size and hash."""
        try:
            with os.fdopen(open_unlinked(out / self.path), "rb") as file:
                is_as_long = os.fstat(file.fileno()).st_size == self.bytes
                return is_as_long and hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            return False


class MaskStore(Protocol):
    """Destination of mask files: a local folder or an object store."""

    def locate(self, path: str) -> str:
        """Return the full name of a file, for messages; `path` is relative, with forward slashes."""
        ...

    def write(self, files: Sequence[tuple[str, bytes]]) -> list[OSError | None]:
        """Write files, path and content, each whole or not at all; return the error of each, or None."""
        ...


class MaskFolders:
    """Local output folder: makes the folders below it, and checks each once in a run.

    Args:
        out: The output folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._prefix = os.path.join(out, "")  # noqa: PTH118
        self._checked = {str(out)}

    def locate(self, path: str) -> str:
        """Return the file's path, for messages."""
        return str(self.out / path)

    def write(self, files: Sequence[tuple[str, bytes]]) -> list[OSError | None]:
        """Write files as `write_together` does, and make their folders; return the error of each, or None."""
        errors: list[OSError | None] = [None] * len(files)
        targets = [(self._prefix + path, content) for path, content in files]  # `Path` takes ten times as long
        for index, (target, _) in enumerate(targets):
            folder = os.path.dirname(target)  # noqa: PTH120
            if folder in self._checked:
                continue
            try:
                self.make(Path(folder))
            except OSError as error:
                errors[index] = error
        placed = [index for index, found in enumerate(errors) if found is None]
        for index, failed in zip(placed, write_together([targets[index] for index in placed]), strict=True):
            errors[index] = failed
        return errors

    def make(self, folder: Path) -> None:
        """Create a folder and its parents inside the output folder.

        Raises:
            OSError: It cannot be created, or a part of its path below the output folder is a link: a mask would be
                written elsewhere.
        """
        for below in reversed([folder, *folder.parents]):
            if str(below) in self._checked or not below.is_relative_to(self.out):
                continue
            below.mkdir(exist_ok=True)
            if below.is_symlink():
                raise OSError(errno.ELOOP, f"{below} is a link: remove it")
            self._checked.add(str(below))


def write_outputs(
    items: Sequence[MaskItem], classes: ClassSet, formats: Sequence[FormatName], store: MaskStore
) -> list[tuple[OutputFile, ...] | Failure]:
    """Encode the masks of images in each format and write their files together.

    Returns:
        Files of each image, or its first failure.
    """
    dirs = {name: folder.as_posix() for name, folder in format_dirs(Path(), formats).items()}
    places = {name: (store.locate(folder), "" if folder == "." else f"{folder}/") for name, folder in dirs.items()}
    files, owners = [], []
    for number, item in enumerate(items):
        for name, (place, prefix) in places.items():
            for relative, content in encode(name, item, classes, folder=place):
                files.append((f"{prefix}{relative}", content))
                owners.append(number)
    written: list[list[OutputFile]] = [[] for _ in items]
    failures: dict[int, Failure] = {}
    for (path, content), owner, error in zip(files, owners, store.write(files), strict=True):
        if error is not None:
            failures.setdefault(owner, _failure(store.locate(path), error))
        written[owner].append(OutputFile(path, len(content), hashlib.sha256(content).hexdigest()))
    return [failures.get(number) or tuple(of_image) for number, of_image in enumerate(written)]


def _failure(path: str, error: OSError) -> Failure:
    reason = error.strerror or str(error)
    code = "disk_full" if error.errno in DISK_FULL else "cannot_write"
    remedy = ": give the image a shorter name" if error.errno == errno.ENAMETOOLONG else ""
    return Failure(code, f"{path}: cannot be written: {reason}{remedy}")
