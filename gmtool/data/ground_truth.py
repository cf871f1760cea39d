"""The ground truth of an image as a label map, whether a mask file or annotations hold it."""

from __future__ import annotations

from gmtool.classes import ClassSet
from gmtool.config import MaskValues
from gmtool.data.samples import Sample
from gmtool.errors import MaskSizeError
from gmtool.images import UInt8Array, displayed_size, open_image
from gmtool.masks.coco_annotations import CocoMask, rasterize, refuse_other_size
from gmtool.masks.files import read_mask


def read_truth(
    sample: Sample, classes: ClassSet, *, values: MaskValues, size: tuple[int, int] | None = None
) -> UInt8Array:
    """Return the ground truth of a labeled image, (H, W) uint8 of class indices and the ignore index.

    Args:
        sample: An image whose mask may be looked at.
        classes: What the labels may be. Annotations are matched with them by name.
        values: What the pixels of a mask file are; annotations need no such thing.
        size: (height, width) of the image as it is read; None leaves the size unchecked.

    Raises:
        MaskSizeError: The mask is not as large as the image.
        DataError: It cannot be read, or has something in it that is none of the classes.
    """
    assert sample.mask is not None
    if isinstance(sample.mask, CocoMask):
        # Before anything is painted: annotations may claim any size
        refuse_other_size(sample.mask, size or displayed_size(open_image(sample.image_path)))
        labels = rasterize(sample.mask, classes)
    else:
        labels = read_mask(sample.mask, classes, values=values)
    if size is not None and labels.shape != size:
        (height, width), (image_height, image_width) = labels.shape, size
        line = f"{sample.mask} is {width}x{height}, but its image is {image_width}x{image_height}"
        if labels.shape == size[::-1]:
            other = "ignore" if sample.reading.exif else "apply"
            line += f": was one of the two turned by the EXIF orientation? (--set data.exif={other})"
        raise MaskSizeError(line)
    return labels
