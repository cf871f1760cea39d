"""Read masks of class indices, raw ids or colours; write palette PNGs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmtool.classes import ClassSet, Color
from gmtool.config import MaskValues
from gmtool.errors import ColorMaskError, DataError, LabelError, RawIdError, some_names
from gmtool.files import write_atomically
from gmtool.images import MAX_PIXELS, UInt8Array, open_image
from gmtool.json_toml import shown
from gmtool.masks.label_runs import LabelRuns
from gmtool.masks.png import encode_png

VOID_COLOR: Color = (224, 224, 192)
"""Colour of ignored pixels in VOC's colour map."""
JPEG_MASK = "it is stored as JPEG, which changes labels at every edge: save masks as PNG"


def read_mask(path: Path, classes: ClassSet, *, values: MaskValues = "index") -> UInt8Array:
    """Return a label map, (H, W) uint8, of class indices and `classes.ignore_index`.

    Args:
        path: Single-channel image: palette, grey, 1-bit or 16-bit; also RGB of three equal channels; for `color`
            RGB or RGBA.
        classes: Classes of the labels.
        values: Encoding. `index`: class indices. `raw`: `classes.raw_ids`; other ids are ignored, as in
            Cityscapes. `color`: colours of `classes.palette` and `classes.ignore_colors`.

    Raises:
        ColorMaskError: Channels that differ, but `values` is not `color`.
        RawIdError: Raw ids, but `values` is `index`.
        LabelError: A label or a colour outside the classes.
        DataError: The file cannot be read.
    """
    image = open_image(path)
    if values == "color":
        return _index_of_colors(_decode(image, path, as_colors=True), classes, path, format_=image.format)
    if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
        labels = _decode(image, path, as_colors=False)
    else:
        labels = _only_channel(_decode(image, path, as_colors=True), path, mode=image.mode)
    if values == "raw":
        table = _index_of_raw_id(classes)
        # A negative label becomes a large one, which is no raw id either
        indices: UInt8Array = table[np.minimum(labels.astype(np.uint32, copy=False), len(table) - 1)]
        return indices
    valid = (labels >= 0) & (labels < len(classes))
    valid |= labels == classes.ignore_index
    if not valid.all():
        raise _out_of_range(path, np.unique(labels[~valid]).tolist(), classes, format_=image.format)
    return labels.astype(np.uint8, copy=False)


def encode_mask(mask: UInt8Array | LabelRuns, classes: ClassSet) -> bytes:
    """Return a label map (H, W) as a palette PNG with the colours of `color_table`."""
    return encode_png(mask, color_table(classes))


def write_mask(path: Path, mask: UInt8Array, classes: ClassSet) -> None:
    """Write a label map (H, W) as a palette PNG, atomically."""
    write_atomically(path, encode_mask(mask, classes))


def refuse_mask_size(size: tuple[int, ...], expected: tuple[int, int] | None, *, where: str) -> None:
    """Raise `DataError` for a mask with another size than its ground truth, or larger than `MAX_PIXELS`.

    Args:
        size: (height, width) in the header of its file.
        expected: (height, width) of the ground truth; None if unknown.
        where: Name of the file, for messages.
    """
    claimed = f"{where}: mask of {shown(size[1])}x{shown(size[0])} pixels"
    if expected is not None and size != expected:
        raise DataError(f"{claimed}, but its ground truth has {expected[1]}x{expected[0]}")
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{claimed}; expected 1 to {MAX_PIXELS}")


def _decode(image: Image.Image, path: Path, *, as_colors: bool) -> npt.NDArray[np.integer]:
    """Return stored labels, (H, W), or RGBA, (H, W, 4) uint8."""
    try:
        if as_colors and image.mode.startswith(("I", "F")):
            raise DataError(
                f"{path} is a mask of mode {image.mode}: it has no colours (--set data.mask_values=raw)"
            )
        labels = np.array(image.convert("RGBA") if as_colors else image)
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types for damaged files
        raise DataError(f"{path}: damaged mask: {error}") from error
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def _only_channel(rgba: npt.NDArray[np.integer], path: Path, *, mode: str) -> npt.NDArray[np.integer]:
    """Return the labels of an image of three equal channels, as some editors save grey.

    Raises:
        ColorMaskError: The channels differ.
    """
    first = rgba[..., 0]
    if (first == rgba[..., 1]).all() and (first == rgba[..., 2]).all():
        return np.ascontiguousarray(first)
    if not rgba[..., 1:3].any():
        raise ColorMaskError(
            f"{path} is a mask of mode {mode} with values in the red channel alone: save that channel as grey, or "
            "give its colours in classes.json (--set data.mask_values=color)"
        )
    raise ColorMaskError(
        f"{path} is a mask of mode {mode}; expected one channel of class indices: is it colour-coded? "
        "(--set data.mask_values=color, with the colours as palette of classes.json; gmtool data init finds them)"
    )


def _index_of_colors(
    rgba: npt.NDArray[np.integer], classes: ClassSet, path: Path, *, format_: str | None
) -> UInt8Array:
    colors = np.array([*classes.palette, *classes.ignore_colors], dtype=np.uint32) @ (1, 1 << 8, 1 << 16)
    order = np.argsort(colors)
    known = colors[order].astype(np.uint32)
    if (known[1:] == known[:-1]).any():
        twice = int(known[1:][known[1:] == known[:-1]][0])
        raise DataError(f"{path}: colour {_rgb(twice)} occurs twice in the classes")
    # The bytes of a pixel as one number, without alpha
    packed = np.ascontiguousarray(rgba).view("<u4")[..., 0] & 0xFFFFFF
    place = np.minimum(np.searchsorted(known, packed), len(known) - 1)
    unknown = known[place] != packed
    if unknown.any():
        is_grey = bool((rgba[..., 0] == rgba[..., 1]).all() and (rgba[..., 0] == rgba[..., 2]).all())
        raise LabelError(_unknown_colors(path, packed[unknown], packed.size, format_=format_, is_grey=is_grey))
    indices = np.full(len(known), classes.ignore_index, dtype=np.uint8)
    indices[: len(classes)] = range(len(classes))
    labels: UInt8Array = indices[order][place]
    return labels


def _unknown_colors(
    path: Path, found: npt.NDArray[np.integer], size: int, *, format_: str | None, is_grey: bool
) -> str:
    """Return the message on colours without a class, with their shares of all pixels, the largest first.

    Args:
        path: The mask.
        found: Colours of the pixels without a class, packed.
        size: Pixels of the mask.
        format_: Format of the file.
        is_grey: Whether the whole mask is grey.
    """
    colors, counts = np.unique(found, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    named = [f"{_rgb(int(colors[place]))} ({100 * counts[place] / size:.3g} %)" for place in order]
    line = (
        f"{path} has colours that no class has: {some_names(named, 5)}"
        if len(named) > 1
        else (f"{path} has colour {named[0]}, which no class has")
    )
    if format_ == "JPEG":
        return f"{line}: {JPEG_MASK}"
    if is_grey:
        return f"{line}: the mask is grey: are its values labels? (--set data.mask_values=index, or raw for ids)"
    return (
        f'{line}: give the colours of the classes as "palette" of classes.json, in the order of "names" (gmtool '
        'data init finds them); what is ignored belongs into "ignore_colors"'
    )


def _rgb(packed: int) -> str:
    return f"[{packed & 255}, {packed >> 8 & 255}, {packed >> 16}]"


def _index_of_raw_id(classes: ClassSet) -> UInt8Array:
    """Return class indices by raw id; the last entry is for all larger ids."""
    table = np.full(max(classes.raw_ids) + 2, classes.ignore_index, dtype=np.uint8)
    table[list(classes.raw_ids)] = range(len(classes))
    return table


@lru_cache(maxsize=4)
def color_table(classes: ClassSet, *, other: Color = (0, 0, 0), ignored: Color = VOID_COLOR) -> UInt8Array:
    """Return the colour of each of the 256 labels, (256, 3) uint8.

    Args:
        classes: Classes with their palette.
        other: Colour of labels without a class.
        ignored: Colour of the ignore index.
    """
    colors = np.full((256, 3), other, dtype=np.uint8)
    colors[: len(classes)] = classes.palette
    colors[classes.ignore_index] = ignored
    return colors


def _out_of_range(path: Path, labels: list[int], classes: ClassSet, *, format_: str | None) -> DataError:
    raw = [label for label in labels if label in classes.raw_ids]
    first = [*raw, *(label for label in labels if label not in raw)]
    line = (
        f"{path} has label{'s' if len(first) > 1 else ''} {some_names([str(label) for label in first], 8)}, but "
        f"the data set has {len(classes)} classes (ignore {classes.ignore_index})"
    )
    if format_ == "JPEG":
        return LabelError(f"{line}: {JPEG_MASK}")
    if raw:
        return RawIdError(f"{line}: are they raw ids, such as Cityscapes labelIds? (--set data.mask_values=raw)")
    return LabelError(f"{line}: are these the classes of the masks? (--classes FILE)")
