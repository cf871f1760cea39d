"""Find the image files that labeling tools name by relative, absolute, Windows and web paths."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.folders import below
from gmtool.labels.shapes import PartName

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""
PART_WORDS: dict[str, PartName] = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
"""Part of a data set by the name of its folder or list."""


class ImageFinder:
    """Index of the images below some folders. No path outside them is ever opened.

    Args:
        roots: The source, and the folder of images that the user named.
        excluded: Files that are no images, such as masks.
        without: Folder below a root that is not searched, such as that of the data set.
    """

    def __init__(
        self, roots: Sequence[Path], *, excluded: Collection[Path] = (), without: Path | None = None
    ) -> None:
        self.roots = tuple(roots)
        self.without = without
        self._excluded = frozenset(excluded)
        self._by_name: dict[str, list[tuple[Path, str]]] | None = None

    def find(self, name: str, *, near: Path) -> Path | None:
        """Return the image that a tool calls `name`; None if no image or several fit.

        First the path from `near`, then the only image, of all below the roots, whose path agrees with `name` in
        the most last parts, at least in the file name.

        Args:
            name: Path or web address, with slashes or backslashes.
            near: Folder of the file that names it.
        """
        name = plain_name(name)
        direct = Path(os.path.normpath(near / name))
        if any(direct.is_relative_to(os.path.normpath(root)) for root in self.roots) and direct.is_file():
            return direct
        parts = [_key(part) for part in name.split("/")]
        found = self._index().get(parts[-1], [])
        if not found and UPLOAD_PREFIX.match(parts[-1]):
            parts[-1] = parts[-1][9:]
            found = self._index().get(parts[-1], [])
        return _closest(found, parts)

    def find_stem(self, stem: str, *, near: Path) -> Path | None:
        """Return the image whose path without suffix ends in `stem`; None if no image or several fit."""
        for suffix in (case for known in IMAGE_SUFFIXES for case in (known, known.upper())):
            direct = near / f"{stem}{suffix}"
            if direct.is_file() and direct not in self._excluded:
                return direct
        parts = [_key(part) for part in plain_name(stem).split("/")]
        found = [each for suffix in IMAGE_SUFFIXES for each in self._index().get(parts[-1] + suffix, [])]
        parts[-1] = ""
        return _closest([(path, key.rpartition("/")[0] + "/") for path, key in found], parts)

    def all(self) -> list[Path]:
        """Return all images below the roots."""
        return [path for listed in self._index().values() for path, _ in listed]

    def relative(self, path: Path) -> str:
        """Return the path of an image below its root, with forward slashes."""
        root = next((root for root in self.roots if path.is_relative_to(root)), path.parent)
        return path.relative_to(root).as_posix()

    def _index(self) -> dict[str, list[tuple[Path, str]]]:
        if self._by_name is None:
            self._by_name = defaultdict(list)
            seen: set[Path] = set()
            for root in self.roots:
                for relative in below(root, suffixes=IMAGE_SUFFIXES, excluded=self.without):
                    path, key = root / relative, _key(relative.replace(os.sep, "/"))
                    if path not in seen and path not in self._excluded:
                        self._by_name[key.rpartition("/")[2]].append((path, key))
                        seen.add(path)
        return self._by_name


def plain_name(name: str) -> str:
    """Return a path with forward slashes from a Windows path or a web address."""
    if re.match(r"^[a-z][a-z0-9+.-]+://", name, flags=re.IGNORECASE):
        name = unquote(urlsplit(name).path)
    elif "?" in name:  # /data/local-files/?d=folder/x.jpg of Label Studio
        address = urlsplit(name)
        name = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    name = name.replace("\\", "/")
    return re.sub(r"^[A-Za-z]:/", "/", name).replace("\0", "").lstrip("/")


def part_of(text: str) -> PartName | None:
    """Return the part that a folder or list name stands for: `valid`, `instances_train2017`, `test-1`."""
    words = re.findall(r"[a-z]+", text.lower())
    return next((PART_WORDS[word] for word in words if word in PART_WORDS), None)


def _closest(found: list[tuple[Path, str]], parts: list[str]) -> Path | None:
    """Return the path that shares the most last parts; None if two share as many."""
    ranked = [(_shared(key.split("/"), parts), path) for path, key in found]
    best = max((count for count, _ in ranked), default=0)
    top = [path for count, path in ranked if count == best]
    return top[0] if len(top) == 1 else None


def _shared(parts: list[str], others: list[str]) -> int:
    count = 0
    for one, other in zip(reversed(parts), reversed(others), strict=False):
        if one != other:
            break
        count += 1
    return count


def _key(text: str) -> str:
    """Return a name without case and with composed accents: macOS stores them apart."""
    return unicodedata.normalize("NFC", text).casefold()
