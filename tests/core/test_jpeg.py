"""The fast way for JPEGs against Pillow."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmtool.image_formats import jpeg
from gmtool.image_formats.jpeg import decode_plain_jpeg
from gmtool.images import decode_image

SMOOTH = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)


def picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    return Image.fromarray(SMOOTH).resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def forms() -> Iterator[tuple[str, bytes]]:
    for size in ((1, 1), (17, 33), (101, 77)):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for quality in (5, 95):
                for progressive in (False, True):
                    options: dict[str, Any] = {"subsampling": subsampling, "quality": quality}
                    name = f"{size} {subsampling} {quality} {'progressive' if progressive else ''}"
                    yield name, saved(picture(size), progressive=progressive, **options)
    yield "grey", saved(picture((30, 20), "L"))
    yield "stored as RGB", saved(picture((30, 20)), keep_rgb=True)
    yield "restart markers", saved(picture((64, 64)), restart_marker_blocks=2)
    yield "optimised, with a comment", saved(picture((64, 64)), optimize=True, comment=b"by nobody")
    frames = [picture((31, 21)), picture((16, 16))]
    yield "with a preview", saved(frames[0], "MPO", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(("name", "content"), [pytest.param(*form, id=form[0]) for form in forms()])
def test_pixels_are_those_of_pillow(name: str, content: bytes) -> None:
    pixels = decode_plain_jpeg(content, opened(content), exif=True)
    assert pixels is not None, name
    np.testing.assert_array_equal(pixels, np.asarray(opened(content).convert("RGB")))
    np.testing.assert_array_equal(decode_image(content, Path("a.jpg")).pixels, pixels)


@pytest.mark.parametrize("orientation", range(10))
def test_an_image_that_is_to_be_turned_is_left_to_pillow(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(picture((31, 20)), exif=exif)
    is_turned = 2 <= orientation <= 8
    assert (decode_plain_jpeg(content, opened(content), exif=True) is None) == is_turned
    assert decode_plain_jpeg(content, opened(content), exif=False) is not None
    height = 31 if 5 <= orientation <= 8 else 20
    assert decode_image(content, Path("a.jpg")).pixels.shape[0] == height


@pytest.mark.parametrize("kind", ["PNG", "BMP", "CMYK", "truncated", "damaged"])
def test_anything_else_is_left_to_pillow(kind: str) -> None:
    image = picture((64, 48), "CMYK" if kind == "CMYK" else "RGB")
    content = saved(image, kind if kind in ("PNG", "BMP") else "JPEG")
    if kind == "truncated":
        content = content[:-200]
    if kind == "damaged":
        content = content[:-100] + b"\xff\x01" * 20 + content[-60:]
    assert decode_plain_jpeg(content, opened(content), exif=True) is None


def test_pixels_go_into_memory_that_is_given_if_they_fit() -> None:
    content = saved(picture((30, 20)))
    room = np.zeros(30 * 20 * 3 + 5, dtype=np.uint8)
    pixels = decode_image(content, Path("a.jpg"), room=room).pixels
    assert np.shares_memory(pixels, room) and not room[-5:].any()
    small = np.zeros(30 * 20 * 3 - 1, dtype=np.uint8)
    other = decode_image(content, Path("a.jpg"), room=small).pixels
    assert not np.shares_memory(other, small) and not small.any()
    np.testing.assert_array_equal(other, pixels)


def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(picture((30, 20)))
    expected = decode_image(content, Path("a.jpg")).pixels
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert decode_plain_jpeg(content, opened(content), exif=True) is None
    np.testing.assert_array_equal(decode_image(content, Path("a.jpg")).pixels, expected)
