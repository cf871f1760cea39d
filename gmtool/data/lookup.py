"""Images of a layout by the names that split lists use: ids, paths, masks, and other Unicode forms of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import product
from pathlib import Path, PurePosixPath

from gmtool.data.splits import SplitEntry
from gmtool.errors import DataError


class ImageLookup:
    """Images of a data set by name.

    Args:
        root: Folder of the data set.
        image_dir: Folder of all images.
        images: Image path by each of its names.
        folders: Leading folders that names may omit.
        masks: Returns the image by the path of its mask.
    """

    def __init__(
        self,
        root: Path,
        image_dir: Path,
        images: Mapping[str, Path],
        folders: Sequence[str],
        masks: Callable[[], Mapping[Path, Path]],
    ) -> None:
        self._root, self._image_dir, self._images, self._folders = root, image_dir, images, folders
        self._masks = masks

    def find_all(self, entries: Sequence[SplitEntry], *, where: str) -> list[Path]:
        """Return the image of each entry.

        Args:
            entries: Entries of a split list.
            where: The list, for messages.

        Raises:
            DataError: An entry matches no image or several, or its image file does not exist.
        """
        found = [self._find(entry, where=where) for entry in entries]
        missing = [entry for entry, path in zip(entries, found, strict=True) if path is None]
        if missing:
            first = missing[0]
            place = f"{where}:{first.line}" if first.line else where
            more = f" ({len(missing)} of its {len(entries)} names are missing)" if len(missing) > 1 else ""
            close = self._closest(first.name)
            hint = f"; the closest is {close}" if close else ""
            raise DataError(f"{place}: no image {first.image or first.name} below {self._image_dir}{more}{hint}")
        return [path for path in found if path is not None]

    def _find(self, entry: SplitEntry, *, where: str) -> Path | None:
        if entry.image is not None and (path := path_in(self._root, entry.image)) is not None:
            return self._as_image(path)
        names = [entry.name, *(f"{folder}/{entry.name}" for folder in self._folders)]
        found = [self._images[name] for name in names if name in self._images]
        if not found and not all(name.isascii() for name in names):
            composed = self._composed
            found = [path for name in names if (path := composed.get(_composed(name))) is not None]
        if len(found) > 1:
            raise DataError(f"{where}: {entry.name} matches {found[0]} and {found[1]}: give its path")
        if found and not found[0].is_file():  # annotations may list missing files
            raise DataError(f"{where}: image {found[0]} does not exist")
        return found[0] if found else None

    def _as_image(self, path: Path) -> Path:
        """Return the image that a path names: the file itself, or the image of a mask."""
        return path if path in self._by_path else self._image_of_mask.get(path, path)

    @cached_property
    def _by_path(self) -> frozenset[Path]:
        return frozenset(self._images.values())

    @cached_property
    def _image_of_mask(self) -> Mapping[Path, Path]:
        return self._masks()

    @cached_property
    def _composed(self) -> dict[str, Path]:
        return {_composed(name): path for name, path in self._images.items()}

    def _closest(self, name: str) -> str | None:
        """Return the name of the image that is most alike; case and leading folders do not matter."""
        wanted = PurePosixPath(name).name.lower()
        by_end: dict[str, str] = {}
        for each in self._images:
            by_end.setdefault(PurePosixPath(each).name.lower(), each)
        close = [wanted] if wanted in by_end else get_close_matches(wanted, by_end, n=1, cutoff=0.5)
        return by_end[close[0]] if close else None


def path_in(root: Path, text: str) -> Path | None:
    """Return the file below `root` that a list names; None if there is none.

    The path may be relative to the root or to the working directory, or absolute without its leading `/`.
    """
    # File systems keep composed and decomposed accents apart
    forms = (text,) if text.isascii() else (text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")))
    for form in forms:
        if (path := root / form).is_file():
            return path
    for base, form in product((Path.cwd(), Path("/")), forms):
        if (path := base / form).is_file():
            # First as written: images may be links to elsewhere
            for inside, of in ((path.absolute(), root.absolute()), (path.resolve(), root.resolve())):
                if inside.is_relative_to(of):
                    return root / inside.relative_to(of)
    return None


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
