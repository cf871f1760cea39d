"""Answers to images: masks in the formats of `gmtool predict`, and JSON."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from gmtool.errors import needs_extra
from gmtool.images import UInt8Array
from gmtool.masks.png import encode_png
from gmtool_serving.http.wanted import MEDIA_TYPES, Wanted
from gmtool_serving.outputs.confidence import ignore_unsure
from gmtool_serving.outputs.formats import MaskItem, encode
from gmtool_serving.pipeline.compute import Labels


@dataclass(frozen=True)
class LabeledImage:
    """A decoded image and its labels."""

    name: str
    """File name that the client gave."""
    pixels: UInt8Array
    """RGB, (H, W, 3)."""
    labels: Labels
    warning: str | None = None
    """Remark on how the image was read."""


@dataclass(frozen=True)
class Answer:
    """Encoded mask of one image."""

    name: str
    """Name of a file for it."""
    content: bytes
    media_type: str
    warning: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside those of length and type."""
        headers = {"Content-Disposition": f"inline; filename*=UTF-8''{quote(self.name, safe='')}"}
        if self.warning:
            headers["X-Gmtool-Warning"] = self.warning.encode("ascii", "backslashreplace").decode("ascii")
        return headers


def encode_answer(image: LabeledImage, wanted: Wanted) -> Answer:
    """Return the mask of an image in the format of a request."""
    classes, labels = wanted.model.backend.spec.classes, image.labels
    mask = labels.mask
    if wanted.min_confidence is not None:
        assert labels.confidence is not None  # see `read_wanted`
        mask = ignore_unsure(mask, labels.confidence, wanted.min_confidence, ignore_index=classes.ignore_index)
    stem = PurePosixPath(image.name).stem
    if wanted.output is None:
        value = json_value(image, mask, wanted)
        content = json.dumps(value, separators=(",", ":")).encode("ascii")
        return Answer(f"{stem}.json", content, MEDIA_TYPES["json"], image.warning)
    item = MaskItem(PurePosixPath(stem), mask, labels.confidence, image.pixels)
    ((path, content),) = encode(wanted.output, item, classes)
    return Answer(path.name, content, MEDIA_TYPES[wanted.format], image.warning)


def json_value(image: LabeledImage, mask: UInt8Array, wanted: Wanted) -> dict[str, Any]:
    """Return size, shares of the classes, and the region of each as COCO's compressed RLE.

    Every class with a pixel is listed, the background too; pixels of no region are ignored ones.
    """
    with needs_extra("serve", "encoding regions"):
        from pycocotools import mask as coco_mask
    spec = wanted.model.backend.spec
    counts = np.bincount(mask.ravel(), minlength=256)
    by_column = np.asfortranarray(mask)
    confidence = image.labels.confidence if wanted.confidence else None
    regions = []
    for index in np.flatnonzero(counts[: len(spec.classes)]).tolist():
        chosen = by_column == index
        rle = coco_mask.encode(chosen.view(np.uint8))
        region = {
            "index": index,
            "name": spec.classes.names[index],
            "raw_id": spec.classes.raw_ids[index],
            "color": "#{:02x}{:02x}{:02x}".format(*spec.classes.palette[index]),
            "pixels": int(counts[index]),
            "share": int(counts[index]) / mask.size,
            "rle": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
        }
        if confidence is not None:
            region["confidence"] = float(confidence[chosen].mean()) / 255
        regions.append(region)
    ignored = mask.size - int(counts[: len(spec.classes)].sum())
    value = {
        "image": image.name,
        "width": mask.shape[1],
        "height": mask.shape[0],
        "model": wanted.model.name,
        "model_sha256": wanted.model.backend.model_sha256,
        "classes": regions,
        "ignored": {"pixels": ignored, "share": ignored / mask.size},
        "warnings": [image.warning] if image.warning else [],
    }
    if confidence is not None:
        value["confidence"] = {"media_type": "image/png", "base64": _grey_png(confidence)}
    return value


def _grey_png(grey: UInt8Array) -> str:
    return base64.b64encode(encode_png(grey, None)).decode("ascii")
