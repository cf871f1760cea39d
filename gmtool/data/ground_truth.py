"""Read the ground truth of an image, a mask file or COCO annotations, as a label map."""

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
        sample: Labeled image.
        classes: Classes of the labels. Annotations are matched by category name.
        values: Encoding of mask files; not used for annotations.
        size: (height, width) of the image as read; None: the size is not checked.

    Raises:
        MaskSizeError: Mask and image differ in size.
        DataError: The mask cannot be read, or has a label outside the classes.
    """
    assert sample.mask is not None
    if isinstance(sample.mask, CocoMask):
        # Before rasterising: annotations may claim any size
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
