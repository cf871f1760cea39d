"""Paint and write every image of a source, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.errors import DataError
from gmtool.files import sha256_of_file
from gmtool.images import displayed_size, open_image
from gmtool.labels.dataset.class_plan import ClassPlan, Ground
from gmtool.labels.dataset.manifest import Imported, Manifest
from gmtool.labels.dataset.painting import Painted, paint_image
from gmtool.labels.dataset.placing import Place, place_images
from gmtool.labels.dataset.report import ImportReport
from gmtool.labels.dataset.writing import put_image, write_mask
from gmtool.labels.shapes import LabeledImage, MaskFile, Problem, Source, ToolName
from gmtool.masks.files import encode_mask

THREADS = 8
"""Threads that paint, encode and write: each waits for its file to reach the disk."""
ProgressBar = Callable[[Iterable[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class ImportOptions:
    """Choices of the user."""

    tool: ToolName | None = None
    """Tool that wrote the source; None: recognised."""
    images: Path | None = None
    """Folder of the images, if they are elsewhere."""
    classes: str | None = None
    """Class set, or file of classes; other labels are ignored."""
    unlabeled_is: Ground | None = None
    """What ground without a label is; None: chosen, or asked for."""
    empty_is: str = "unlabeled"
    """`unlabeled` or `background`: images that the tool lists without any label."""
    val_share: float = 0.2
    """Share of labeled images for validation, if the source has no validation part."""
    group: str | None = None
    """Regular expression; images whose names match alike are in one part."""
    copy: bool = False
    """Copy images instead of linking them."""


class ImportJob:
    """Paint and write every image of a source."""

    def __init__(
        self,
        source: Source,
        plan: ClassPlan,
        ground: Ground,
        out: Path,
        options: ImportOptions,
        manifest: Manifest,
        report: ImportReport,
    ) -> None:
        self.source, self.plan, self.out, self.options = source, plan, out, options
        self.manifest, self.report = manifest, report
        background = plan.classes.background
        self.ground = plan.classes.ignore_index if ground == "ignore" or background is None else background
        self.px = self.covered_px = 0

    def run(self, progress: ProgressBar) -> dict[str, Imported]:
        """Return the images of this and earlier imports, by id."""
        images = self.source.images
        places = place_images(
            images,
            [self._may_validate(image) for image in images],
            self.manifest.images,
            val_share=self.options.val_share,
            group_pattern=self.options.group,
        )
        for folder in {Path(kind) / Path(place.id).parent for place in places for kind in ("images", "masks")}:
            (self.out / folder).mkdir(parents=True, exist_ok=True)
        known = dict(self.manifest.images)
        with ThreadPoolExecutor(THREADS) as pool:
            done = pool.map(self._import, images, places)
            try:
                for place, (imported, painted, change) in zip(places, progress(done, len(images)), strict=True):
                    if imported is not None:
                        known[place.id] = imported
                    self._count(painted, change)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.report.covered_share = self.covered_px / max(1, self.px)
        return known

    def _may_validate(self, image: LabeledImage) -> bool:
        """Return whether an image may get a mask: mask files, and shapes, if there are some."""
        if image.labels is None or isinstance(image.labels, MaskFile) or self.options.empty_is == "background":
            return image.labels is not None
        try:
            return bool(image.labels((1, 1)).shapes)
        except DataError:
            return False

    def _import(self, image: LabeledImage, place: Place) -> tuple[Imported | None, Painted, str]:
        """Write one image and its mask; return its record, what was painted (without the label map, which would
        wait in memory), and what happened to the mask.
        """
        before = self.manifest.images.get(place.id)
        assert isinstance(image.image, Path)
        painted = Painted(None)
        if image.labels is not None:
            painted = self._with_ground(
                paint_image(image, self.source, self.plan.index_of, ground=self.ground), image
            )
        # Only training takes images without a mask
        change = "" if image.labels is None else "without labels" if painted.is_empty else "left out"
        if painted.labels is None and place.part != "train" and before is None:
            line = f"{image.name}: has no labels, which validation and test need: left out"
            lacking = Problem(f"images of part {place.part} without labels", image.name, line)
            return None, replace(painted, problems=(*painted.problems, lacking)), change
        target = before.image if before else f"images/{place.id}{image.image.suffix}"
        problems = put_image(image.image, self.out / target, copy=self.options.copy)
        painted = replace(painted, problems=(*painted.problems, *problems))
        record = replace(before or Imported("", ""), source=image.name, image=target)
        if painted.labels is None:
            return record, painted, change
        # The mask
        content = encode_mask(painted.labels, self.plan.classes)
        mask = self.out / "masks" / f"{place.id}.png"
        change = write_mask(mask, content, painted.labels, record.mask_sha256)
        if change in ("new", "updated"):
            record = replace(record, mask_sha256=sha256(content).hexdigest())
        elif change == "unchanged" and record.mask_sha256 is None:  # an import was stopped after it wrote the mask
            record = replace(record, mask_sha256=sha256_of_file(mask))
        return replace(record, mask=f"masks/{place.id}.png"), replace(painted, labels=None), change

    def _with_ground(self, painted: Painted, image: LabeledImage) -> Painted:
        """Return an image without any label as background, if the user says that it is."""
        if not painted.is_empty or self.options.empty_is != "background":
            return painted
        assert isinstance(image.image, Path)
        size = displayed_size(open_image(image.image))
        return replace(painted, labels=np.full(size, self.ground, dtype=np.uint8))

    def _count(self, painted: Painted, change: str) -> None:
        report = self.report
        report.problems += painted.problems
        if change:
            report.changes[change] += 1
        self.px += painted.size_px
        self.covered_px += painted.covered_px
        report.objects.update(painted.objects)
        report.images_with.update(painted.objects.keys())
        report.overlap_px += painted.overlap_px
        report.overlap_images += painted.overlap_px > 0
