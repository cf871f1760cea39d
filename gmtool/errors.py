"""Errors that a user can cause: one line that says where, what was got, what was expected, what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import PurePath
from typing import Literal

ImageErrorCode = Literal[
    "unreadable", "not_a_file", "not_an_image", "truncated", "damaged", "too_large", "unsupported"
]


class GmtoolError(Exception):
    """An expected failure. The command line prints its message as one line and exits with `exit_code`."""

    exit_code = 1
    code = "failed"
    """What programs that read a manifest tell apart, whatever the message says."""


class ConfigError(GmtoolError):
    """A setting that does not exist, has a wrong value or contradicts another."""


class UsageError(ConfigError):
    """An option or argument with a bad value, or two that contradict each other."""

    exit_code = 2


class DataError(GmtoolError):
    """An image, a mask, a list or a data set folder that cannot be used."""


class ImageError(DataError):
    """An image file that cannot be used; `code` says which kind of trouble it is."""

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ImageErrorCode = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[ImageErrorCode, str]]:
        """Let it pass from one process to another: else it would be made again from its message alone."""
        return type(self), (self.code, str(self))


class ColorMaskError(DataError):
    """A colour-coded mask where one channel of labels was expected."""


class RawIdError(DataError):
    """A mask of raw ids where class indices were expected."""


class LabelError(DataError):
    """A mask with a label, a colour or a category that is none of the classes."""


class MaskSizeError(DataError):
    """A mask that is not as large as its image."""


class CheckpointError(GmtoolError):
    """Weights that are missing, damaged or made for another network."""


class ArtifactError(GmtoolError):
    """An exported model that is damaged, foreign or not what it says it is."""


class ParityError(GmtoolError):
    """An exported model that does not give the masks of the network it came from."""


class BackendError(GmtoolError):
    """A runtime that is not there, or did not give what was asked of it."""

    code = "backend_failed"


class BackendMemoryError(BackendError):
    """A runtime that ran out of memory; fewer images at once may fit."""

    code = "out_of_memory"


class NonFiniteError(BackendError):
    """Scores that are NaN or infinite: any mask of them would be made up."""

    code = "non_finite"


class UnknownLabelError(BackendError):
    """A mask with a label that none of the model's classes has."""

    code = "unknown_label"


class ImageTooLargeError(BackendError):
    """An image that no batch is small enough for."""

    code = "too_large"


class MissingExtraError(GmtoolError):
    """A command whose optional packages are not installed."""


class TemporaryFolderError(GmtoolError):
    """No folder for temporary files can be written."""


class TerminatedError(GmtoolError):
    """The process was asked to end (SIGTERM) and has saved what it had."""

    exit_code = 143


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean X?"` for the closest known word, else `"; known: A, B, C"`."""
    names = list(known)
    close = get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(names)}"


def some_names(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names and the number of the others: `a, b, c and 14 more`."""
    shown = ", ".join(names[:limit])
    left_out = len(names) - limit
    return f"{shown} and {left_out} more" if left_out > 0 else shown


class MessageKinds:
    """Messages by the thousand as one line a kind: the first of each, how many there are, three names.

    Messages are of one kind if they differ only in the name of their file and in numbers.
    """

    MAX_KINDS = 20
    """Messages of further kinds are counted alone."""

    def __init__(self, messages: Iterable[tuple[str, str]] = ()) -> None:
        self._kinds: dict[str, tuple[str, list[str]]] = {}
        self._counts: Counter[str] = Counter()
        self.left_out = 0
        """Messages of further kinds."""
        for name, message in messages:
            self.add(name, message)

    def add(self, name: str, message: str) -> None:
        """Note a message about the image or file of this name."""
        kind = _without_name(message, name)
        if kind not in self._kinds and len(self._kinds) == self.MAX_KINDS:
            self.left_out += 1
            return
        _, names = self._kinds.setdefault(kind, (message, []))
        self._counts[kind] += 1
        if len(names) < 3:
            names.append(name)

    @property
    def is_cut(self) -> bool:
        """Return whether a name is in none of the lines."""
        return self.left_out > 0 or any(count > 3 for count in self._counts.values())

    def lines(self) -> list[str]:
        """Return a line for each kind, and one for what was left out."""
        lines = []
        for kind, (message, names) in self._kinds.items():
            count = self._counts[kind]
            more = f" and {count - len(names)} more" if count > len(names) else ""
            lines.append(f"{message} ({count} such: {', '.join(names)}{more})" if count > 1 else message)
        return [*lines, f"{self.left_out} of other kinds"] if self.left_out else lines


def _without_name(message: str, name: str) -> str:
    """Return a message without the paths that end in a name, whatever their suffix, and without numbers."""
    stem = PurePath(name).stem
    if stem:
        message = re.sub(rf"(?<!\S)(\S*/)?{re.escape(stem)}(?=[.:_\s]|$)[^\s:]*", "", message)
    return re.sub(r"\d+", "0", message)


@contextmanager
def needs_extra(extra: str, doing: str) -> Iterator[None]:
    """Turn a failed import into the line that says what to install.

    Args:
        extra: Name of the extra that brings the packages.
        doing: What the user was about to do, for example "exporting".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("gmtool"):  # a bug of ours, not a missing extra
            raise
        raise MissingExtraError(
            f'{doing} needs {error.name}, which is not installed: pip install "gmtool[{extra}]"'
        ) from error
