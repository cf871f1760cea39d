"""Import a labeling tool's files as a data set of layout `folder`, and update it by later imports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.class_lists import BACKGROUND_NAMES, ClassList
from gmtool.classes import ClassSet, load_classes
from gmtool.errors import DataError, some_names
from gmtool.files import sha256_of_file, write_atomically
from gmtool.images import displayed_size, open_image
from gmtool.labels.class_plan import ClassPlan, Ground, choose_ground, plan_classes
from gmtool.labels.manifest import Imported, Manifest, read_manifest, write_manifest
from gmtool.labels.painting import Painted, paint_image
from gmtool.labels.placing import Place, place_images
from gmtool.labels.recognize import open_source
from gmtool.labels.report import ImportReport, problem_lines
from gmtool.labels.shapes import LabeledImage, MaskFile, Problem, Source, ToolName
from gmtool.labels.writing import put_image, write_classes, write_lists, write_mask
from gmtool.masks.files import encode_mask

CLASSES, REPORT = "classes.json", "import_report.json"
SAMPLED = 40
"""Labeled images whose covered share is measured to choose what ground without a label is."""
OVERLAP_RULES = {"later": "the later shape is on top", "smaller": "the smaller shape is on top"}
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


def import_labels(source: Path, out: Path, options: ImportOptions, *, progress: ProgressBar) -> ImportReport:
    """Write the images and labels of a source into `out`, and update what an earlier import wrote.

    `images/PART/NAME` are links or copies, `masks/PART/NAME.png` label maps, `labeled.txt` the labeled training
    images, `classes.json` the classes, `import.json` the record for later imports. Files that the user changed
    since are kept.

    Raises:
        DataError: The source is not recognised or has no labels, or `out` is no data set that was imported.
        UsageError: A choice is the user's.
    """
    manifest = read_manifest(out) or Manifest()
    classes_path = out / CLASSES
    existing = load_classes(str(classes_path)) if classes_path.is_file() else None
    asked = load_classes(options.classes) if options.classes else None
    own = load_classes(str(source / CLASSES)) if asked is None and (source / CLASSES).is_file() else asked
    listed = None if own is None else _as_list(own)
    found = open_source(source, images=options.images, tool=options.tool, classes=listed, out=out)
    if not any(image.labels is not None for image in found.images):
        reasons = problem_lines(found.problems)
        raise DataError("; ".join([f"{source}: {found.found}, but no image has labels", *reasons]))
    report = ImportReport(
        found.found,
        overlap_rule=OVERLAP_RULES[found.on_top],
        of_masks=_has_masks(found),
        problems=list(found.problems),
    )
    found = _with_files(found, source, out, report)
    # What ground without a label is, and the classes
    earlier = manifest.unlabeled_is
    chosen = options.unlabeled_is or (earlier if earlier in ("background", "ignore") else None)
    share = 0.0 if chosen else _covered_share(found)
    of_shapes = [name for name in found.class_names if not (_has_masks(found) and name in BACKGROUND_NAMES)]
    ground, why = choose_ground(
        of_shapes,
        has_ground=found.has_ground,
        ambiguous=found.ambiguous,
        covered_share=share,
        asked="ignore" if chosen == "ignore" else "background" if chosen else None,
    )
    plan = plan_classes(
        found.class_names,
        found.colors,
        ground=ground,
        has_ground=found.has_ground,
        uses_background=any(name in BACKGROUND_NAMES for name in of_shapes),
        asked=asked,
        existing=existing,
    )
    report.ground = f"{ground} ({why if options.unlabeled_is or not chosen else 'as in the first import'})"
    report.classes, report.added_classes = plan.classes.names, plan.added if existing else ()
    _tell_unknown(plan, report)
    # Masks
    out.mkdir(parents=True, exist_ok=True)
    if not manifest.images:
        write_manifest(out, replace(manifest, unlabeled_is=ground))  # from here on the folder is gmtool's
    write_classes(classes_path, plan.classes, existing)
    job = _Job(found, plan, ground, out, options, manifest, report)
    images = job.run(progress)
    # Lists and record
    write_lists(out, images, manifest, ground, report)
    if options.val_share and not report.labeled.get("val"):
        line = "no validation part, which needs two labeled images: label more, or train with --val LIST"
        report.problems.append(Problem("no validation part", str(out), line))
    write_atomically(out / REPORT, json.dumps(report.to_dict(), indent=1) + "\n")
    return report


class _Job:
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
            [image.labels is not None for image in images],
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
                    known[place.id] = imported
                    self._count(painted, change)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.report.covered_share = self.covered_px / max(1, self.px)
        return known

    def _import(self, image: LabeledImage, place: Place) -> tuple[Imported, Painted, str]:
        """Write one image and its mask; return its record, what was painted (without the label map, which would
        wait in memory), and what happened to the mask.
        """
        before = self.manifest.images.get(place.id)
        assert isinstance(image.image, Path)
        target = before.image if before else f"images/{place.id}{image.image.suffix}"
        problem = put_image(image.image, self.out / target, copy=self.options.copy)
        record = replace(before or Imported("", ""), source=image.name, image=target)
        if image.labels is None:
            return record, Painted(None, problems=problem), ""
        painted = paint_image(image, self.source, self.plan.index_of, ground=self.ground)
        painted = self._with_ground(painted, image)
        painted = replace(painted, problems=(*painted.problems, *problem))
        if painted.labels is None:
            return record, painted, "without labels" if painted.is_empty else "left out"
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


def _as_list(classes: ClassSet) -> ClassList:
    """Return the names and colours of the values of plain masks."""
    values = sorted(zip(classes.raw_ids, classes.names, classes.palette, strict=True))
    return ClassList({name: value for value, name, _ in values}, {name: color for _, name, color in values})


def _has_masks(found: Source) -> bool:
    return any(isinstance(image.labels, MaskFile) for image in found.images)


def _with_files(found: Source, source: Path, out: Path, report: ImportReport) -> Source:
    """Return the source with images that exist; embedded ones are written into the data set's folder.

    Raises:
        DataError: No labeled image was found.
    """
    kept, missing, seen = [], [], set()
    for image in found.images:
        if image.name in seen:
            line = f"{image.where or image.name}: {image.name} is listed twice: the first was taken"
            report.problems.append(Problem("images listed twice", image.name, line))
        elif image.image is None:
            missing.append(image.name)
        else:
            seen.add(image.name)
            kept.append(image)
    report.problems += [
        Problem("images not found", name, f"{name}: no image of this name below {source}: left out")
        for name in missing
    ]
    if missing and not any(image.labels is not None for image in kept):
        raise DataError(
            f"{source}: {found.found}, but none of its images lies below it ({some_names(missing)}): give their "
            "folder with --images DIR"
        )
    return replace(found, images=tuple(_unpacked(image, out) for image in kept))


def _unpacked(image: LabeledImage, out: Path) -> LabeledImage:
    """Return an embedded image as a file in `out/embedded`."""
    if not isinstance(image.image, bytes):
        return image
    suffix = ".png" if image.image.startswith(b"\x89PNG") else ".jpg"
    path = out / "embedded" / f"{sha256(image.image).hexdigest()[:32]}{suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, image.image)
    return replace(image, image=path)


def _covered_share(found: Source) -> float:
    """Return the share of pixels with a label other than background, of a sample of the labeled images."""
    if found.has_ground:
        return 1.0
    labeled = [image for image in found.images if image.labels is not None]
    step = max(1, len(labeled) // SAMPLED)
    index_of = dict.fromkeys((*found.class_names, "__ignore__"), 1)
    if _has_masks(found):
        index_of |= dict.fromkeys(BACKGROUND_NAMES, 0)
    painted = [paint_image(image, found, index_of, ground=0).labels for image in labeled[::step][:SAMPLED]]
    shares = [float((labels == 1).mean()) for labels in painted if labels is not None]
    return sum(shares) / max(1, len(shares))


def _tell_unknown(plan: ClassPlan, report: ImportReport) -> None:
    for name in sorted(plan.unknown):
        line = f"label {name} is none of the classes: its pixels are ignored"
        report.problems.append(Problem("unknown labels", name, line))
