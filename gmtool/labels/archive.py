"""Unpack the archive that a labeling tool exported, for the time of an import."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path

from gmtool.errors import DataError
from gmtool.files import sweep_leftovers, temporary_path

ZIPS, TARS, OTHERS = (".zip",), (".tar", ".gz", ".tgz"), (".7z", ".rar")
OWN_FOLDERS = {"train", "valid", "val", "test", "images", "masks", "labels", "annotations", "ann", "img"}
"""Folders that mean something to a tool; an only folder of another name is the one that was packed."""
MAX_GROWTH = 200
"""Bytes that a byte of an archive may unpack to: text of annotations comes to fifty."""
SMALL_BYTES = 1 << 30
"""Content that is unpacked whatever the size of the archive."""
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    LZMAError,
    EOFError,
    RuntimeError,  # encrypted, or of a compression that zipfile does not know
    ValueError,
)


def is_archive(path: Path) -> bool:
    """Return whether a file is named like an archive."""
    return path.suffix.lower() in (*ZIPS, *TARS, *OTHERS) and path.is_file()


@contextmanager
def unpacked(archive: Path, *, beside: Path) -> Iterator[Path]:
    """Unpack an archive into a temporary folder, which is removed afterwards.

    Links are not unpacked. Names that lead out of the folder stay inside it (zip), or the archive is refused
    (tar).

    Args:
        archive: Zip or tar file.
        beside: Folder on whose disk the temporary folder lies; it may be missing.

    Raises:
        DataError: The archive is damaged, encrypted, of another kind, or does not fit on the disk.
    """
    parent = next(folder for folder in beside.absolute().parents if folder.is_dir())
    sweep_leftovers(parent)  # of an import that was killed
    folder = temporary_path(parent)
    target = folder / archive.stem
    try:
        _extract(archive, target, parent)
        inside = list(target.iterdir())
        is_wrapped = len(inside) == 1 and inside[0].is_dir() and inside[0].name.lower() not in OWN_FOLDERS
        yield inside[0] if is_wrapped else target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(archive: Path, target: Path, parent: Path) -> None:
    try:
        target.mkdir(parents=True)
        if archive.suffix.lower() in ZIPS:
            with zipfile.ZipFile(archive) as opened:
                _refuse_large(archive, sum(each.file_size for each in opened.infolist()), parent)
                opened.extractall(target)
        elif archive.suffix.lower() in TARS:
            with tarfile.open(archive) as opened_tar:
                members = [each for each in opened_tar if each.isfile()]
                _refuse_large(archive, sum(each.size for each in members), parent)
                opened_tar.extractall(target, members, filter="data")
        else:
            raise DataError(f"{archive} is an archive of another kind than zip and tar: unpack it")
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked: {error.strerror or error}") from error
    except DAMAGED as error:
        raise DataError(f"{archive} is a damaged or encrypted archive: {error}") from error


def _refuse_large(archive: Path, size: int, parent: Path) -> None:
    most = min(shutil.disk_usage(parent).free, max(SMALL_BYTES, MAX_GROWTH * archive.stat().st_size))
    if size > most:
        raise DataError(
            f"{archive} unpacks to {size / 2**30:.1f} GiB, expected at most {most / 2**30:.1f}: unpack it on a "
            "disk with room, and import the folder"
        )
