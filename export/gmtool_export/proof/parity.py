"""Parity of an exported model with its network: masks and logits on real images at several shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from PIL import Image

from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.errors import ParityError
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet, normalize
from gmtool.resources import EXACT_INT8, runtime_threads
from gmtool_export.graph.onnx import TRACED_SHAPE

Float32Array = npt.NDArray[np.float32]

SHAPES = {
    "traced": BatchShape(*TRACED_SHAPE),
    "smaller": BatchShape(1, 64, 96),
    "odd": BatchShape(1, 97, 133),
    "batch of 3": BatchShape(3, 192, 256),
}
"""Compared shapes, in addition to an image at its own size."""
OWN_SIZE = "own size"
"""Name of the shape of an image at its own size."""
FIXED = "fixed"
"""Name of the shape of a model that takes no other."""
MAX_OWN_PIXELS = 1_000_000
"""Largest image compared at its own size: beyond it attention needs gigabytes in both models."""

Runner = Callable[[UInt8Array], Mapping[str, npt.NDArray[Any]]]
"""Runs an exported model on images, (N, H, W, 3) uint8; returns `mask`, (N, H, W) uint8, and `logits`, (N, C, H,
W) float32, if available."""


@dataclass(frozen=True)
class ParityRow:
    """Comparison with PyTorch at one shape."""

    shape: str
    batch: int
    height: int
    width: int
    agreement: float
    """Share of the pixels with the same label, in [0, 1]."""
    max_difference: float | None
    """Largest difference of two logits; None without logits."""
    max_logit: float
    """Largest absolute logit of PyTorch."""
    unexplained: int | None
    """Pixels with another label whose two best logits differ by more than twice `max_difference`, which rounding
    cannot explain. None without logits."""
    classes_seen: int
    """Different labels in PyTorch's masks; with a single one agreement proves nothing."""


def reference_logits(network: GuidedMixNet, images: UInt8Array) -> Float32Array:
    """Return PyTorch's logits, (N, C, H, W) float32, computed as in training, without code of the export."""
    with torch.no_grad():
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        logits: Float32Array = network(normalize(batch)).logits.numpy()
    return logits


def onnx_runner(model: bytes, outputs: Sequence[str], *, threads: int = 0) -> Runner:
    """Return a runner of an ONNX model in ONNX Runtime on the CPU; masks are computed from logits if absent."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = runtime_threads(threads)
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(images: UInt8Array) -> Mapping[str, npt.NDArray[Any]]:
        given = dict(zip(outputs, session.run(list(outputs), {"image": images}), strict=True))
        if "mask" not in given:
            given["mask"] = given["logits"].argmax(axis=1).astype(np.uint8)
        return given

    return run


@dataclass(frozen=True)
class ReferenceBatch:
    """Batch of images of one size, with PyTorch's logits."""

    images: UInt8Array
    """RGB, (N, H, W, 3) uint8."""
    logits: Float32Array
    """Logits of PyTorch, (N, C, H, W) float32."""


def reference_batches(
    network: GuidedMixNet, images: Sequence[UInt8Array], only: BatchShape | None = None
) -> dict[str, ReferenceBatch]:
    """Return batches of real images at all `SHAPES`, and the first image at its own size if not too large.

    With `only`, one batch of that shape.
    """
    if only is not None:
        batch = _batch(images, only)
        return {FIXED: ReferenceBatch(batch, reference_logits(network, batch))}
    batches = {name: _batch(images, shape) for name, shape in SHAPES.items()}
    if images[0].size <= 3 * MAX_OWN_PIXELS:
        batches[OWN_SIZE] = images[0][None]
    return {name: ReferenceBatch(batch, reference_logits(network, batch)) for name, batch in batches.items()}


def shapes_inside(profile: ShapeProfile) -> dict[str, BatchShape]:
    """Return a profile's smallest, best and largest shape, and those of `SHAPES` inside it, by name."""
    named = {"smallest": profile.min, "best": profile.opt, "largest": profile.max}
    return named | {name: shape for name, shape in SHAPES.items() if profile.misfit(shape) is None}


def reference_batches_of(
    network: GuidedMixNet, images: Sequence[UInt8Array], named: Mapping[str, BatchShape]
) -> dict[str, ReferenceBatch]:
    """Return batches of real images at shapes, each shape once, under its first name."""
    shapes: dict[str, BatchShape] = {}
    for name, shape in named.items():
        if shape not in shapes.values():
            shapes[name] = shape
    batches = {name: _batch(images, shape) for name, shape in shapes.items()}
    return {name: ReferenceBatch(batch, reference_logits(network, batch)) for name, batch in batches.items()}


def compare(runner: Runner, given: Mapping[str, ReferenceBatch]) -> tuple[ParityRow, ...]:
    """Compare a model with PyTorch; one row a batch.

    Raises:
        ParityError: The model gives masks of the wrong shape, or logits that are not finite.
    """
    return tuple(_compare(name, example, runner) for name, example in given.items())


def _compare(name: str, example: ReferenceBatch, runner: Runner) -> ParityRow:
    # Masks
    expected = example.logits
    labels = expected.argmax(axis=1)
    given = runner(example.images)
    mask = given["mask"]
    if mask.shape != labels.shape:
        raise ParityError(f"the exported model gives masks {mask.shape} at {name}; PyTorch gives {labels.shape}")
    differ = mask != labels
    # Logits
    difference = unexplained = None
    if "logits" in given:
        difference = float(np.abs(given["logits"] - expected).max())
        if not np.isfinite(difference):
            raise ParityError(f"the exported model's logits at {name} are not finite: nothing was written")
        second, best = np.partition(expected, -2, axis=1)[:, -2:].swapaxes(0, 1)
        unexplained = int((differ & (best - second > 2 * difference)).sum())
    count, height, width = labels.shape
    return ParityRow(
        shape=name,
        batch=count,
        height=height,
        width=width,
        agreement=float(1 - differ.mean()),
        max_difference=difference,
        max_logit=float(np.abs(expected).max()),
        unexplained=unexplained,
        classes_seen=len(np.unique(labels)),
    )


def _batch(images: Sequence[UInt8Array], shape: BatchShape) -> UInt8Array:
    """Return images resized to a batch, (batch, height, width, 3) uint8, repeated if there are too few."""
    chosen = [images[index % len(images)] for index in range(shape.batch)]
    return np.stack([np.array(Image.fromarray(image).resize((shape.width, shape.height))) for image in chosen])
