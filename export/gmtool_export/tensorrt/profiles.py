"""Default shapes of a TensorRT plan, from the run's validation images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median_low

from gmtool.artifact.runs import CONFIG_NAME
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.data.datasets import load_split
from gmtool.errors import ConfigError, GmtoolError
from gmtool.settings import load_config
from gmtool_export.int8.calibration import spread

LOOKED_AT = 50
"""Number of validation images whose sizes are read."""
SMALLEST_PX = 32
LARGEST_BATCH = 4


def profile_of_run(run_dir: Path, given: Mapping[str, str | None]) -> ShapeProfile:
    """Return an optimisation profile: given shapes, and defaults from the run's validation images.

    Defaults: best at one image of the median height and width; at most four of the largest height and width.

    Args:
        run_dir: Run folder.
        given: `BxHxW` or None, by option: `--min-shape`, `--opt-shape`, `--max-shape`.

    Raises:
        ConfigError: Not a shape, not in ascending order, or the validation images are missing.
    """
    shapes = {option: text and BatchShape.parse(text, where=option) for option, text in given.items()}
    smallest, best, largest = (shapes[option] for option in ("--min-shape", "--opt-shape", "--max-shape"))
    if not (smallest and best and largest):
        heights, widths = _sizes(run_dir)
        height, width = median_low(heights), median_low(widths)
        best = best or BatchShape(1, height, width)
        smallest = smallest or BatchShape(1, min(SMALLEST_PX, best.height), min(SMALLEST_PX, best.width))
        largest = largest or BatchShape(
            max(LARGEST_BATCH, best.batch), max(*heights, best.height), max(*widths, best.width)
        )
    return ShapeProfile(smallest, best, largest)


def _sizes(run_dir: Path) -> tuple[list[int], list[int]]:
    try:
        config = load_config(run_dir / CONFIG_NAME)
        samples = load_split(config.data, "val", config.data.val).samples
        sizes = [sample.image_size() for sample in spread(samples, LOOKED_AT)]
    except GmtoolError as error:
        raise ConfigError(
            f"the run's validation images are needed to choose shapes for TensorRT ({error}): or give "
            "--min-shape, --opt-shape and --max-shape"
        ) from error
    return [height for height, _ in sizes], [width for _, width in sizes]
