"""Contact sheet of images that were chosen for labeling, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmtool.classes import ClassSet
from gmtool.images import UInt8Array
from gmtool.report.html import SMALL_PX, css_color, render
from gmtool.report.pictures import Panel, image_and_mask


@dataclass(frozen=True)
class SheetEntry:
    """Chosen image with its predicted mask."""

    id: str
    reason: str
    """Why it was chosen."""
    panels: tuple[Panel, ...]
    """Image, and image under its mask."""
    is_small: bool
    """Scale the pictures without blur."""
    legend: tuple[tuple[str, str, float], ...]
    """Name, CSS colour and share in [0, 1] of the predicted classes, the largest first."""


def make_entry(name: str, reason: str, picture: UInt8Array, mask: UInt8Array, classes: ClassSet) -> SheetEntry:
    """Return the entry of an image, RGB, (H, W, 3) uint8, with its predicted mask, (H, W) uint8."""
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    present = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    legend = tuple(
        (classes.names[label], css_color(classes, label), counts[label] / mask.size) for label in present
    )
    panels = tuple(image_and_mask(picture, mask, classes))
    return SheetEntry(name, reason, panels, mask.shape[1] < SMALL_PX, legend)


def contact_sheet_html(
    entries: Sequence[SheetEntry], classes: ClassSet, *, model: str, strategy: str, pool: int
) -> str:
    """Return the page, with embedded pictures, without scripts and external files.

    Args:
        entries: Chosen images, the most wanted first.
        classes: Classes of the model.
        model: Path of the model.
        strategy: Name of the strategy.
        pool: Number of images of the pool.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    return render(
        "contact_sheet.html.j2",
        entries=entries,
        num_classes=len(classes),
        model=model,
        strategy=strategy,
        pool=pool,
    )
