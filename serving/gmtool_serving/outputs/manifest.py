"""Manifest of a prediction run: JSON lines, one for each input and a summary."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, get_args

from gmtool.files import open_atomically, open_unlinked
from gmtool_serving.outputs.formats import FORMAT_NAMES, FormatName
from gmtool_serving.outputs.write import OutputFile

Status = Literal["ok", "failed", "skipped"]

SYNC_EVERY_S = 1.0
"""Lines reach the operating system at once, and the disk at this interval."""
MAX_LINE_BYTES = 1 << 20
"""Longer lines are not records: the longest paths in all formats are a quarter of it."""


@dataclass(frozen=True)
class Conditions:
    """Model, formats and options of a run: all that masks depend on beside their images."""

    model_sha256: str
    formats: tuple[FormatName, ...]
    options: Mapping[str, Any]
    """EXIF orientation, bits, padding, tiles."""


@dataclass(frozen=True)
class Record:
    """Manifest line of one input."""

    path: str
    """Path as given; bytes that are not UTF-8 are surrogate escapes."""
    frame: int | None
    output: str
    """`InputImage.output`: the input's name in a run."""
    sha256: str | None
    """Hash of the input's bytes; None if they could not be read."""
    status: Status
    """`skipped`: completed by an earlier run."""
    code: str | None
    """Error code of a failure; see docs/prediction.md."""
    error: str | None
    warning: str | None
    outputs: tuple[OutputFile, ...]
    conditions: Conditions

    def to_line(self) -> bytes:
        """Return the record as a line of ASCII."""
        value = {**vars(self), "outputs": [vars(file) for file in self.outputs], **vars(self.conditions)}
        del value["conditions"]  # `asdict` copies deeply, which costs more than the rest
        return json.dumps(value).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Record | None:
        """Return the record of a line; None for a summary and for an invalid line."""
        try:
            value = json.loads(line)
            outputs = tuple(OutputFile(**entry) for entry in value.pop("outputs"))
            conditions = Conditions(value.pop("model_sha256"), tuple(value.pop("formats")), value.pop("options"))
            record = cls(**value, outputs=outputs, conditions=conditions)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return record if record._has_valid_types() else None

    def _has_valid_types(self) -> bool:
        """Return whether all fields have their types and all files lie inside the output folder."""
        texts = (self.sha256, self.code, self.error, self.warning)
        return (
            isinstance(self.path, str)
            and (self.frame is None or type(self.frame) is int)
            and isinstance(self.output, str)
            and all(text is None or isinstance(text, str) for text in texts)
            and self.status in get_args(Status)
            and all(map(_is_valid_file, self.outputs))
            and isinstance(self.conditions.model_sha256, str)
            and all(name in FORMAT_NAMES for name in self.conditions.formats)
            and isinstance(self.conditions.options, dict)
        )


def _is_valid_file(file: OutputFile) -> bool:
    if not (isinstance(file.path, str) and type(file.bytes) is int and isinstance(file.sha256, str)):
        return False
    path = PurePosixPath(file.path)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in file.path


class Manifest:
    """Manifest that a run appends to.

    A killed run leaves at most one incomplete line, which readers skip. Of several lines for one output the last
    one counts.

    Raises:
        OSError: The file cannot be opened, is a link or is not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = open_unlinked(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        size = os.fstat(self._descriptor).st_size
        self._lines = 2 if size else 0
        self._places: dict[str, int] = {}
        """Byte position of the last line of each output of this run."""
        if size and os.read(self._tail(size), 1) != b"\n":
            self._write(b"\n")
        self._synced = time.monotonic()

    def add(self, *records: Record) -> None:
        """Append records."""
        lines = [record.to_line() for record in records]
        place = os.lseek(self._descriptor, 0, os.SEEK_END)
        self._write(b"".join(lines))
        for record, line in zip(records, lines, strict=True):
            self._places[record.output] = place
            place += len(line)
        self._lines += len(lines)
        now = time.monotonic()
        if now - self._synced >= SYNC_EVERY_S:
            os.fsync(self._descriptor)
            self._synced = now

    def finish(self, summary: Mapping[str, Any], outputs: Iterable[str] | None) -> None:
        """Append the summary; put the lines of a complete run in order.

        Args:
            summary: JSON summary of the run.
            outputs: `Record.output` of every input of a complete run: the file is rewritten with one line for
                each, in this order, and the summary. None for a stopped run, which keeps all lines.
        """
        line = json.dumps({"summary": dict(summary)}).encode("ascii") + b"\n"
        self._write(line)
        os.fsync(self._descriptor)
        if outputs is not None and self._lines > 1:  # a single line is in order
            self._compact(outputs, line)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _compact(self, outputs: Iterable[str], summary: bytes) -> None:
        with _open(self.path) as old, open_atomically(self.path) as file:
            for output in outputs:
                if output in self._places:
                    old.seek(self._places[output])
                    file.write(old.readline())
            file.write(summary)

    def _write(self, content: bytes) -> None:
        while content:  # more than one call only on a full disk, which leaves an incomplete line
            content = content[os.write(self._descriptor, content) :]

    def _tail(self, size: int) -> int:
        os.lseek(self._descriptor, size - 1, os.SEEK_SET)
        return self._descriptor


class PastRecords:
    """Records of earlier runs by output. Memory holds the positions of the lines, not the lines.

    Args:
        paths: Manifests, the newest last: of several records for one output the last one counts. Manifests that
            cannot be read, or are links, pipes or devices, are skipped.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._places: dict[str, tuple[Path, int]] = {}
        for path in paths:
            with suppress(OSError), _open(path) as file:
                for output, place, _ in _scan(file):
                    self._places[output] = (path, place)

    def __len__(self) -> int:
        """Return the number of outputs."""
        return len(self._places)

    def get(self, output: str) -> Record | None:
        """Return the record of an output, or None. Thread-safe."""
        if output not in self._places:
            return None
        path, place = self._places[output]
        try:
            with _open(path) as file:
                file.seek(place)
                record = Record.from_line(file.readline(MAX_LINE_BYTES))
        except OSError:
            return None
        # Another shard may have rewritten its manifest in the meantime
        return record if record is not None and record.output == output else None


def read_manifest(path: Path) -> Iterator[Record]:
    """Yield the records of a manifest, only the last one of each output, in file order."""
    with _open(path) as file:
        places = {output: place for output, place, _ in _scan(file)}
        for output, place, record in _scan(file):
            if places[output] == place:
                yield record


def was_closed(path: Path) -> bool:
    """Return whether the last line is a summary: the last run was not killed."""
    with _open(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
        last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    return last.startswith(b'{"summary"')


def _open(path: Path) -> BinaryIO:
    return os.fdopen(open_unlinked(path), "rb")


def _scan(file: BinaryIO) -> Iterator[tuple[str, int, Record]]:
    """Yield output, byte position and record of each valid line; skip all other lines."""
    file.seek(0)
    place, is_start = 0, True
    while line := file.readline(MAX_LINE_BYTES):
        record = Record.from_line(line) if is_start else None
        if record is not None:
            yield record.output, place, record
        place += len(line)
        is_start = line.endswith(b"\n")  # else the next piece belongs to the same, too long line
