"""Import a labeling tool's files as a data set of layout `folder`, and update it by later imports."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from gmtool.class_lists import BACKGROUND_NAMES, ClassList
from gmtool.classes import ClassSet, load_classes
from gmtool.data.datasets import FEWEST_LABELED
from gmtool.errors import DataError, some_names
from gmtool.files import write_atomically
from gmtool.images import decode_image
from gmtool.labels.archive import is_archive, unpacked
from gmtool.labels.dataset.class_plan import ClassPlan, choose_ground, plan_classes
from gmtool.labels.dataset.job import ImportJob, ImportOptions, ProgressBar
from gmtool.labels.dataset.manifest import Manifest, read_manifest, write_manifest
from gmtool.labels.dataset.painting import paint_image
from gmtool.labels.dataset.processes import Processes
from gmtool.labels.dataset.report import ImportReport, problem_lines
from gmtool.labels.dataset.writing import write_classes, write_lists
from gmtool.labels.recognize import open_source
from gmtool.labels.shapes import LabeledImage, MaskFile, Problem, Source
from gmtool.masks.label_runs import LabelRuns

CLASSES, REPORT = "classes.json", "import_report.json"
SAMPLED = 40
"""Labeled images whose covered share is measured to choose what ground without a label is."""
OVERLAP_RULES = {"later": "the later shape is on top", "smaller": "the smaller shape is on top"}


def import_labels(source: Path, out: Path, options: ImportOptions, *, progress: ProgressBar) -> ImportReport:
    """Write the images and labels of a source into `out`, and update what an earlier import wrote.

    `images/PART/NAME` are links, or copies of the images of an archive; `masks/PART/NAME.png` are label maps,
    `labeled.txt` the labeled training images, `classes.json` the classes, `import.json` the record for later
    imports. Files that the user changed since are kept.

    Raises:
        DataError: The source is not recognised or has no labels, or `out` is no data set that was imported.
        UsageError: A choice is the user's.
    """
    if is_archive(source):
        read_manifest(out)  # refuses before anything is unpacked
        with unpacked(source, beside=out) as folder:
            return import_labels(folder, out, replace(options, copy=True), progress=progress)
    with Processes(options.processes) as processes:
        return _import(source, out, options, progress=progress, processes=processes)


def _import(
    source: Path, out: Path, options: ImportOptions, *, progress: ProgressBar, processes: Processes
) -> ImportReport:
    manifest = read_manifest(out) or Manifest()
    classes_path = out / CLASSES
    existing = load_classes(str(classes_path)) if classes_path.is_file() else None
    asked = load_classes(options.classes) if options.classes else None
    if existing is not None and asked is not None and _are_unnamed(existing):
        existing = None  # names for values that had none
    own = load_classes(str(source / CLASSES)) if asked is None and (source / CLASSES).is_file() else asked
    own = own or (existing if existing is not None and not _are_unnamed(existing) else None)
    listed = None if own is None else _as_list(own)
    found = open_source(
        source, images=options.images, tool=options.tool, classes=listed, out=out, reading=processes.read
    )
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
    has_background = not _has_masks(found) and _has_shapes_of(found, BACKGROUND_NAMES)
    of_shapes = [name for name in found.class_names if has_background or name not in BACKGROUND_NAMES]
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
        uses_background=has_background,
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
    job = ImportJob(found, plan, ground, out, options, manifest, report, processes)
    images = job.run(progress)
    # Lists and record
    write_lists(out, images, manifest, ground, report)
    if options.val_share and not report.labeled.get("val"):
        line = "no validation part, which needs two labeled images: label more, or train with --val LIST"
        report.problems.append(Problem("no validation part", str(out), line))
    in_training = report.labeled.get("train", 0)
    if in_training + report.labeled.get("val", 0) > 1 and in_training < FEWEST_LABELED:
        line = f"{in_training} labeled training images, gmtool train needs {FEWEST_LABELED}: label more"
        if held := report.labeled.get("val", 0):
            line += f" ({held} of the labeled images went to validation)"
        report.problems.append(Problem("too few labels", str(out), line))
    write_atomically(out / REPORT, json.dumps(report.to_dict(), indent=1) + "\n")
    return report


def _are_unnamed(classes: ClassSet) -> bool:
    """Return whether the classes are numbers that the import of plain masks made up."""
    names = [name for name in classes.names if name not in BACKGROUND_NAMES]
    return all(re.fullmatch(r"class_\d+", name) for name in names)


def _as_list(classes: ClassSet) -> ClassList:
    """Return the names and colours of the values of plain masks."""
    values = sorted(zip(classes.raw_ids, classes.names, classes.palette, strict=True))
    return ClassList({name: value for value, name, _ in values}, {name: color for _, name, color in values})


def _has_masks(found: Source) -> bool:
    return any(isinstance(image.labels, MaskFile) for image in found.images)


def _has_shapes_of(found: Source, names: Collection[str]) -> bool:
    """Return whether a shape has one of these labels; tools list labels that nobody drew."""
    if not any(name in names for name in found.class_names):
        return False
    for image in found.images:
        try:
            drawn = image.labels((1, 1)).shapes if callable(image.labels) else ()
        except DataError:  # told when it is painted
            continue
        if any(shape.label in names for shape in drawn):
            return True
    return False


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
    unpacked = [_unpacked(image, out, report) for image in kept]
    return replace(found, images=tuple(image for image in unpacked if image is not None))


def _unpacked(image: LabeledImage, out: Path, report: ImportReport) -> LabeledImage | None:
    """Return an embedded image as a file in `out/embedded`; None if it is damaged."""
    if not isinstance(image.image, bytes):
        return image
    suffix = ".png" if image.image.startswith(b"\x89PNG") else ".jpg"
    path = out / "embedded" / f"{sha256(image.image).hexdigest()[:32]}{suffix}"
    if not path.is_file():
        try:
            decode_image(image.image, Path(image.where))
        except DataError as error:
            report.problems.append(
                Problem("unusable images or labels", image.name, f"its image in {error}: left out")
            )
            return None
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
    painted = [paint_image(image, index_of, ground=0).labels for image in labeled[::step][:SAMPLED]]
    maps = [each.to_map() if isinstance(each, LabelRuns) else each for each in painted if each is not None]
    shares = [float((labels == 1).mean()) for labels in maps]
    return sum(shares) / max(1, len(shares))


def _tell_unknown(plan: ClassPlan, report: ImportReport) -> None:
    for name in sorted(plan.unknown):
        line = f"label {name} is none of the classes: its pixels are ignored"
        report.problems.append(Problem("unknown labels", name, line))
