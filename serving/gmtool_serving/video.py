"""Frames of a video by their number, decoded when they are asked for."""

from __future__ import annotations

from pathlib import Path

from gmtool.images import UInt8Array

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv")


def count_frames(path: Path) -> int:
    """Return how many frames a video has, from its packets; nothing is decoded.

    Raises:
        DataError: Not a video, or damaged.
        MissingExtraError: PyAV is not installed.
    """
    raise NotImplementedError


def read_frame(path: Path, index: int) -> UInt8Array:
    """Return a frame as it is displayed: RGB, uint8, (H, W, 3).

    The last video stays open, one a thread: in ascending order each frame is decoded once. Other orders are
    right, but slower.

    Raises:
        DataError: The frame cannot be decoded, or is not there.
    """
    raise NotImplementedError
