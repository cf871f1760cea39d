"""Path templates such as `{part}/{id}.png`: from the path of an image to its id, and to the path of its mask."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from string import Formatter

from gmtool.data.samples import files_below, mask_file
from gmtool.errors import ConfigError, DataError
from gmtool.file_kinds import IMAGE_SUFFIXES, MASK_SUFFIXES

PART_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""Folder names that `{part}` matches."""

FIELDS = {
    "id": r"(?P<id>[^/].*)",
    "part": f"(?P<part>{'|'.join(name for names in PART_FOLDERS.values() for name in names)})",
}
ANY_SUFFIX = ".*"


@dataclass(frozen=True)
class ImageName:
    """Id and part of an image, read from its path."""

    id: str
    """Text matched by `{id}`."""
    folder: str | None
    """Folder name matched by `{part}`; None if the template has no `{part}`."""

    def __str__(self) -> str:
        """Return the name that split lists use."""
        return self.id if self.folder is None else f"{self.folder}/{self.id}"


@dataclass(frozen=True)
class Template:
    """Path below the root of a data set that contains `{id}` and optionally `{part}`."""

    text: str
    setting: str
    """Name of the setting, for messages."""

    def __post_init__(self) -> None:
        names = self.fields
        unknown = [name for name in names if name not in FIELDS]
        if unknown:
            raise ConfigError(
                f"{self.setting}={self.text}: unknown field {{{unknown[0]}}}; known: {{id}}, {{part}}"
            )
        if "id" not in names:
            raise ConfigError(f"{self.setting}={self.text}: expected {{id}} in it, the name of an image")
        if not PurePosixPath(self.text).suffix:
            raise ConfigError(f"{self.setting}={self.text}: expected a file suffix such as .png at its end")
        if self.text.startswith("/") or ".." in self.text.split("/"):
            raise ConfigError(f"{self.setting}={self.text}: expected a path below the data set's folder")

    @property
    def fields(self) -> set[str]:
        """Names of the fields, including any format specification in their brackets."""
        try:
            found = [(name, spec or conversion) for _, name, spec, conversion in Formatter().parse(self.text)]
            return {f"{name}:{more}" if more else name for name, more in found if name is not None}
        except ValueError as error:
            raise ConfigError(f"{self.setting}={self.text}: {error}") from error

    @property
    def folder(self) -> PurePosixPath:
        """Folder above the first field: all matching files are in it or below."""
        return PurePosixPath(self.text.partition("{")[0] + "_").parent

    @property
    def suffix(self) -> str:
        """File suffix of the template, in lower case; `.*` matches any image suffix."""
        return PurePosixPath(self.text).suffix.lower()

    def pattern(self, *, is_mask: bool = False) -> re.Pattern[str]:
        """Return the pattern of full paths below the root; the suffix matches in any case.

        The suffix of a mask may be any of `MASK_SUFFIXES`, as `gmtool.data.samples.mask_file` finds it.
        """
        text, seen = "", set()
        for literal, name, _, _ in Formatter().parse(self.text[: -len(self.suffix)]):
            text += re.escape(literal)
            if name is not None:
                text += f"(?P={name})" if name in seen else FIELDS[name]
                seen.add(name)
        any_of = IMAGE_SUFFIXES if self.suffix == ANY_SUFFIX else (self.suffix,)
        suffixes = "|".join(re.escape(suffix) for suffix in (*any_of, *(MASK_SUFFIXES if is_mask else ())))
        return re.compile(f"{text}(?i:{suffixes})", flags=re.DOTALL)

    def path_of(self, name: ImageName) -> str:
        """Return the path, relative to the root, of this image's file."""
        return self.text.format(id=name.id, part=name.folder)


def name_of(match: re.Match[str]) -> ImageName:
    """Return id and part from a match of `Template.pattern`."""
    groups = match.groupdict()
    return ImageName(groups["id"], groups.get("part"))


def check_pair(images: Template, masks: Template) -> None:
    """Check that masks can be found from images.

    Raises:
        ConfigError: The mask template has a field that the image template lacks, or both are equal.
    """
    if masks.text.endswith(ANY_SUFFIX):
        raise ConfigError(f"{masks.setting}={masks.text}: {ANY_SUFFIX} is for images; masks have one suffix: .png")
    if masks.fields - images.fields:
        raise ConfigError(f"{masks.setting}={masks.text} has {{part}}, but {images.setting}={images.text} has not")
    if masks.text == images.text:
        raise ConfigError(f"{images.setting} and {masks.setting} are both {images.text}; expected different paths")


def match_images(root: Path, images: Template, masks: Template) -> dict[Path, ImageName]:
    """Return images below `root` that match the template, with their names; masks in the same folders are skipped.

    Raises:
        DataError: Two images differ only in their suffix.
    """
    image_pattern, mask_pattern = images.pattern(), masks.pattern(is_mask=True)
    # A mask template such as {id}.png also matches images named {id}_image.png: then masks are found from images
    distinct = not mask_pattern.fullmatch(images.path_of(ImageName("x", "train")).replace(".*", ".png"))
    found: dict[Path, ImageName] = {}
    by_name: dict[str, Path] = {}
    for inside in files_below(root / images.folder, (*IMAGE_SUFFIXES, images.suffix)):
        path = root / images.folder / inside
        relative = (images.folder / PurePath(inside).as_posix()).as_posix()
        match = image_pattern.fullmatch(relative)
        if match is None or (distinct and mask_pattern.fullmatch(relative)):
            continue
        found[path] = name_of(match)
    if not distinct:
        mask_paths = {mask_file(root / masks.path_of(name)) for name in found.values()}
        found = {path: name for path, name in found.items() if path not in mask_paths}
    for path, name in found.items():
        if str(name) in by_name:
            raise DataError(f"{by_name[str(name)]} and {path} differ only in their suffix: keep one")
        by_name[str(name)] = path
    return found
