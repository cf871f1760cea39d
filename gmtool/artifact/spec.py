"""What an exported model must know about itself so that nobody has to guess."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from gmtool.classes import ClassSet
from gmtool.errors import ArtifactError, DataError
from gmtool.json_toml import format_version, parse_json, typed

FORMAT_VERSION = 1

Precision = Literal["fp32", "fp16", "int8"]
OutputName = Literal["mask", "confidence", "logits"]


@dataclass(frozen=True)
class InputContract:
    """What a client feeds. Normalisation and padding are in the graph."""

    name: str = "image"
    dtype: str = "uint8"
    layout: str = "NHWC"
    color: str = "RGB"
    min_size_px: int = 1
    """Smallest height and width."""


@dataclass(frozen=True)
class ModelProvenance:
    """Where the weights came from."""

    run: str
    """Name of the run folder."""
    iteration: int
    """Optimiser steps behind these weights."""
    miou: float | None
    """Validation mIoU in [0, 1] that training measured for them."""
    weights_sha256: str
    """Hash of the checkpoint's weights file."""
    gmtool_version: str
    torch_version: str
    created: str
    """When the model was exported, ISO 8601, UTC."""
    labeled_sha256: str | None = None
    """Hash of the ids of the labeled images that it was trained with, in order; None if not known."""


@dataclass(frozen=True)
class ArtifactSpec:
    """The contract of one exported model. The same record lies in an ONNX file and beside a TensorRT plan."""

    classes: ClassSet
    precision: Precision
    encoder: str
    output_stride: int
    attention_stride: float | None
    """Input size over the size at which every position attends to every other one; None if none does.
    Memory for it grows with the square of the pixels."""
    outputs: tuple[OutputName, ...]
    """What the graph gives, in this order: `mask` uint8 [N, H, W] of class indices; `confidence` uint8 [N, H, W],
    the largest probability times 255; `logits` float32 [N, C, H, W], from which the other two follow."""
    provenance: ModelProvenance
    input: InputContract = InputContract()
    opset: int = 18
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        strides = {"output_stride": self.output_stride, "attention_stride": self.attention_stride}
        for name, value in (strides | {"input.min_size_px": self.input.min_size_px}).items():
            if value is not None and value < 1:
                raise ArtifactError(f"{name} is {value}; expected at least 1")
        if not {"mask", "logits"} & set(self.outputs):
            raise ArtifactError(f"outputs are {list(self.outputs)}; expected mask or logits among them")

    def to_json(self) -> str:
        """Return the spec as a JSON object."""
        return json.dumps(asdict(self) | {"classes": self.classes.to_dict()})

    @classmethod
    def from_json(cls, text: str, *, where: str) -> ArtifactSpec:
        """Read a spec.

        Raises:
            ArtifactError: Not a spec, or written by a newer gmtool.
        """
        damaged = f"{where}: its description is damaged"
        what = "the description of a model"
        value = parse_json(text, where=damaged, error=ArtifactError, what=what)
        format_version(value, newest=FORMAT_VERSION, where=where, what=what, error=ArtifactError)
        try:
            classes = ClassSet.from_dict(value.get("classes"), where="classes")
        except DataError as error:
            raise ArtifactError(f"{damaged}: {error}") from error
        return typed(cls, value | {"classes": classes}, where=damaged, error=ArtifactError)
