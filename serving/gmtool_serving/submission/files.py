"""Masks of a submission, in a folder or an archive."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from gmtool.errors import DataError


@dataclass(frozen=True)
class SubmittedFile:
    """PNG file of a submission, read on demand; files of an archive one at a time, in order."""

    name: PurePosixPath
    """Path below the folder or in the archive."""
    read: Callable[[], bytes]
    """Returns the content. Raises OSError, or errors of damaged archives."""


@contextmanager
def open_submission(source: Path) -> Iterator[list[SubmittedFile]]:
    """Yield the PNG files below a folder, or in a tar (compressed or not) or zip archive, without hidden ones.

    Raises:
        DataError: The folder or archive is missing or damaged, or contains no PNG file.
    """
    try:
        if source.is_dir():
            yield _some(_in_folder(source), source)
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                files = [
                    SubmittedFile(PurePosixPath(name), partial(archive.read, name)) for name in archive.namelist()
                ]
                yield _some(files, source)
        elif source.is_file():
            with tarfile.open(source) as tar:
                members = [member for member in tar if member.isfile()]
                yield _some([_tar_member(tar, member) for member in members], source)
        else:
            raise DataError(f"{source}: no such folder or archive")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{source}: neither a folder nor a whole tar or zip archive: {error}") from error


def _in_folder(source: Path) -> list[SubmittedFile]:
    files = []
    for parent, _, names in os.walk(source):
        for name in names:
            path = Path(parent) / name
            files.append(SubmittedFile(PurePosixPath(path.relative_to(source)), path.read_bytes))
    return files


def _tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> SubmittedFile:
    def read() -> bytes:
        file = archive.extractfile(member)
        assert file is not None  # a regular file
        return file.read()

    return SubmittedFile(PurePosixPath(os.path.normpath(member.name)), read)  # without a leading ./


def _some(files: list[SubmittedFile], source: Path) -> list[SubmittedFile]:
    masks = [file for file in files if file.name.suffix == ".png" and not file.name.name.startswith(".")]
    if not masks:
        raise DataError(f"{source}: no mask (*.png) in it")
    return sorted(masks, key=lambda file: file.name) if source.is_dir() else masks
