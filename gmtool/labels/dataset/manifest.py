"""Record of an imported data set: which files are gmtool's, so that a second import updates those alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gmtool.errors import DataError
from gmtool.files import sha256_of_file, write_atomically
from gmtool.json_toml import format_version, read_json, typed

NAME = "import.json"
FORMAT = 1


@dataclass(frozen=True)
class Imported:
    """Image of the data set, by its id such as `train/x`."""

    source: str
    """Name of the image in the tool."""
    image: str
    """Path in the data set."""
    mask: str | None = None
    """Path in the data set; None: not labeled."""
    mask_sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Content of `import.json`."""

    format_version: int = FORMAT
    images: Mapping[str, Imported] = field(default_factory=dict)
    labeled_sha256: str | None = None
    """Hash of labeled.txt as it was written."""
    unlabeled_is: str | None = None


def read_manifest(folder: Path) -> Manifest | None:
    """Return the record of a data set folder; None if the folder is empty or does not exist.

    Raises:
        DataError: The folder has files but no record, or its record is damaged.
    """
    path = folder / NAME
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(
                f"--out {folder} has files, and is no data set that gmtool imported: give an empty or new folder"
            )
        if folder.exists() and not folder.is_dir():
            raise DataError(f"--out {folder} is a file: give a new folder")
        return None
    value = read_json(path, what="the record of an import")
    format_version(value, newest=FORMAT, where=str(path), what="the record of an import")
    found = typed(_ManifestFile, value, where=str(path))
    for name, each in found.images.items():
        for inside in (each.image, each.mask or each.image):
            if Path(inside).is_absolute() or ".." in Path(inside).parts:
                raise DataError(f"{path}: {name}: {inside} is not a path inside the data set")
    return Manifest(FORMAT, found.images, found.labeled_sha256, found.unlabeled_is)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the record of a data set."""
    value = asdict(manifest)
    write_atomically(folder / NAME, json.dumps(value, indent=0, sort_keys=True) + "\n")


def is_unchanged(path: Path, sha256: str | None) -> bool:
    """Return whether a file has the content that was recorded."""
    return sha256 is not None and path.is_file() and sha256_of_file(path) == sha256


@dataclass(frozen=True)
class _ManifestFile:
    format_version: int
    images: dict[str, Imported]
    labeled_sha256: str | None = None
    unlabeled_is: str | None = None
