"""Output formats of masks: file names and encoded bytes of each."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np

from gmtool.artifact.spec import OutputName
from gmtool.classes import ClassSet, load_classes
from gmtool.errors import ConfigError, DataError
from gmtool.images import UInt8Array
from gmtool.labels.outlines import OutlineOptions
from gmtool.masks.coco_annotations import ImageId
from gmtool.masks.files import VOID_COLOR, color_table, encode_mask
from gmtool.masks.png import PNG_COMPRESSION, encode_png
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.outputs.coco import encode_entries, image_id_of
from gmtool_serving.outputs.overlay import draw_overlay, paint
from gmtool_serving.outputs.tool_formats import TOOL_FORMATS, ToolFormat, is_tool_format, tool_content, tool_path

MaskFormat = Literal["voc", "voc-submission", "cityscapes", "trainids", "color", "overlay", "coco", "npz"]
FormatName = MaskFormat | ToolFormat
FORMAT_NAMES: tuple[FormatName, ...] = (*get_args(MaskFormat), *TOOL_FORMATS)

VOC_RESULTS = PurePosixPath("results/VOC2012/Segmentation/comp6_test_cls")
"""Folder that VOC's development kit reads; in competition 6 any training data is allowed."""
COCO_PIECES = "pieces"
"""Folder of the COCO results of single images, which `finish` merges."""
CITYSCAPES_IMAGE = "_leftImg8bit"
CITYSCAPES_LABELS = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
"""Cityscapes' name of each label id, 0 to 33."""
NPZ_COMPRESSION = 1
"""3.5 times faster than zlib's 6 for files a seventh larger (measured on grey levels of a street scene)."""

_SUFFIXES: dict[FormatName, str] = {
    **{"voc": ".png", "trainids": ".png", "color": ".png"},
    **{"overlay": ".jpg", "coco": ".json", "npz": ".npz"},
}


@dataclass(frozen=True)
class MaskItem:
    """Mask of one image, with what some formats need beside it."""

    output: PurePosixPath
    """`InputImage.output`: relative path without a suffix."""
    mask: UInt8Array
    """Class indices (or `ignore_index`), (H, W)."""
    confidence: UInt8Array | None = None
    """Largest probability times 255, (H, W); for formats with `needs_confidence`."""
    pixels: UInt8Array | None = None
    """Image, RGB, (H, W, 3); for formats with `needs_pixels`."""
    coco_id: ImageId | None = None
    """`InputImage.coco_id`."""
    source: str | None = None
    """`InputImage.location`, by which labeling tools find the image."""
    outlines: OutlineOptions = field(default_factory=OutlineOptions)
    """Detail of the shapes of labeling tools."""


def needs_confidence(name: FormatName) -> bool:
    """Return whether the format stores confidence."""
    return name == "npz"


def needs_pixels(name: FormatName) -> bool:
    """Return whether the format shows the image."""
    return name == "overlay"


def format_dirs(out: Path, formats: Sequence[FormatName]) -> dict[FormatName, Path]:
    """Return the folder of each format: `out` for one, else `out/FORMAT` for each of them.

    No two formats share a folder: cityscapesScripts takes a colour mask beside a label mask for a second
    prediction of the same image.
    """
    return {name: out if len(set(formats)) == 1 else out / name for name in formats}


def check_formats(
    formats: Sequence[FormatName],
    classes: ClassSet,
    outputs: Sequence[OutputName],
    outlines: OutlineOptions | None = None,
) -> None:
    """Check before inference that a model supports the formats.

    Args:
        formats: Requested formats.
        classes: Classes of the model.
        outputs: Outputs of its graph (`ArtifactSpec.outputs`).
        outlines: Detail of the shapes of labeling tools; None for the default.

    Raises:
        ConfigError: The format of a benchmark with other classes, or confidence from a model without it.
    """
    if "voc-submission" in formats and _plain(classes.names) != _plain(load_classes("voc").names):
        raise ConfigError(
            f"--format voc-submission is for the 21 classes of PASCAL VOC in their order, but the model has "
            f"{len(classes)}, {classes.names[0]} to {classes.names[-1]}: use --format voc, for any classes"
        )
    if "cityscapes" in formats:
        for label, raw_id in zip(classes.names, classes.raw_ids, strict=True):
            if raw_id >= len(CITYSCAPES_LABELS) or CITYSCAPES_LABELS[raw_id] != label:
                raise ConfigError(
                    f"--format cityscapes writes Cityscapes' label ids, but the model's class {label} has raw id "
                    f"{raw_id}, which is not its label id: use --format trainids or voc, for any classes"
                )
    uses = {"--format npz stores": any(map(needs_confidence, formats))}
    uses["--min-confidence needs"] = outlines is not None and outlines.min_confidence > 0
    for what, is_used in uses.items():
        if is_used and not {"confidence", "logits"} & set(outputs):
            raise ConfigError(
                f"{what} confidence, but the model's only output is {', '.join(outputs)}: "
                "export it with --output mask+confidence"
            )


def check_names(formats: Sequence[FormatName], images: Iterable[InputImage]) -> None:
    """Check that no two images get the same name: VOC and Cityscapes drop folders, COCO uses ids.

    Raises:
        DataError: Two images have the same name in a format, or a labeling tool would have to open a video frame.
    """
    tools, images = [name for name in formats if is_tool_format(name)], list(images)
    frame = next((image for image in images if tools and image.frame is not None), None)
    if frame is not None:
        raise DataError(f"--format {tools[0]} names image files, but {frame} has none: save the frames as images")
    formats = [name for name in formats if name in ("voc-submission", "cityscapes", "coco")]
    taken: dict[tuple[str, ImageId], InputImage] = {}
    for image in images if formats else ():
        for name in formats:
            key: ImageId = paths(name, image.output)[0].name
            key = image_id_of(image.output, image.coco_id) if name == "coco" else key
            other = taken.setdefault((name, key), image)
            if other is not image:
                raise DataError(
                    f"{other} and {image} would both be {key} in --format {name}: predict them separately"
                )


def paths(name: FormatName, output: PurePosixPath) -> list[PurePosixPath]:
    """Return the file paths of one image, relative to the format's folder."""
    if is_tool_format(name):
        return [tool_path(name, output)]
    if name == "voc-submission":
        return [VOC_RESULTS / f"{output.name}.png"]
    if name == "cityscapes":
        return [output.with_name(f"{output.name.removesuffix(CITYSCAPES_IMAGE)}_pred.png")]
    file = output.with_name(output.name + _SUFFIXES[name])
    return [COCO_PIECES / file if name == "coco" else file]


def encode(
    name: FormatName, item: MaskItem, classes: ClassSet, *, folder: str | None = None
) -> list[tuple[PurePosixPath, bytes]]:
    """Return the files of one image: path relative to the format's folder (see `paths`), and content.

    Deterministic and thread-safe.

    Args:
        name: Format.
        item: Mask with its name.
        classes: Classes of the mask.
        folder: Folder of the format, from which labelme finds the image; None if unknown.
    """
    if is_tool_format(name):
        content = tool_content(
            name,
            item.output,
            item.mask,
            classes,
            item.outlines,
            confidence=item.confidence,
            source=item.source,
            folder=folder,
        )
    else:
        content = _content(name, item, classes)
    return list(zip(paths(name, item.output), [content], strict=True))


def _content(name: FormatName, item: MaskItem, classes: ClassSet) -> bytes:
    mask = item.mask
    if name in ("voc", "voc-submission"):
        if name == "voc-submission":  # the official evaluation refuses 255
            mask = np.where(mask == classes.ignore_index, 0, mask).astype(np.uint8)
        return encode_mask(mask, classes)
    if name in ("cityscapes", "trainids"):
        raw = name == "cityscapes"
        labels = _labels_on_disk(classes.raw_ids if raw else range(len(classes)), ignored=0 if raw else 255)
        return encode_png(np.array(labels, dtype=np.uint8)[mask], None)
    if name == "color":
        buffer = io.BytesIO()
        paint(mask, colors_of(classes)).save(buffer, "PNG", compress_level=PNG_COMPRESSION)
        return buffer.getvalue()
    if name == "coco":
        return encode_entries(mask, image_id_of(item.output, item.coco_id), classes)
    if name == "overlay":
        assert item.pixels is not None  # see needs_pixels
        return draw_overlay(item.pixels, mask, classes, colors_of(classes))
    assert item.confidence is not None  # see needs_confidence
    return _npz({"mask": mask, "confidence": item.confidence})


def colors_of(classes: ClassSet) -> UInt8Array:
    """Return the colour of each label, (256, 3) uint8; ignored pixels have the classes' own colour, or VOC's."""
    return color_table(classes, ignored=classes.ignore_colors[0] if classes.ignore_colors else VOID_COLOR)


def _plain(names: Iterable[str]) -> list[str]:
    """Return names in lower case, letters and digits only: "TV/monitor" becomes "tvmonitor"."""
    return ["".join(filter(str.isalnum, name.lower())) for name in names]


def _labels_on_disk(labels: Iterable[int], *, ignored: int) -> list[int]:
    """Return the value on disk for each of the 256 mask values."""
    listed = list(labels)
    return listed + [ignored] * (256 - len(listed))


def _npz(arrays: dict[str, UInt8Array]) -> bytes:
    """Return the bytes of an npz archive, as `numpy.savez_compressed` writes it, but compressed faster."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=NPZ_COMPRESSION) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
