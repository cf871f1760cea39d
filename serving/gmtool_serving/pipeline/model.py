"""A loaded model that labels images in memory, and its results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from PIL import Image

from gmtool.artifact.spec import ArtifactSpec, OutputName
from gmtool.classes import ClassSet
from gmtool.errors import (
    BackendError,
    BackendMemoryError,
    ConfigError,
    ImageError,
    ImageErrorCode,
    ImageTooLargeError,
    NonFiniteError,
    UnknownLabelError,
)
from gmtool.files import write_atomically
from gmtool.images import UInt8Array, convert_image, decode_image, max_file_bytes, read_regular_file
from gmtool_serving.backends.base import Backend
from gmtool_serving.backends.tiles import parse_tiling, require_logits
from gmtool_serving.inputs.decode import DecodeOptions, Failure
from gmtool_serving.outputs.formats import FormatName, MaskItem, check_formats, colors_of, encode
from gmtool_serving.outputs.overlay import overlay_image
from gmtool_serving.outputs.tool_formats import TOOL_RESULTS, is_tool_format
from gmtool_serving.pipeline.batching import Grouper, padded_size
from gmtool_serving.pipeline.compute import (
    ComputeOptions,
    Labels,
    parse_min_confidence,
    predict_batch,
    require_confidence,
)

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | UInt8Array"
"""Path of an image file, PIL image, or RGB array, (H, W, 3), uint8."""


@dataclass(frozen=True)
class Result:
    """Labels of one image, at its own size."""

    mask: UInt8Array
    """Class indices, (H, W), uint8."""
    confidence: UInt8Array | None
    """Largest probability times 255, (H, W), uint8; None if the model was exported without it."""
    classes: ClassSet
    """Names and colours of the class indices."""
    image: UInt8Array
    """The image as decoded, RGB, (H, W, 3), uint8."""
    notes: tuple[str, ...] = ()
    """Remarks on how the image was read: first of several frames, dark 16-bit values."""

    def overlay(self) -> Image.Image:
        """Return the image under its mask, with a legend below: RGB, larger than the image."""
        return overlay_image(self.image, self.mask, self.classes, colors_of(self.classes))

    def save(self, path: str | os.PathLike[str], *, format: FormatName = "voc") -> Path:
        """Write the mask, whole or not at all, and return its path.

        Args:
            path: The file.
            format: `voc` (palette PNG of class indices), or another output format of `gmtool predict`.

        Raises:
            ConfigError: The format does not fit the classes, or needs confidence.
            OSError: The file cannot be written.
        """
        if is_tool_format(format) and format in TOOL_RESULTS:
            raise ConfigError(f"format {format} is one file of all images: use gmtool.predict")
        outputs: tuple[OutputName, ...] = ("mask",) if self.confidence is None else ("mask", "confidence")
        check_formats((format,), self.classes, outputs)
        item = MaskItem(PurePosixPath(Path(path).stem), self.mask, self.confidence, self.image)
        ((_, content),) = encode(format, item, self.classes)
        write_atomically(Path(path), content)
        return Path(path)


class How(TypedDict, total=False):
    """Keywords of `Model.predict`; the same as the options of `gmtool predict`."""

    batch: int
    """Images of one size computed at once. [1; on a GPU 8, of a plan its best]"""
    pad: int
    """Pad images to a multiple of so many pixels, so that more have one size. [0]"""
    tile: str | tuple[int, int] | None
    """Height and width of tiles for larger images: (512, 512) or "512x512"; needs a model with logits."""
    overlap: int | None
    """Pixels that tiles share. [a quarter]"""
    min_confidence: float | None
    """Pixels of a smaller largest probability, in [0, 1], get the ignore label; needs a model with confidence."""
    exif: Literal["apply", "ignore"]
    """Masks of images as displayed, or as stored. ["apply"]"""
    bits: int
    """Bits that 16-bit grey images use, 8 to 16. [16]"""
    max_pixels: int
    """Larger images are refused. [200 000 000]"""


@dataclass(frozen=True)
class _Read:
    """A decoded image and its place among the inputs."""

    place: int
    name: str
    pixels: UInt8Array
    notes: tuple[str, ...]


class Model:
    """An exported model on a device. Not safe in several threads at once.

    Args:
        backend: A loaded model.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def path(self) -> Path:
        """The model's file."""
        return Path(self.backend.model)

    @property
    def classes(self) -> ClassSet:
        """Names and colours of the class indices."""
        return self.spec.classes

    @property
    def spec(self) -> ArtifactSpec:
        """Classes, outputs, precision and origin of the model."""
        return self.backend.spec

    @overload
    def predict(  # type: ignore[overload-overlap]  # a string is a path, not a sequence
        self, images: str | os.PathLike[str] | Image.Image | UInt8Array, **how: Unpack[How]
    ) -> Result: ...

    @overload
    def predict(self, images: Sequence[ImageLike], **how: Unpack[How]) -> list[Result]: ...

    def predict(self, images: ImageLike | Sequence[ImageLike], **how: Unpack[How]) -> Result | list[Result]:
        """Label one image, or several; those of one size are computed together.

        Args:
            images: Path, PIL image or RGB array, (H, W, 3), uint8; or a sequence of these.
            **how: See `How`.

        Returns:
            A result for one image; a list in the same order for a sequence.

        Raises:
            ImageError: An image cannot be read, or is of a size or kind that is not taken.
            BackendError: The runtime failed on an image.
            ConfigError: `tile` needs a model that was exported with logits, `min_confidence` one with confidence.
            UsageError: A bad value of a keyword.
        """
        batch = how.get("batch") or self.backend.preferred_batch
        tiling = parse_tiling(how.get("tile"), how.get("overlap"))
        compute = ComputeOptions(how.get("pad", 0), tiling, parse_min_confidence(how.get("min_confidence")))
        decode = DecodeOptions(
            exif=how.get("exif", "apply") == "apply",
            max_pixels=how.get("max_pixels", DecodeOptions.max_pixels),
            bits=how.get("bits", DecodeOptions.bits),
        )
        require_confidence(self.spec, compute)
        if compute.tiling is not None:
            require_logits(self.backend)
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            return self._predict([images], batch, compute, decode)[0]
        return self._predict(images, batch, compute, decode)

    def _predict(
        self, images: Sequence[ImageLike], batch: int, compute: ComputeOptions, decode: DecodeOptions
    ) -> list[Result]:
        def kind(image: _Read) -> tuple[int, int] | None:
            height, width = image.pixels.shape[:2]
            tiled = compute.tiling is not None and compute.tiling.applies_to(height, width)
            return None if tiled else padded_size(height, width, compute.pad_px)

        grouper = Grouper[_Read](batch, max_waiting=3 * batch, kind=kind)
        results: dict[int, Result] = {}
        for place, image in enumerate(images):
            for group in grouper.add(_read(image, place, decode)):
                results |= self._label(group, compute)
        for group in grouper.flush():
            results |= self._label(group, compute)
        return [results[place] for place in range(len(images))]

    def _label(self, group: Sequence[_Read], compute: ComputeOptions) -> dict[int, Result]:
        """Return the results of images of one size, by place."""
        pixels, names = [image.pixels for image in group], [image.name for image in group]
        labeled = predict_batch(self.backend, pixels, compute, names=names).results
        return {
            image.place: Result(labels.mask, labels.confidence, self.classes, image.pixels, image.notes)
            for image, labels in zip(group, map(_require_labels, labeled), strict=True)
        }


def _require_labels(result: Labels | Failure) -> Labels:
    """Return labels; raise the error that a failure was."""
    if isinstance(result, Failure):
        kinds = (BackendMemoryError, NonFiniteError, UnknownLabelError, ImageTooLargeError)
        raise {kind.code: kind for kind in kinds}.get(result.code, BackendError)(result.message)
    return result


def _read(image: ImageLike, place: int, decode: DecodeOptions) -> _Read:
    """Decode an image as `gmtool predict` does."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        content = read_regular_file(path, max_bytes=max_file_bytes(decode.max_pixels))
        read = decode_image(content, path, **vars(decode))
        return _Read(place, str(path), read.pixels, read.notes)
    if isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "")) or f"image {place}"
        read = convert_image(image, Path(name), **vars(decode))
        return _Read(place, name, read.pixels, read.notes)
    name = f"image {place}"
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        expected = "expected a path, a PIL image, or a uint8 array (H, W, 3); a batch is a list of them"
        raise ImageError("unsupported", f"{name}: {found}: {expected}")
    height, width = image.shape[:2]
    if not 0 < height * width <= decode.max_pixels:
        code: ImageErrorCode = "too_large" if image.size else "unsupported"
        raise ImageError(code, f"{name}: {width}x{height} pixels; 1 to {decode.max_pixels} are taken")
    return _Read(place, name, image, ())
