"""Images of the validations before the last one: as many as cost a tenth of the training time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from gmtool.config import TrainConfig
from gmtool.data.samples import Sample
from gmtool.images import displayed_size, open_image

SHARE = 0.1
"""Share of the training time that all validations before the last may take by default."""
LEAST = 20
"""Images that a validation takes at least."""
LOOKED_AT = 32
"""Images whose size is read."""
LABELED_PASSES, DECOUPLED_PASSES, DIRECT_PASSES = 3.0, 10.0, 7.0
"""Cost of a step in forward passes of its labeled images: without unlabeled ones, with the pseudo masks of the
paper, and with direct ones (docs/training.md, Recipes)."""
WHOLE_IMAGE_PASSES = 2.0
"""Cost of a validation image in forward passes of as many pixels: it is read and scored at its own size."""


def step_passes(config: TrainConfig, *, unlabeled: bool) -> float:
    """Return the cost of a step in forward passes of its labeled images."""
    if not unlabeled:
        return LABELED_PASSES
    passes = DIRECT_PASSES if config.method.pseudo == "direct" else DECOUPLED_PASSES
    return LABELED_PASSES + (passes - LABELED_PASSES) * config.data.unlabeled_batch / config.data.labeled_batch


def taken_images(samples: Sequence[Sample], config: TrainConfig, *, unlabeled_from: int) -> tuple[int, ...]:
    """Return the indices of the images of each validation but the last, evenly spaced; all if they cost little.

    The choice follows from settings and sizes, not from measured times, so that a run can be repeated.

    Args:
        samples: Validation images.
        config: Settings of the run.
        unlabeled_from: First step with unlabeled images.
    """
    count = len(samples)
    limit = config.run.val_limit
    if limit is None:
        labeled = min(unlabeled_from, config.optim.iterations)
        passes = labeled * step_passes(config, unlabeled=False)
        passes += (config.optim.iterations - labeled) * step_passes(config, unlabeled=True)
        training = passes * config.data.labeled_batch * config.data.crop_px**2
        image = WHOLE_IMAGE_PASSES * _mean_pixels(samples)
        limit = max(LEAST, int(SHARE * training / (config.run.validations * image)))
    if limit == 0 or limit >= count:
        return tuple(range(count))
    return tuple(place * count // limit for place in range(limit))


def image_steps(samples: Sequence[Sample], config: TrainConfig) -> float:
    """Return the cost of a validation image in steps without unlabeled images."""
    step = step_passes(config, unlabeled=False) * config.data.labeled_batch * config.data.crop_px**2
    return WHOLE_IMAGE_PASSES * _mean_pixels(samples) / step


def _mean_pixels(samples: Sequence[Sample]) -> float:
    looked_at = samples[:: max(1, len(samples) // LOOKED_AT)]
    sizes = [displayed_size(open_image(sample.image_path)) for sample in looked_at]
    return fmean(height * width for height, width in sizes)
