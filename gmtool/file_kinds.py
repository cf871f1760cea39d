"""Suffixes of images and masks; file types that gmtool does not decode, recognised by their first bytes."""

from __future__ import annotations

import io

from PIL import TiffImagePlugin

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
"""Suffixes of image files, in any case."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Suffixes of mask files, in any case; not JPEG or WebP, whose compression changes labels."""

CONVERT = "convert it to JPEG or PNG"

ISO_BRANDS = {
    b"heic": "a HEIC photo",
    b"heix": "a HEIC photo",
    b"heim": "a HEIC photo",
    b"heis": "a HEIC photo",
    b"hevc": "a HEIC photo",
    b"mif1": "a HEIC photo",
    b"msf1": "a HEIC photo",
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"crx ": "a RAW photo",
}
"""Image brands of the ISO base media format, at byte 8 of a file; other brands are videos."""
IMAGES = {
    b"\0\0\0\x0cjP  ": "a JPEG 2000 image",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"FUJIFILMCCD-RAW": "a RAW photo",
    b"IIRO": "a RAW photo",
    b"IIU\0": "a RAW photo",
    b"8BPS": "a Photoshop file",
    b"v/1\x01": "an OpenEXR image",
    b"P5": "a PNM image",
    b"P6": "a PNM image",
}
OTHERS = {
    b"\0\x05\x16\x07": "metadata of macOS (AppleDouble): delete it",
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x1a\x45\xdf\xa3": "a video",
}
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DICOM_PLACE = 128
SAMPLES_PER_PIXEL, BITS_PER_SAMPLE, SAMPLE_FORMAT, COMPRESSION = 277, 258, 339, 259
FLOAT = 3


def name_kind(content: bytes) -> str | None:
    """Return file type and remedy, such as "a HEIC photo: convert it to JPEG or PNG"; None if unknown."""
    if not content:
        return "an empty file"
    image = next((kind for mark, kind in IMAGES.items() if content.startswith(mark)), None)
    if content[4:8] == b"ftyp":
        image = ISO_BRANDS.get(content[8:12])
    elif content[DICOM_PLACE : DICOM_PLACE + 4] == b"DICM":
        image = "a DICOM image"
    if image is not None:
        return f"{image}: {CONVERT}"
    if content.startswith(TIFF_MARKS):
        return _name_tiff(content)
    start = content[:512].lstrip().lower()
    if content[4:8] == b"ftyp":
        return "a video"
    return next((kind for mark, kind in OTHERS.items() if start.startswith(mark.lower())), None)


def _name_tiff(content: bytes) -> str:
    """Return the storage of a TIFF that Pillow does not read, mostly scientific ones."""
    try:
        is_big = content[2:4] in (b"+\0", b"\0+")
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[: 16 if is_big else 8])
        file = io.BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        bands, bits = tags.get(SAMPLES_PER_PIXEL, 1), tags.get(BITS_PER_SAMPLE, (1,))[0]
        is_float = FLOAT in tags.get(SAMPLE_FORMAT, ())
        compression = tags.get(COMPRESSION, 1)
    except Exception:  # a damaged directory: Pillow raises many types
        return "a damaged TIFF"
    kind = f"{bits}-bit floating-point numbers" if is_float else f"{bits} bits"
    return (
        f"a TIFF of {bands} band{'s' if bands > 1 else ''} of {kind} (compression {compression}): "
        "convert it to 8-bit grey or RGB"
    )
