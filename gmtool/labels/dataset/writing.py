"""Write the images, masks and lists of an imported data set; files that the user changed are kept."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np

from gmtool.classes import ClassSet
from gmtool.data.splits import format_split
from gmtool.errors import DataError
from gmtool.files import sha256_of_file, temporary_path, write_atomically
from gmtool.images import UInt8Array
from gmtool.labels.dataset.class_plan import Ground
from gmtool.labels.dataset.manifest import Imported, Manifest, is_unchanged, write_manifest
from gmtool.labels.dataset.report import ImportReport
from gmtool.labels.mask_files import read_pixels
from gmtool.labels.shapes import Problem
from gmtool.masks.label_runs import LabelRuns

LABELED = "labeled.txt"
KEPT = "changed by hand and kept"


def write_classes(path: Path, classes: ClassSet, existing: ClassSet | None) -> None:
    """Write `classes.json`, unless it holds these classes already."""
    if classes != existing:
        write_atomically(path, json.dumps(classes.to_dict(), indent=1) + "\n")


def put_image(image: Path, target: Path, *, copy: bool) -> tuple[Problem, ...]:
    """Link or copy an image, unless it is there."""
    problems: list[Problem] = []
    if not copy:
        embedded = image.parent.name == "embedded" and image.parent.parent in target.parents
        try:
            real = os.path.realpath(image)
            inside = os.path.relpath(real, os.path.realpath(target.parent)) if embedded else real
            os.symlink(inside, target)  # noqa: PTH211  of thousands of images, objects take as long as the system
        except FileExistsError:
            if target.exists():
                return ()
            target.unlink()  # its image was moved
            return put_image(image, target, copy=copy)
        except OSError as error:  # Windows without the right to make links
            line = f"{target}: cannot be a link ({error.strerror}): copied"
            problems.append(Problem("copied images", str(target), line))
        else:
            return ()
    if target.is_symlink() and not target.exists():
        target.unlink()
    if target.exists():
        return ()
    temporary = temporary_path(target.parent)
    shutil.copyfile(image, temporary)
    temporary.replace(target)
    return tuple(problems)


def mask_change(path: Path, content: bytes, labels: UInt8Array | LabelRuns, recorded: str | None) -> str:
    """Return whether a mask is to be written: `new` or `updated`, or why not: `unchanged`, `KEPT`.

    A mask that holds these labels already, and one that the user changed, stay.

    Args:
        path: Mask file.
        content: Its new content.
        labels: Label map of the content.
        recorded: Hash of the mask as an earlier import wrote it.
    """
    if not path.exists():
        return "new"
    before = path.read_bytes()
    if before == content or _holds(path, labels):
        return "unchanged"
    return "updated" if sha256(before).hexdigest() == recorded else KEPT


def _holds(path: Path, labels: UInt8Array | LabelRuns) -> bool:
    """Return whether a mask has these labels: with a new class, the palettes of all masks change."""
    try:
        pixels = labels.to_map() if isinstance(labels, LabelRuns) else labels
        return bool(np.array_equal(read_pixels(path), pixels))
    except DataError:
        return False


def write_lists(
    out: Path, images: dict[str, Imported], manifest: Manifest, ground: Ground, report: ImportReport
) -> None:
    """Write labeled.txt, adding to what the user wrote into it, and the record."""
    for part in ("train", "val", "test"):
        ids = [name for name in images if name.startswith(f"{part}/")]
        if ids:
            report.parts[part] = len(ids)
            report.labeled[part] = sum(images[name].mask is not None for name in ids)
    labeled = sorted(name for name, each in images.items() if each.mask and name.startswith("train/"))
    path = out / LABELED
    text = format_split(labeled)
    if path.exists() and not is_unchanged(path, manifest.labeled_sha256):
        kept = path.read_text(encoding="utf-8-sig")
        before = {name for name, each in manifest.images.items() if each.mask}
        listed = {line.split("\t")[0].strip() for line in kept.splitlines()}
        new = [name for name in labeled if name not in before and name not in listed]
        text = kept + ("" if kept.endswith("\n") or not kept else "\n") + format_split(new)
        line = f"{path} was changed by hand: {len(new)} new images were added to it"
        report.problems.append(Problem("lists changed by hand", str(path), line))
    write_atomically(path, text)
    write_manifest(out, Manifest(images=images, labeled_sha256=sha256_of_file(path), unlabeled_is=ground))
