"""Proof that an exported model gives the masks of the network it came from, on real images at several shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from PIL import Image

from gmtool.errors import DataError, ParityError
from gmtool.images import UInt8Array, read_image
from gmtool.nn.model import GuidedMixNet
from gmtool_export.deploy import DeployModel
from gmtool_export.onnx import TRACED_SHAPE

SHAPES = {
    "traced": TRACED_SHAPE,
    "smaller": (1, 64, 96),
    "odd": (1, 97, 133),
    "batch of 3": (3, 192, 256),
}
"""Batch, height and width of what is compared; an image at its own size comes on top."""
MAX_OWN_PIXELS = 1_000_000
"""Larger images are not compared at their own size: attention would need gigabytes in each of the two."""

MIN_AGREEMENT = 0.999


@dataclass(frozen=True)
class ParityRow:
    """The comparison at one shape."""

    shape: str
    batch: int
    height: int
    width: int
    agreement: float
    """Share of the pixels with the same label, in [0, 1]."""
    classes_seen: int
    """Different labels in PyTorch's masks: where there is one, agreement proves nothing."""


def check_parity(network: GuidedMixNet, model: bytes, image_paths: Sequence[Path]) -> list[ParityRow]:
    """Compare PyTorch and ONNX Runtime on the CPU.

    Args:
        network: The network as it was trained, in evaluation mode.
        model: The exported ONNX file.
        image_paths: At least one real image; they are resized to the shapes.

    Returns:
        One row a shape.

    Raises:
        ParityError: Fewer than `MIN_AGREEMENT` of the pixels agree at some shape.
        DataError: There is no image.
    """
    if not image_paths:
        raise DataError("no images to compare the exported model on: give --images DIR")
    images = [read_image(path) for path in image_paths[:6]]
    batches = {name: _batch(images, *shape) for name, shape in SHAPES.items()}
    if images[0].size <= 3 * MAX_OWN_PIXELS:
        batches["own size"] = images[0][None]
    reference = DeployModel(network).eval()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = [_compare(name, batch, reference, session) for name, batch in batches.items()]
    worst = min(rows, key=lambda row: row.agreement)
    if worst.agreement < MIN_AGREEMENT:
        raise ParityError(
            f"the ONNX model agrees with PyTorch on {worst.agreement:.4%} of the pixels at "
            f"{worst.batch}x{worst.height}x{worst.width} ({worst.shape}); expected {MIN_AGREEMENT:.1%}: "
            "nothing was written"
        )
    return rows


def _compare(name: str, batch: UInt8Array, reference: DeployModel, session: ort.InferenceSession) -> ParityRow:
    with torch.no_grad():
        expected = reference(torch.from_numpy(batch)).numpy()
    (actual,) = session.run(["mask"], {"image": batch})
    if actual.shape != expected.shape:
        raise ParityError(f"the ONNX model gives masks {actual.shape} at {name}; PyTorch gives {expected.shape}")
    return ParityRow(
        shape=name,
        batch=batch.shape[0],
        height=batch.shape[1],
        width=batch.shape[2],
        agreement=float((actual == expected).mean()),
        classes_seen=len(np.unique(expected)),
    )


def _batch(images: list[UInt8Array], count: int, height: int, width: int) -> UInt8Array:
    """Return `count` of the images at one size, (count, height, width, 3), repeated if there are fewer."""
    chosen = [images[index % len(images)] for index in range(count)]
    return np.stack([np.array(Image.fromarray(image).resize((width, height))) for image in chosen])
