"""Spec of an exported model: classes, input, outputs, precision, provenance."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from gmtool.classes import ClassSet
from gmtool.errors import ArtifactError, DataError
from gmtool.json_toml import format_version, parse_json, typed

FORMAT_VERSION = 1

Precision = Literal["fp32", "fp16", "int8"]
OutputName = Literal["mask", "confidence", "logits", "embedding"]


@dataclass(frozen=True)
class InputContract:
    """Input of an exported model; its graph does normalisation and padding."""

    name: str = "image"
    dtype: str = "uint8"
    layout: str = "NHWC"
    color: str = "RGB"
    min_size_px: int = 1
    """Smallest height and width, in pixels."""
    shape: tuple[int, int, int] | None = None
    """Batch, height and width of a model that takes no other shape; None for any."""


@dataclass(frozen=True)
class ModelProvenance:
    """Origin of the weights of an exported model."""

    run: str
    """Name of the run folder."""
    iteration: int
    """Optimiser steps done."""
    miou: float | None
    """Validation mIoU of the weights in training, in [0, 1]; None if no pixel was scored."""
    weights_sha256: str
    """SHA-256 of the checkpoint's weights file."""
    gmtool_version: str
    torch_version: str
    created: str
    """Time of the export, ISO 8601, UTC."""
    labeled_sha256: str | None = None
    """SHA-256 of the ids of the labeled training images, in order; None if unknown."""


@dataclass(frozen=True)
class ArtifactSpec:
    """Spec of an exported model, stored in the ONNX file or in the sidecar of a TensorRT plan."""

    classes: ClassSet
    precision: Precision
    encoder: str
    output_stride: int
    attention_stride: float | None
    """Image size over the size of the grid on which every position attends to every other one; None without
    attention. Its memory grows with the square of the pixels."""
    outputs: tuple[OutputName, ...]
    """Outputs of the graph, in order: `mask` uint8 [N, H, W] of class indices; `confidence` uint8 [N, H, W],
    the largest probability times 255; `logits` float32 [N, C, H, W], from which the other two are computed;
    `embedding` float32 [N, D], means of the encoder's feature maps."""
    provenance: ModelProvenance
    decoder: str = "guidedmix"
    """Decoder, as `model.decoder` names it."""
    input_scale: float = 1.0
    """Factor by which the graph scales images before the encoder."""
    attention_heads: int = 1
    """Heads of the attention; each has its own matrix of positions."""
    encoder_license: str | None = None
    """Licence of the published weights that the encoder was trained from, as their publisher states it; None if
    it is unknown, or there were none."""
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
        """Parse a spec.

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
