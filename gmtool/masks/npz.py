"""Read the label map of an npz file; its size is checked before decompression."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from gmtool.classes import ClassSet
from gmtool.errors import DataError, LabelError
from gmtool.images import UInt8Array
from gmtool.json_toml import shown
from gmtool.masks.files import refuse_mask_size

MEMBER = "mask.npy"
"""Member of the array in files of `numpy.savez(path, mask=...)`."""


def read_npz(path: Path, expected: tuple[int, int] | None, *, classes: ClassSet) -> UInt8Array:
    """Return the array `mask` of an npz file, (H, W) uint8 of class indices and the ignore index.

    Args:
        path: Path of the file.
        expected: (height, width) of its ground truth; None if unknown.
        classes: Classes of the labels.

    Raises:
        LabelError: A label outside the classes.
        DataError: File damaged or encrypted, array of another size or not of whole numbers.
    """
    try:
        with _open_regular_file(path) as file, zipfile.ZipFile(file) as archive:
            if MEMBER not in archive.namelist():
                raise DataError(f'{path}: no array "mask" in it')
            with archive.open(MEMBER) as member:
                mask = _read_array(member, expected, path)
    except DataError:
        raise
    except Exception as error:  # zipfile, its decompressors and numpy's header raise a dozen types
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"{path}: not an npz file, or damaged: {reason}") from error
    outside = mask[((mask < 0) | (mask >= len(classes))) & (mask != classes.ignore_index)]
    if outside.size:
        raise LabelError(
            f"{path} has label {outside[0]}, but there are {len(classes)} classes (ignore {classes.ignore_index})"
        )
    labels: UInt8Array = mask.astype(np.uint8)
    return labels


def _open_regular_file(path: Path) -> IO[bytes]:
    # O_NONBLOCK: do not wait for the writer of a named pipe. O_BINARY: Windows only
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def _read_array(member: IO[bytes], expected: tuple[int, int] | None, path: Path) -> npt.NDArray[np.integer]:
    version = npy.read_magic(member)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise DataError(f"{path}: mask is stored in version {version} of the npy format; expected 1.0 or 2.0")
    shape, is_fortran, dtype = readers[version](member)
    if len(shape) != 2 or dtype.kind not in "iu":
        raise DataError(f"{path}: mask is {dtype} of shape {shown(shape)}; expected whole numbers (H, W)")
    refuse_mask_size(shape, expected, where=str(path))
    count = shape[0] * shape[1] * dtype.itemsize
    content = member.read(count + 1)  # one byte more reaches the end, where the checksum is compared
    if len(content) != count:
        raise DataError(f"{path}: mask has {len(content)} bytes; expected {count} for its shape {shape}")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if is_fortran else "C")
