import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmtool.errors import DataError, ImageError
from gmtool.images import count_scans, decode_image, displayed_size, displayed_size_of, open_image, read_image


def picture() -> np.ndarray:
    """A 24x16 picture without symmetry."""
    y, x = np.mgrid[:16, :24]
    return np.stack([x * 10, y * 15, (x + y) * 6], axis=-1).astype(np.uint8)


def claimed_png(width: int, height: int) -> bytes:
    """A PNG header that claims a size, with no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("content", [b"", b"hello", b"<html></html>"])
def test_case_01_what_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg: not an image"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("twentieth", range(20))
def test_case_03_a_truncated_image_is_refused_wherever_it_ends(
    tmp_path: Path, suffix: str, twentieth: int
) -> None:
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(picture()).save(whole)
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * twentieth // 20])
    with pytest.raises(DataError, match=r"cut\."):
        read_image(path)


def test_case_03_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(picture()).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 12] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: damaged image"):
        read_image(path)


@pytest.mark.parametrize("size", [(20_000, 20_000), (60_000, 60_000)])
def test_case_05_a_claimed_size_is_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(claimed_png(*size))
    with pytest.raises(DataError, match="bomb"):
        read_image(path)


def test_an_image_above_the_limit_is_refused_with_a_remedy(tmp_path: Path) -> None:
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match="30x20 pixels; expected at most 599: shrink it, or .* --max-pixels"
    ) as error:
        read_image(tmp_path / "a.png", max_pixels=599)
    assert error.value.code == "too_large"


def test_case_06_a_named_pipe_a_folder_and_a_dangling_link_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nothing")
    for name in ("pipe.jpg", "folder.jpg", "link.jpg"):
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_image(tmp_path / name)


@pytest.mark.parametrize("opened_by", [read_image, open_image])
def test_case_06_a_sparse_file_of_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, opened_by: Callable[[Path], object]
) -> None:
    path = tmp_path / "sparse.jpg"
    path.touch()
    os.truncate(path, 6 << 30)
    with pytest.raises(ImageError, match="the file has 6442450944 bytes; expected at most 1600000000") as error:
        opened_by(path)
    assert error.value.code == "too_large"


def test_a_file_that_is_as_large_as_its_pixels_allow_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(picture()).save(path)
    with path.open("ab") as file:
        file.truncate((64 << 20) + 1)  # behind the image: nothing
    assert read_image(path, max_pixels=9_000_000).shape == (16, 24, 3)
    with pytest.raises(ImageError, match="has 67108865 bytes; expected at most 67108864"):
        read_image(path, max_pixels=8_000_000)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG of 64x64 pixels that repeats its last scan until it has so many."""
    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    scan = content[content.rindex(b"\xff\xc4") : -2]  # with its table
    return content[:-2] + scan * (count - content.count(b"\xff\xda")) + content[-2:]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_progressive_jpeg_as_encoders_write_it_is_read_at_any_size(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(picture()).convert(mode).save(path, progressive=True, exif=thumbnail_exif())
    assert count_scans(path.read_bytes()) == {"L": 6, "RGB": 10, "CMYK": 18}[mode]
    assert read_image(path, max_pixels=16 * 24).shape == (16, 24, 3)


def thumbnail_exif() -> bytes:
    """Metadata that has whole JPEGs in it, as cameras write them."""
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "JPEG")
    return b"Exif\0\0" + file.getvalue() * 40


def test_a_jpeg_of_hundreds_of_scans_is_refused_where_it_would_take_minutes(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_of_scans(400))
    assert read_image(path).shape == (64, 64, 3)  # a moment: it is small
    with pytest.raises(ImageError, match="a JPEG of 400 scans; expected at most 20 for 64x64 pixels") as error:
        read_image(path, max_pixels=64 * 64)
    assert error.value.code == "too_large"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_case_11_every_exif_orientation_gives_the_displayed_image(tmp_path: Path, orientation: int) -> None:
    shown = Image.fromarray(picture())
    # How a camera stores what is shown, for each orientation: the inverse of what a viewer does
    inverse = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = shown
    for operation in inverse[orientation]:
        stored = stored.transpose(operation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), picture())
    assert displayed_size(open_image(path)) == (16, 24)


def test_case_12_modes_have_a_documented_mapping_or_are_refused(tmp_path: Path) -> None:
    grey = picture()[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    for name, image in {
        "l.png": Image.fromarray(grey),
        "la.png": Image.fromarray(grey).convert("LA"),
        "p.png": Image.fromarray(grey).convert("P"),
        "rgba.png": Image.fromarray(grey).convert("RGBA"),
        "16.png": Image.fromarray(grey.astype(np.uint16) * 257),
    }.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name), expected, err_msg=name)
    Image.fromarray(grey > 100).save(tmp_path / "1.png")
    assert set(np.unique(read_image(tmp_path / "1.png"))) == {0, 255}
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - picture()).max() <= 12
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="mode F .32-bit. have no defined 8-bit mapping: convert it to 8 bits"):
        read_image(tmp_path / "float.tiff")


def test_case_13_the_first_frame_of_several_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "x.gif")[0, 0].tolist() == [255, 0, 0]


def test_an_error_passes_from_one_process_to_another_whole(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("no image")
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / "page.jpg")
    copy = pickle.loads(pickle.dumps(error.value))
    assert (type(copy), copy.code, str(copy)) == (ImageError, "not_an_image", str(error.value))


def deep_tiff(bands: int, values: np.ndarray) -> bytes:
    """An uncompressed little-endian TIFF of 16 bits, (H, W, bands), as Pillow cannot write it."""
    height, width = values.shape[:2]
    pixels = values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 259: 1, 262: 2 if bands > 2 else 1, 277: bands, 278: height, 279: len(pixels)}
    bits_at = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {258: bits_at, 273: bits_at + 2 * bands}
    content = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, value in sorted(tags.items()):
        kind, count = (3, bands) if tag == 258 else (4, 1)
        content += struct.pack("<HHII", tag, kind, count, value)
    return content + struct.pack("<I", 0) + struct.pack(f"<{bands}H", *[16] * bands) + pixels


ISO = b"\0\0\0\x18ftyp"
FOREIGN = {
    "HEIC": (ISO + b"heic" + bytes(8), "it is a HEIC photo: convert it to JPEG or PNG"),
    "AVIF": (ISO + b"avif" + bytes(8), "it is an AVIF image: convert it"),
    "CR3": (ISO + b"crx " + bytes(8), "it is a RAW photo: convert it"),
    "mp4": (ISO + b"isom" + bytes(8), "it is a video"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "it is a JPEG 2000 image: convert it"),
    "AppleDouble": (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", r"it is metadata of macOS \(AppleDouble\): delete it"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS: run git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>", "it is a web page"),
    "nothing": (b"", "it is an empty file"),
    "science": (
        deep_tiff(5, np.zeros((3, 4, 5))),
        r"it is a TIFF of 5 bands of 16 bits \(compression 1\): convert",
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_image_is_named_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    content, expected = FOREIGN[kind]
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=rf"x\.jpg: not an image .*: {expected}") as error:
        read_image(tmp_path / "x.jpg")
    assert error.value.code == "not_an_image"


def test_16_bit_images_of_fewer_bits_are_said_and_scaled_on_request(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    grey = (picture()[:, :, 0].astype(np.uint16) * 16)[:, :, None].repeat(3, axis=2)
    Image.fromarray(np.ascontiguousarray(grey[:, :, 0])).save(path)
    dark = decode_image(path.read_bytes(), path)
    assert dark.pixels.max() <= 15
    assert dark.dark is not None and "end at 3680 of 65535" in dark.dark and "--bits 12" in dark.dark
    scaled = decode_image(path.read_bytes(), path, bits=12)
    assert scaled.dark is None and scaled.notes == ()
    assert np.abs(scaled.pixels.astype(int) - grey / 4095 * 255).max() <= 0.5
    with pytest.raises(ImageError, match="has value 3680; expected at most 255 .8 bits."):
        decode_image(path.read_bytes(), path, bits=8)
    # Pillow gives the upper bytes of 16-bit colours alone: nothing to scale, but to be said
    colors = decode_image(deep_tiff(3, grey), path)
    assert colors.dark is not None and "16-bit colours" in colors.dark and "convert it to 8 bits" in colors.dark
    Image.fromarray(picture()[:, :, 0].astype(np.uint16) * 257).save(path)
    assert decode_image(path.read_bytes(), path).notes == ()


def test_pillows_warnings_are_not_printed_whatever_the_threads_do() -> None:
    """The first of two threads is done while the second one opens a large image."""
    script = """
import io, sys, threading
from pathlib import Path
from PIL import Image
from gmtool import images
content = io.BytesIO()
Image.new("RGB", (12, 12)).save(content, "PNG")
Image.MAX_IMAGE_PIXELS = 100
second_opens, first_is_done, open_now = threading.Event(), threading.Event(), Image.open
def open_in_turn(*arguments, **options):
    if threading.current_thread().name == "second":
        second_opens.set()
        first_is_done.wait(20)
    else:
        second_opens.wait(20)
    return open_now(*arguments, **options)
Image.open = open_in_turn
def decode():
    print(images.decode_image(content.getvalue(), Path("x.png"), max_pixels=200).pixels.shape)
first, second = threading.Thread(target=decode), threading.Thread(target=decode, name="second")
first.start(); second.start(); first.join(); first_is_done.set(); second.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("(12, 12, 3)\n" * 2, "")


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["plain", "progressive", "far header", "PNG"])
def test_the_size_is_that_of_the_whole_file(kind: str, orientation: int, tmp_path: Path) -> None:
    """Of a JPEG only the header is read, unless it may have many scans."""
    path = tmp_path / ("x.png" if kind == "PNG" else "x.jpg")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    comment = b"x" * 65_000 if kind == "far header" else b""
    more: dict[str, Any] = (
        {} if kind == "PNG" else {"progressive": kind == "progressive", "comment": comment, "quality": 100}
    )
    Image.fromarray(pixels).save(path, exif=exif, **more)
    assert path.stat().st_size > 150_000
    assert (
        displayed_size_of(path)
        == displayed_size(open_image(path))
        == ((300, 400) if orientation == 1 else (400, 300))
    )


def test_a_file_that_is_no_image_has_no_size(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    for content, message in ((b"\xff\xd8" + b"x" * 100_000, "not an image|damaged"), (b"", "not an image")):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=message):
            displayed_size_of(path)
