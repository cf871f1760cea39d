"""Looking at every mask before a long run or a score depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gmtool.classes import ClassSet
from gmtool.errors import DataError
from gmtool.images import displayed_size, open_image
from gmtool.layouts import Sample
from gmtool.masks import MaskValues, read_mask


def check_masks(samples: Sequence[Sample], classes: ClassSet, *, values: MaskValues) -> None:
    """Check that every mask can be read, has labels of its classes, and is as large as its image.

    Raises:
        DataError: What is wrong with the first such sample, and how many there are.
    """
    with ThreadPoolExecutor() as pool:  # decoding PNG releases the interpreter lock
        problems = [
            problem for problem in pool.map(lambda sample: _problem(sample, classes, values), samples) if problem
        ]
    if problems:
        more = f" (and {len(problems) - 1} more such files)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _problem(sample: Sample, classes: ClassSet, values: MaskValues) -> str | None:
    assert sample.mask_path is not None
    try:
        size = displayed_size(open_image(sample.image_path))
        mask = read_mask(sample.mask_path, classes, values=values)
    except DataError as error:
        return str(error)
    if mask.shape != size:
        height, width = mask.shape
        return f"{sample.mask_path} is {width}x{height}, but its image is {size[1]}x{size[0]}"
    return None
