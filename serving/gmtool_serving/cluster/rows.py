"""Arrow tables between the stages on Ray: one row an image."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from gmtool.images import UInt8Array
from gmtool.masks.coco_annotations import ImageId
from gmtool_serving.cluster.storage import is_uri
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.outputs.write import OutputFile
from gmtool_serving.pipeline.pipeline import Outcome

if TYPE_CHECKING:
    import pyarrow as pa

    from gmtool_serving.inputs.collect import InputImage

BLOBS = ("pixels", "mask", "confidence")


@dataclass(frozen=True)
class Row:
    """State of one image between stages. JSON, since names may contain surrogate escapes, which Arrow refuses."""

    index: int
    """Index of the image among the inputs."""
    location: str
    """Name in messages: the path as given, or the URI."""
    source: str
    """Absolute path, or URI."""
    output: str
    coco_id: ImageId | None = None
    past: str | None = None
    """Manifest line of an earlier run, not yet verified."""
    sha256: str | None = None
    size: tuple[int, int] | None = None
    """Height and width."""
    warning: str | None = None
    failure: Failure | None = None
    skipped: bool = False
    outputs: tuple[OutputFile, ...] = ()
    backend: str | None = None
    """Description of the backend that predicted it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by stage, seconds."""
    fatal: str | None = None
    """Error that stops the whole run."""

    @classmethod
    def of(cls, index: int, image: InputImage, past: str | None) -> Row:
        """Return the row of an input."""
        location = image.location
        source = location if is_uri(location) else os.path.abspath(location)  # noqa: PTH100  no links followed
        return cls(index, location, source, str(image.output), image.coco_id, past)

    @property
    def is_settled(self) -> bool:
        """Return whether later stages skip this image."""
        return self.failure is not None or self.skipped or self.fatal is not None

    def outcome(self, image: InputImage) -> Outcome:
        """Return the outcome of the image."""
        return Outcome(image, self.sha256, self.failure, self.skipped, self.warning, self.outputs)

    def failed(self, failure: Failure) -> Row:
        """Return this row with a failure."""
        return replace(self, failure=failure, sha256=self.sha256 or failure.sha256)

    def to_json(self) -> str:
        """Return the row as ASCII JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Row:
        """Parse the output of `to_json`."""
        value: dict[str, Any] = json.loads(text)
        value["outputs"] = tuple(OutputFile(**entry) for entry in value["outputs"])
        value["failure"] = None if value["failure"] is None else Failure(**value["failure"])
        value["size"] = None if value["size"] is None else tuple(value["size"])
        return cls(**value)

    @property
    def path(self) -> Path:
        """Return `source` as a path."""
        return Path(self.source)

    def renamed(self, message: str) -> str:
        """Return a message with `location` in place of `path`."""
        return message.replace(str(self.path), self.location)

    @property
    def output_path(self) -> PurePosixPath:
        """Return `InputImage.output`."""
        return PurePosixPath(self.output)


def to_table(rows: Sequence[Row], **blobs: Sequence[UInt8Array | None]) -> pa.Table:
    """Return rows as a table.

    Args:
        rows: The rows.
        blobs: Arrays of some of `BLOBS`, one a row, or None.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"row": pa.array([row.to_json() for row in rows], type=pa.string())}
    for name in BLOBS:
        arrays = blobs.get(name, [None] * len(rows))
        values = [None if array is None else np.ascontiguousarray(array).data.cast("B") for array in arrays]
        columns[name] = pa.array(values, type=pa.large_binary())
    return pa.table(columns)


def rows_of(table: pa.Table) -> list[Row]:
    """Return the rows of a table."""
    return [Row.from_json(text) for text in table["row"].to_pylist()]


def array_of(table: pa.Table, name: str, place: int, shape: tuple[int, ...]) -> UInt8Array | None:
    """Return one of `BLOBS` of row `place` as a read-only array without copying; None if absent."""
    value = table[name][place]
    if not value.is_valid:
        return None
    return np.frombuffer(value.as_buffer(), dtype=np.uint8).reshape(shape)
