"""Label maps in npz files: damaged, encrypted and huge ones are refused in one line, each alone."""

from __future__ import annotations

import io
import os
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gmtool.classes import ClassSet, voc_palette
from gmtool.errors import DataError
from gmtool.images import UInt8Array
from gmtool.masks.sources import open_masks

CLASSES = ClassSet(("sky", "road", "car"), voc_palette(3), (0, 1, 2))
MASK = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}


def npy(array: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write(path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("mask.npy", content)
    return path.read_bytes()


def read(folder: Path, name: str = "a") -> UInt8Array:
    return open_masks(folder, CLASSES, None, option="--prediction-values").read(name)


@pytest.mark.parametrize("method", METHODS)
def test_case_47_a_damaged_npz_is_one_line_or_the_same_mask(tmp_path: Path, method: str) -> None:
    path = tmp_path / "a.npz"
    whole = write(path, npy(MASK), METHODS[method])
    np.testing.assert_array_equal(read(tmp_path), MASK)
    source = open_masks(tmp_path, CLASSES, None, option="--prediction-values")
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(250):
        mutant = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            mutant[place] = random.integers(256)
        path.write_bytes(mutant[: random.integers(len(whole))] if random.random() < 0.2 else mutant)
        try:
            labels = source.read("a")
        except DataError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert labels.shape == MASK.shape
    assert refused > 50


def test_case_47_an_encrypted_npz_is_refused(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.npz", npy(MASK)))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flag bit 0 of both headers
        content[content.index(mark) + offset] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        read(tmp_path)


def header_of(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (header_of("(100000, 80000)"), "80000x100000 pixels; expected 1 to 200000000"),
        (header_of("(-1, 5)"), "expected 1 to"),
        (header_of("(0, 5)"), "expected 1 to"),
        (header_of("(20, 30)"), "has 0 bytes; expected 600"),
        (header_of("(600,)"), "expected whole numbers"),
        (header_of("(20, 30)", "<m8[s]"), "expected whole numbers"),
        (header_of("(20, 30)", "|O"), "expected whole numbers"),
        (header_of("(" * 3000 + ")" * 3000), "not an npz file, or damaged"),
        (b"\x93NUMPY\x03\x00", "version"),
        (b"", "not an npz file, or damaged"),
    ],
)
def test_case_47_what_a_header_claims_is_checked(tmp_path: Path, header: bytes, message: str) -> None:
    write(tmp_path / "a.npz", header)
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_case_47_a_small_file_that_holds_much_is_not_unpacked(tmp_path: Path) -> None:
    side = 15_000
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("mask.npy", "w", force_zip64=True) as member,
    ):
        member.write(header_of(f"({side}, {side})"))
        for _ in range(15):
            member.write(bytes(side * side // 15))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="15000x15000 pixels; expected 1 to"):
        read(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; the mask has 220 000


def test_case_47_a_prediction_of_another_size_than_its_ground_truth_is_not_unpacked(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", header_of("(2000, 3000)"))  # its content is missing: reading it would say so
    source = open_masks(tmp_path, CLASSES, None, option="--prediction-values")
    with pytest.raises(DataError, match="mask of 3000x2000 pixels, but its ground truth has 30x20"):
        source.read("a", expected=(20, 30))


def test_case_47_a_pipe_named_npz_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", npy(MASK))
    source = open_masks(tmp_path, CLASSES, None, option="--prediction-values")
    (tmp_path / "a.npz").unlink()
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(DataError, match="not a regular file"):
        source.read("a")
