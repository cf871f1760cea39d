"""Second pipeline stage: predict a batch, halve it on errors or lack of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gmtool.artifact.spec import ArtifactSpec
from gmtool.errors import BackendError, BackendMemoryError, ConfigError, UsageError
from gmtool.images import MEAN_COLOR, UInt8Array
from gmtool_serving.backends.base import Backend, checked_labels
from gmtool_serving.backends.tiles import Tiling, predict_tiled
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.outputs.confidence import ignore_unsure
from gmtool_serving.pipeline.batching import padded_size
from gmtool_serving.pipeline.shared_memory import side_by_side


@dataclass(frozen=True)
class Labels:
    """Mask and confidence of one image."""

    mask: UInt8Array
    """Class indices, (H, W)."""
    confidence: UInt8Array | None
    """Largest probability times 255, (H, W); None if the model has no confidence output."""
    embedding: npt.NDArray[np.float32] | None = None
    """Vector of the image, (D,); None if the model has no such output."""


@dataclass(frozen=True)
class ComputeOptions:
    """Padding and tiling of images before inference."""

    pad_px: int = 0
    """Pad images to a multiple of this many pixels, so that more of them share a batch; 0 for no padding."""
    tiling: Tiling | None = None
    """Tile size and overlap for larger images; None predicts images whole."""
    min_confidence: float | None = None
    """Pixels of a smaller largest probability get the ignore label, in [0, 1]; None keeps all."""


@dataclass(frozen=True)
class Computed:
    """Results of a batch."""

    results: list[Labels | Failure]
    """In the order of the images."""
    fitted: int
    """Images that fitted into memory at once; fewer than the batch if it was halved."""


def parse_min_confidence(wanted: float | None) -> float | None:
    """Return a limit of confidence, checked.

    Raises:
        UsageError: Not in [0, 1].
    """
    if wanted is not None and not 0 <= wanted <= 1:
        raise UsageError(f"--min-confidence {wanted:g}: expected a probability, 0 to 1")
    return wanted


def require_confidence(spec: ArtifactSpec, options: ComputeOptions) -> None:
    """Check before inference that a model gives what `min_confidence` compares.

    Raises:
        ConfigError: It gives masks alone.
    """
    if options.min_confidence is not None and not {"confidence", "logits"} & set(spec.outputs):
        raise ConfigError(
            f"--min-confidence needs the model's confidence, but its only output is {', '.join(spec.outputs)}: "
            "export it with --output mask+confidence"
        )


def predict_batch(
    backend: Backend, images: Sequence[UInt8Array], options: ComputeOptions, *, names: Sequence[object]
) -> Computed:
    """Predict images of one size (after padding), RGB, (H, W, 3) uint8 each.

    A batch that fails is halved until the failing image is alone; the others get their masks.

    Args:
        backend: A loaded model.
        images: At least one; exactly one if it is tiled.
        options: Padding and tiles.
        names: Names of the images; `str()` is called only for a message.
    """
    try:
        return Computed(list(_predict(backend, images, options)), len(images))
    except (BackendError, MemoryError) as error:
        memory = isinstance(error, BackendMemoryError | MemoryError)
        if len(images) == 1:
            code = BackendMemoryError.code if memory else getattr(error, "code", BackendError.code)
            message = str(error) or "not enough memory"
            return Computed([Failure(code, f"{names[0]}: {message}")], 1)
    half = (len(images) + 1) // 2
    parts = [
        predict_batch(backend, images[part], options, names=names[part])
        for part in (slice(half), slice(half, None))
    ]
    fitted = max(part.fitted for part in parts) if memory else len(images)
    return Computed([result for part in parts for result in part.results], fitted)


def _predict(backend: Backend, images: Sequence[UInt8Array], options: ComputeOptions) -> list[Labels]:
    height, width = images[0].shape[:2]
    if options.tiling is not None and options.tiling.applies_to(height, width):
        (image,) = images
        prediction = predict_tiled(backend, image, options.tiling)
    else:
        prediction = backend.predict(_stack(images, options.pad_px))
    mask, confidence = checked_labels(prediction, len(backend.spec.classes))
    if options.min_confidence is not None:
        assert confidence is not None  # see require_confidence
        ignored = backend.spec.classes.ignore_index
        mask = ignore_unsure(mask, confidence, options.min_confidence, ignore_index=ignored)
    return [
        Labels(
            mask[index, : image.shape[0], : image.shape[1]],
            None if confidence is None else confidence[index, : image.shape[0], : image.shape[1]],
            None if prediction.embedding is None else prediction.embedding[index],
        )
        for index, image in enumerate(images)
    ]


def _stack(images: Sequence[UInt8Array], pad_px: int) -> UInt8Array:
    height, width = padded_size(images[0].shape[0], images[0].shape[1], pad_px)
    if (height, width) == images[0].shape[:2] and (batch := side_by_side(images)) is not None:
        return batch
    if pad_px == 0:
        return np.stack(images)
    batch = np.empty((len(images), height, width, 3), dtype=np.uint8)
    batch[:] = MEAN_COLOR  # the network itself pads with it, to the nearest level
    for index, image in enumerate(images):
        batch[index, : image.shape[0], : image.shape[1]] = image
    return batch
