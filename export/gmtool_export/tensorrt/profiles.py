"""Default shapes of a TensorRT plan, from the run's validation images and the card's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median_low

from gmtool.artifact.nvidia import read_gpu
from gmtool.artifact.runs import CONFIG_NAME
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.spec import ArtifactSpec
from gmtool.artifact.tensorrt_plan import Flavour
from gmtool.console import remark
from gmtool.data.datasets import load_split
from gmtool.errors import BackendError, ConfigError, GmtoolError, MissingExtraError
from gmtool.settings import load_config
from gmtool_export.int8.calibration import spread
from gmtool_export.proof.parity import MAX_OWN_PIXELS, shapes_inside

LOOKED_AT = 50
"""Number of validation images whose sizes are read."""
SMALLEST_PX = 32
BEST_BATCH = 4
"""Images at once that a plan is fastest with; predicting takes as many by default."""
LARGEST_BATCH = 8
MEMORY_SHARE = 0.8
"""Share of the card's memory that the largest shape may need."""
USUAL_MEMORY = 8 << 30
"""Bytes of memory of a card that plans are built for without a card."""
NUMBERS_A_PIXEL = 64
"""4096 channels at an eighth of the image's size, as the network's widest tensor has them."""


def profile_of_run(run_dir: Path, given: Mapping[str, str | None]) -> ShapeProfile:
    """Return an optimisation profile: given shapes, and defaults from the run's validation images.

    Defaults: best at four images of the median height and width; at most eight of the largest height and width.

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
        batch = min(BEST_BATCH, largest.batch) if largest else BEST_BATCH
        best = best or BatchShape(max(batch, smallest.batch if smallest else 1), height, width)
        smallest = smallest or BatchShape(1, min(SMALLEST_PX, best.height), min(SMALLEST_PX, best.width))
        largest = largest or BatchShape(
            max(LARGEST_BATCH, best.batch), max(*heights, best.height), max(*widths, best.width)
        )
    return ShapeProfile(smallest, best, largest)


def fit_to_memory(profile: ShapeProfile, spec: ArtifactSpec, memory_bytes: int, *, given: bool) -> ShapeProfile:
    """Return a profile whose largest shape fits into the memory of a card: fewer images, then smaller ones.

    Args:
        profile: Profile wanted.
        spec: Spec of the model; its attention takes most of the memory.
        memory_bytes: Memory of the card.
        given: The user gave the shapes: they stay, with a remark.
    """
    gib = memory_bytes / 2**30

    def fits(shape: BatchShape) -> bool:
        return needed_bytes(shape, spec) <= MEMORY_SHARE * memory_bytes

    if fits(profile.max):
        return profile
    if given:
        needed = needed_bytes(profile.max, spec) / 2**30
        remark(f"--max-shape {profile.max} needs about {needed:.0f} GiB on a card of {gib:.0f}")
        return profile
    largest = cut(profile.max, fits, least=profile.min)
    remark(f"largest shape {largest} instead of {profile.max}, for a card of {gib:.0f} GiB (--max-shape)")
    best = BatchShape(
        min(profile.opt.batch, largest.batch),
        min(profile.opt.height, largest.height),
        min(profile.opt.width, largest.width),
    )
    return ShapeProfile(profile.min, best, largest)


def proof_shapes(profile: ShapeProfile) -> dict[str, BatchShape]:
    """Return the shapes at which a plan is compared with PyTorch, by name: none that takes it minutes."""

    def fits(shape: BatchShape) -> bool:
        return shape.pixels <= MAX_OWN_PIXELS

    return {name: cut(shape, fits, least=profile.min) for name, shape in shapes_inside(profile).items()}


def needed_bytes(shape: BatchShape, spec: ArtifactSpec) -> int:
    """Return about how much memory a network takes for a shape, bytes: its two largest tensors, in float32."""
    numbers = shape.pixels * max(NUMBERS_A_PIXEL, len(spec.classes))
    if spec.attention_stride is not None:
        positions = -(-shape.height // spec.attention_stride) * -(-shape.width // spec.attention_stride)
        numbers = max(numbers, int(shape.batch * spec.attention_heads * positions**2))
    return 2 * 4 * numbers


def cut(shape: BatchShape, fits: Callable[[BatchShape], bool], *, least: BatchShape) -> BatchShape:
    """Return a shape that fits: with fewer images, then with smaller sides, but no dimension below `least`."""
    while not fits(shape) and shape.batch > least.batch:
        shape = BatchShape(shape.batch - 1, shape.height, shape.width)
    while not fits(shape) and (shape.height > least.height or shape.width > least.width):
        height, width = (max(side * 15 // 16, low) for side, low in zip(shape.sides, least.sides, strict=True))
        shape = BatchShape(shape.batch, height, width)
    return shape


def card_memory(flavour: Flavour) -> int:
    """Return the memory of this machine's card, bytes; without a card that of a usual one."""
    try:
        return read_gpu(flavour).memory_bytes
    except (BackendError, MissingExtraError):
        return USUAL_MEMORY


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
