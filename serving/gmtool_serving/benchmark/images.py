"""Images of a benchmark: decoded, in batches of one size, with optional ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from gmtool.artifact.runs import CONFIG_NAME, run_of_model
from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.console import remark
from gmtool.data.datasets import load_split
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample, mask_file
from gmtool.errors import ConfigError, DataError, GmtoolError, UsageError
from gmtool.file_kinds import IMAGE_SUFFIXES
from gmtool.folders import LeftOut, below
from gmtool.images import UInt8Array
from gmtool.settings import load_config


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Batch of images of one size, with ground truth."""

    images: UInt8Array
    """RGB, (N, H, W, 3) uint8."""
    truths: tuple[UInt8Array, ...]
    """Ground truth, (H, W) uint8, of the first `count` images; empty without ground truth."""
    count: int
    """Different images; an incomplete batch is filled with repetitions."""


def images_for(
    model: Path, images: Path | None, ground_truth: Path | None, values: MaskValues | None
) -> tuple[list[Sample], MaskValues]:
    """Return the images of a folder, or those that the model's run was validated on, and their masks' encoding.

    Raises:
        ConfigError: No folder was named, and the model lies in no run folder, or its data is gone.
        DataError: There is no image in the folder, or none with a mask.
        UsageError: Masks without images, or their encoding without masks.
    """
    if images is not None and ground_truth is None and values is not None:
        raise UsageError("--mask-values needs --ground-truth DIR, or the validation images of the model's run")
    if images is not None:
        return samples_below(images, ground_truth), values or "index"
    if ground_truth is not None:
        raise UsageError("--ground-truth holds the masks of --images: give both, or neither")
    run = run_of_model(model)
    if run is None:
        raise ConfigError(f"{model} does not lie in its run folder: give --images DIR")
    try:
        data = load_config(run / CONFIG_NAME).data
        return list(load_split(data, "val", data.val).samples), values or data.mask_values
    except GmtoolError as error:
        raise ConfigError(
            f"the validation images of the model's run are not there ({error}): give --images DIR"
        ) from error


def samples_below(folder: Path, truth_dir: Path | None) -> list[Sample]:
    """Return the images below a folder, with the masks (PNG, TIFF, BMP or GIF) of the same relative names.

    With `truth_dir`, images without a mask are skipped with a remark.

    Raises:
        DataError: There is no image, or none with a mask.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder")
    left_out = LeftOut()
    paths = [
        path for path in below(folder, suffixes=IMAGE_SUFFIXES, left_out=left_out) if (folder / path).is_file()
    ]
    if str(left_out):
        remark(f"left out below {folder}: {left_out}")
    if not paths:
        raise DataError(f"--images {folder}: no image in it")
    samples = []
    for path in paths:
        name = PurePath(path).with_suffix("")
        mask = mask_file(truth_dir / f"{name}.png") if truth_dir is not None else None
        if mask is not None and not mask.is_file():
            continue
        samples.append(Sample(name.as_posix(), folder / path, mask))
    if not samples:
        raise DataError(f"--ground-truth {truth_dir}: no mask for any image of {folder}: expected {name}.png")
    if len(samples) < len(paths):
        remark(f"{len(paths) - len(samples)} images have no mask in {truth_dir}: left out")
    return samples


def spread(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Return at most `limit` samples, evenly spaced; all for 0."""
    if not limit or len(samples) <= limit:
        return list(samples)
    return [samples[index] for index in np.linspace(0, len(samples) - 1, limit).round().astype(int)]


def load_batches(
    samples: Sequence[Sample],
    classes: ClassSet,
    *,
    values: MaskValues,
    batch: int,
    size: tuple[int, int] | None,
) -> list[ImageBatch]:
    """Decode images and group those of one size into batches.

    Args:
        samples: Images, all with or all without a mask.
        classes: Classes of the ground truth.
        values: Encoding of the ground-truth masks.
        batch: Images in a batch.
        size: (height, width) to resize images (bilinear) and ground truth (nearest) to; None: no resizing.

    Raises:
        DataError: An image or a mask cannot be used.
    """
    decoded = [_decode(sample, classes, values=values, size=size) for sample in samples]
    decoded.sort(key=lambda pair: pair[0].shape)
    return [
        _batch(group[start : start + batch], batch)
        for _, same_size in groupby(decoded, key=lambda pair: pair[0].shape)
        for group in [list(same_size)]
        for start in range(0, len(group), batch)
    ]


def _decode(
    sample: Sample, classes: ClassSet, *, values: MaskValues, size: tuple[int, int] | None
) -> tuple[UInt8Array, UInt8Array | None]:
    image, truth = sample.read_image(), None
    if sample.mask is not None:
        truth = read_truth(sample, classes, values=values, size=image.shape[:2])
    if size is None:
        return image, truth
    height, width = size
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if truth is not None:
        truth = np.asarray(Image.fromarray(truth).resize((width, height), Image.Resampling.NEAREST))
    return resized, truth


def _batch(pairs: Sequence[tuple[UInt8Array, UInt8Array | None]], size: int) -> ImageBatch:
    filled = [pairs[index % len(pairs)][0] for index in range(size)]
    return ImageBatch(np.stack(filled), tuple(truth for _, truth in pairs if truth is not None), len(pairs))
