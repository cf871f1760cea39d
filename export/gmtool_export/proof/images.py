"""Real images for the proof of an exported model, and PyTorch's results on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmtool.artifact.shapes import BatchShape
from gmtool.artifact.spec import Precision
from gmtool.config import TrainConfig
from gmtool.data.datasets import Split
from gmtool.data.layouts import reading_of
from gmtool.data.samples import Sample
from gmtool.errors import ArtifactError
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet
from gmtool.resources import available_memory
from gmtool_export.data_check import require_validation, validation
from gmtool_export.int8.calibration import images_of_folder, spread
from gmtool_export.proof.gate import refuse_weak_evidence
from gmtool_export.proof.miou_drop import ScoredImages, classes_predicted
from gmtool_export.proof.parity import ReferenceBatch, reference_batches

COMPARED_IMAGES = 6
"""Images in the batches of all shapes."""
SCORED_IMAGES: dict[Precision, int] = {"fp32": 4, "fp16": 24, "int8": 24}
"""Default number of validation images to score: few in fp32, where hardly a pixel differs; PyTorch takes most of
the time."""


@dataclass(frozen=True)
class Evidence:
    """Images and PyTorch's results for the proof of a model."""

    images: tuple[UInt8Array, ...]
    """Real images at their own size."""
    batches: dict[str, ReferenceBatch]
    """The images in batches of several shapes, with PyTorch's logits, by the name of the shape."""
    classes_predicted: int
    """Classes that PyTorch predicts on a minimum share of the pixels."""
    scored: ScoredImages | None
    not_scored: str | None
    """Reason why there are no images to score."""


def gather_evidence(
    network: GuidedMixNet,
    config: TrainConfig,
    *,
    image_dir: Path | None,
    num_scored: int,
    num_classes: int,
    allow_few_classes: bool,
    shape: BatchShape | None = None,
) -> Evidence:
    """Load the images of the proof, and run PyTorch on them at several shapes.

    Args:
        network: Trained network in evaluation mode.
        config: Configuration of its run.
        image_dir: Images to compare on; None for the run's validation images.
        num_scored: Validation images to score, evenly spaced; 0 for all.
        num_classes: Classes of the network.
        allow_few_classes: Accept a network that predicts too few classes.
        shape: The one shape of a model that takes no other; None for any.

    Raises:
        ArtifactError: The shape does not fit into memory.
        DataError: No images.
        ParityError: PyTorch predicts too few classes on the images.
    """
    if shape is not None:
        _refuse_beyond_memory(shape, num_classes)
    # Choose images
    split, problem = validation(config.data)
    if image_dir is not None:
        reading = reading_of(config.data)
        paths = images_of_folder(image_dir, option="--images")
        samples = tuple(Sample(path.stem, path, None, reading) for path in paths)
    else:
        samples = require_validation(config.data).samples
    # Run PyTorch, and require several predicted classes
    images = tuple(sample.read_image() for sample in spread(samples, COMPARED_IMAGES))
    compared = reference_batches(network, images, shape)
    labels = np.concatenate([example.logits.argmax(axis=1).ravel() for example in compared.values()])
    predicted = classes_predicted(np.bincount(labels, minlength=num_classes))
    if not allow_few_classes:
        refuse_weak_evidence(predicted, num_classes)
    return Evidence(
        images=images,
        batches=compared,
        classes_predicted=predicted,
        scored=None if split is None else _scored(split, config, num_scored, shape),
        not_scored=problem,
    )


def _refuse_beyond_memory(shape: BatchShape, num_classes: int) -> None:
    """Refuse a shape whose logits alone do not fit: PyTorch's, the model's, their difference, 4 bytes each."""
    needed, available = 3 * 4 * num_classes * shape.pixels, available_memory()
    if needed > available:
        raise ArtifactError(
            f"--shape {shape}: comparing {num_classes} classes at it needs over {needed / 2**30:.1f} GiB, and "
            f"{available / 2**30:.1f} GiB are free: nothing was written; take a smaller shape"
        )


def _scored(split: Split, config: TrainConfig, count: int, shape: BatchShape | None) -> ScoredImages:
    listed = len(split.samples)
    count = min(count or listed, listed)
    samples = tuple(split.samples[index * listed // count] for index in range(count))
    return ScoredImages(split.name, listed, samples, config.data.mask_values, shape)
