"""Write some images of a source into the data set: links, masks that are painted, encoded and synced together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gmtool.classes import ClassSet
from gmtool.files import sha256_of_file, write_together
from gmtool.images import displayed_size_of
from gmtool.labels.dataset.manifest import Imported
from gmtool.labels.dataset.painting import Painted, paint_image
from gmtool.labels.dataset.placing import Place
from gmtool.labels.dataset.writing import mask_change, put_image
from gmtool.labels.shapes import LabeledImage, Problem
from gmtool.masks.files import encode_mask


class Placed(NamedTuple):
    """Image of a source with its place in the data set."""

    image: LabeledImage
    place: Place
    before: Imported | None
    """Record of an earlier import."""


class Outcome(NamedTuple):
    """Result of one image."""

    record: Imported | None
    """None: not in the data set."""
    painted: Painted
    """Without the label map, which would wait in memory."""
    change: str
    """What happened to the mask; empty if the image has no labels."""


@dataclass(frozen=True)
class ImageWriter:
    """Settings under which images are written."""

    out: Path
    classes: ClassSet
    index_of: Mapping[str, int]
    """Class index, or the ignore index, of every label."""
    ground: int
    """Value of pixels without a label."""
    smaller_on_top: bool
    empty_is: str
    copy: bool

    def write(self, images: Sequence[Placed]) -> list[Outcome]:
        """Write images and their masks; return what became of each.

        Raises:
            OSError: A file cannot be written.
        """
        outcomes, masks = self.prepare(images)
        store(masks)
        return outcomes

    def prepare(self, images: Sequence[Placed]) -> tuple[list[Outcome], list[tuple[Path, bytes]]]:
        """Link images; return what became of each, and the masks for `store`."""
        masks: list[tuple[Path, bytes]] = []
        return [self._prepare(*each, masks) for each in images], masks

    def _prepare(
        self, image: LabeledImage, place: Place, before: Imported | None, masks: list[tuple[Path, bytes]]
    ) -> Outcome:
        """Link an image, and add its mask to `masks` if it is to be written."""
        assert isinstance(image.image, Path)
        painted = Painted(None) if image.labels is None else self._paint(image)
        labels, painted = painted.labels, replace(painted, labels=None)
        # Only training takes images without a mask
        change = "" if image.labels is None else "without labels" if painted.is_empty else "left out"
        if labels is None and place.part != "train" and before is None:
            line = f"{image.name}: has no labels, which validation and test need: left out"
            lacking = Problem(f"images of part {place.part} without labels", image.name, line)
            return Outcome(None, replace(painted, problems=(*painted.problems, lacking)), change)
        target = before.image if before else f"images/{place.id}{image.image.suffix}"
        problems = put_image(image.image, self.out / target, copy=self.copy)
        if problems:
            painted = replace(painted, problems=(*painted.problems, *problems))
        earlier = before or Imported("", "")
        record = replace(earlier, source=image.name, image=target)
        if labels is None:
            return Outcome(record, painted, change)
        # The mask
        content, path = encode_mask(labels, self.classes), self.out / f"masks/{place.id}.png"
        change, digest = mask_change(path, content, labels, earlier.mask_sha256), earlier.mask_sha256
        if change in ("new", "updated"):
            masks.append((path, content))
            digest = sha256(content).hexdigest()
        elif change == "unchanged" and digest is None:  # an import was stopped after it wrote the mask
            digest = sha256_of_file(path)
        return Outcome(replace(record, mask=f"masks/{place.id}.png", mask_sha256=digest), painted, change)

    def _paint(self, image: LabeledImage) -> Painted:
        painted = paint_image(image, self.index_of, ground=self.ground, smaller_on_top=self.smaller_on_top)
        if not painted.is_empty or self.empty_is != "background":
            return painted
        # An image without any label is background, if the user says so
        assert isinstance(image.image, Path)
        return replace(painted, labels=np.full(displayed_size_of(image.image), self.ground, dtype=np.uint8))


def store(masks: Sequence[tuple[Path, bytes]]) -> None:
    """Write masks so that each is on the disk, whole.

    Raises:
        OSError: A file cannot be written.
    """
    for error in write_together(masks):
        if error is not None:
            raise error
