"""Path templates such as `{part}/{id}.png`: which image a file is, and where the mask of an image lies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from string import Formatter

from gmtool.errors import ConfigError
from gmtool.file_kinds import IMAGE_SUFFIXES, MASK_SUFFIXES

PART_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""What `{part}` may be called on disk."""

FIELDS = {
    "id": r"(?P<id>[^/].*)",
    "part": f"(?P<part>{'|'.join(name for names in PART_FOLDERS.values() for name in names)})",
}
ANY_SUFFIX = ".*"


@dataclass(frozen=True)
class ImageName:
    """What the path of an image says about it."""

    id: str
    """What `{id}` stands for."""
    folder: str | None
    """What `{part}` stands for, or None where the template has none."""

    def __str__(self) -> str:
        """Return the name that split lists use."""
        return self.id if self.folder is None else f"{self.folder}/{self.id}"


@dataclass(frozen=True)
class Template:
    """A path below the root of a data set, with `{id}` and perhaps `{part}` in it."""

    text: str
    setting: str
    """Where it was set, for messages."""

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
        """Names of the fields in it, with whatever else stands in their brackets."""
        try:
            found = [(name, spec or conversion) for _, name, spec, conversion in Formatter().parse(self.text)]
            return {f"{name}:{more}" if more else name for name, more in found if name is not None}
        except ValueError as error:
            raise ConfigError(f"{self.setting}={self.text}: {error}") from error

    @property
    def folder(self) -> PurePosixPath:
        """The folder that all such files lie in or below."""
        return PurePosixPath(self.text.partition("{")[0] + "_").parent

    @property
    def suffix(self) -> str:
        """The file suffix at its end, in lower case; `.*` for any."""
        return PurePosixPath(self.text).suffix.lower()

    def pattern(self, *, is_mask: bool = False) -> re.Pattern[str]:
        """Return what a path below the root must match in full; the suffix in any case.

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
        """Return the path of the file of this image."""
        return self.text.format(id=name.id, part=name.folder)


def name_of(match: re.Match[str]) -> ImageName:
    """Return what a match of `Template.pattern` says."""
    groups = match.groupdict()
    return ImageName(groups["id"], groups.get("part"))


def check_pair(images: Template, masks: Template) -> None:
    """Check that masks can be found from images.

    Raises:
        ConfigError: The mask template needs what images do not have, or both mean the same files.
    """
    if masks.text.endswith(ANY_SUFFIX):
        raise ConfigError(f"{masks.setting}={masks.text}: {ANY_SUFFIX} is for images; masks have one suffix: .png")
    if masks.fields - images.fields:
        raise ConfigError(f"{masks.setting}={masks.text} has {{part}}, but {images.setting}={images.text} has not")
    if masks.text == images.text:
        raise ConfigError(
            f"{images.setting} and {masks.setting} are both {images.text}: which files are the masks?"
        )
