"""Paint and write every image of a source, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from gmtool.errors import DataError
from gmtool.files import sweep_leftovers
from gmtool.labels.dataset.class_plan import ClassPlan, Ground
from gmtool.labels.dataset.images import ImageWriter, Outcome, Placed
from gmtool.labels.dataset.manifest import Imported, Manifest
from gmtool.labels.dataset.painting import Painted
from gmtool.labels.dataset.placing import place_images
from gmtool.labels.dataset.processes import TOGETHER, KeptShapes, Processes, in_order
from gmtool.labels.dataset.report import ImportReport
from gmtool.labels.dataset.worker import THREADS
from gmtool.labels.shapes import LabeledImage, MaskFile, Source, ToolName

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
    processes: int | None = None
    """Processes for files of labelme; None: as many as there are processors, if there are hundreds of files."""


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
        processes: Processes,
    ) -> None:
        self.source, self.out, self.options = source, out, options
        self.manifest, self.report, self.processes = manifest, report, processes
        classes, background = plan.classes, plan.classes.background
        self.writer = ImageWriter(
            out,
            classes,
            plan.index_of,
            ground=classes.ignore_index if ground == "ignore" or background is None else background,
            smaller_on_top=source.on_top == "smaller",
            empty_is=options.empty_is,
            copy=options.copy,
        )
        self.px = self.covered_px = 0

    def run(self, progress: ProgressBar) -> dict[str, Imported]:
        """Return the images of this and earlier imports, by id."""
        images, known = self.source.images, dict(self.manifest.images)
        places = place_images(
            images,
            [self._may_validate(image) for image in images],
            known,
            val_share=self.options.val_share,
            group_pattern=self.options.group,
        )
        for folder in {Path(kind) / Path(place.id).parent for place in places for kind in ("images", "masks")}:
            (self.out / folder).mkdir(parents=True, exist_ok=True)
            sweep_leftovers(self.out / folder)
        placed = [Placed(image, place, known.get(place.id)) for image, place in zip(images, places, strict=True)]
        with closing(self._write(placed)) as outcomes:
            for place, outcome in zip(places, progress(outcomes, len(images)), strict=True):
                if outcome.record is not None:
                    known[place.id] = outcome.record
                self._count(outcome.painted, outcome.change)
        self.report.covered_share = self.covered_px / max(1, self.px)
        return known

    def _write(self, placed: list[Placed]) -> Generator[Outcome]:
        """Yield the outcome of each image, in order."""
        self.processes.prepare(self.writer)
        with ThreadPoolExecutor(THREADS) as pool:

            def start(group: list[Placed]) -> Future[list[Outcome]]:
                if isinstance(group[0].image.labels, KeptShapes):
                    return self.processes.write(group)
                return pool.submit(self.writer.write, group)

            try:
                for outcomes in in_order(start, _groups(placed), self.processes.started_ahead):
                    yield from outcomes
            finally:
                pool.shutdown(cancel_futures=True)

    def _may_validate(self, image: LabeledImage) -> bool:
        """Return whether an image may get a mask: mask files, and shapes, if there are some."""
        if image.labels is None or isinstance(image.labels, MaskFile) or self.options.empty_is == "background":
            return image.labels is not None
        if image.is_drawn is not None:
            return image.is_drawn
        try:
            return bool(image.labels((1, 1)).shapes)
        except DataError:
            return False

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


def _groups(placed: list[Placed]) -> Iterator[list[Placed]]:
    """Yield images that are written together, in order; those whose shapes one child keeps."""

    def request(each: Placed) -> int | None:
        return each.image.labels.request if isinstance(each.image.labels, KeptShapes) else None

    for _, images in groupby(placed, request):
        rest = iter(images)
        while group := list(islice(rest, TOGETHER)):
            yield group
