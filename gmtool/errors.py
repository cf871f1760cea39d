"""Errors that a user can cause: messages of one line with place, value, expectation and remedy."""

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
    """Expected failure; the command line prints its message as one line and exits with `exit_code`."""

    exit_code = 1
    code = "failed"
    """Kind of failure in manifests, independent of the message."""


class ConfigError(GmtoolError):
    """Setting that is unknown, has a wrong value or contradicts another."""


class UsageError(ConfigError):
    """An option or argument with a bad value, or two that contradict each other."""

    exit_code = 2


class DataError(GmtoolError):
    """Unusable image, mask, list or data set folder."""


class ImageError(DataError):
    """Unusable image file; `code` is the kind of failure."""

    def __init__(self, code: ImageErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ImageErrorCode = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[ImageErrorCode, str]]:
        """Support pickling: the default would pass only the message to the constructor."""
        return type(self), (self.code, str(self))


class ColorMaskError(DataError):
    """Colour-coded mask instead of one channel of labels."""


class RawIdError(DataError):
    """Mask of raw ids instead of class indices."""


class LabelError(DataError):
    """Mask with a label, colour or category outside the classes."""


class MaskSizeError(DataError):
    """Mask and image of different sizes."""


class CheckpointError(GmtoolError):
    """Missing or damaged weights, or weights of another network."""


class ArtifactError(GmtoolError):
    """Exported model that is damaged, changed, or not made by gmtool."""


class ParityError(GmtoolError):
    """Exported model whose masks differ from those of its network."""


class BackendError(GmtoolError):
    """Runtime that is unavailable or failed."""

    code = "backend_failed"


class BackendMemoryError(BackendError):
    """Runtime out of memory; a smaller batch may fit."""

    code = "out_of_memory"


class NonFiniteError(BackendError):
    """NaN or infinite scores, from which no mask can be made."""

    code = "non_finite"


class UnknownLabelError(BackendError):
    """Predicted mask with a label outside the model's classes."""

    code = "unknown_label"


class ImageTooLargeError(BackendError):
    """Image too large even for a batch of one."""

    code = "too_large"


class MissingExtraError(GmtoolError):
    """Optional packages of a command are not installed."""


class TemporaryFolderError(GmtoolError):
    """No folder for temporary files can be written."""


class TerminatedError(GmtoolError):
    """SIGTERM received; the state is saved."""

    exit_code = 143


class InterruptedTrainingError(TerminatedError):
    """Ctrl-C during training; the state is saved."""

    exit_code = 130


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
    """Summary of many messages: one line a kind with the first message, the count and three names.

    Messages of one kind differ only in file name and numbers.
    """

    MAX_KINDS = 20
    """Number of kinds with a line; messages of further kinds are only counted."""

    def __init__(self, messages: Iterable[tuple[str, str]] = ()) -> None:
        self._kinds: dict[str, tuple[str, list[str]]] = {}
        self._counts: Counter[str] = Counter()
        self.left_out = 0
        """Number of messages of further kinds."""
        for name, message in messages:
            self.add(name, message)

    def add(self, name: str, message: str) -> None:
        """Add a message about the image or file `name`."""
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
        """Return whether some names are missing in the lines."""
        return self.left_out > 0 or any(count > 3 for count in self._counts.values())

    def lines(self) -> list[str]:
        """Return one line a kind, and one with the number of other messages."""
        lines = []
        for kind, (message, names) in self._kinds.items():
            count = self._counts[kind]
            more = f" and {count - len(names)} more" if count > len(names) else ""
            lines.append(f"{message} ({count} such: {', '.join(names)}{more})" if count > 1 else message)
        return [*lines, f"{self.left_out} of other kinds"] if self.left_out else lines


def _without_name(message: str, name: str) -> str:
    """Return a message without paths that end in `name` (with any suffix) and without numbers."""
    stem = PurePath(name).stem
    if stem:
        message = re.sub(rf"(?<!\S)(\S*/)?{re.escape(stem)}(?=[.:_\s]|$)[^\s:]*", "", message)
    return re.sub(r"\d+", "0", message)


@contextmanager
def needs_extra(extra: str, doing: str) -> Iterator[None]:
    """Turn a failed import into an error that names the extra to install.

    Args:
        extra: Extra that installs the packages.
        doing: The task, for example "exporting".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("gmtool"):  # a bug of ours, not a missing extra
            raise
        raise MissingExtraError(
            f'{doing} needs {error.name}, which is not installed: pip install "gmtool[{extra}]"'
        ) from error
