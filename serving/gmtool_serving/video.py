"""Frames of a video by their number, decoded when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gmtool.errors import DataError, needs_extra
from gmtool.images import UInt8Array

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv")
JUMP_FRAMES = 100
"""A frame farther ahead than this is looked for from the nearest key frame, not by decoding all between."""
LOCAL_VIDEO = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf",
}
"""What FFmpeg may take a file for: no play list that leads it to other files or to the network."""

_open = threading.local()


def count_frames(path: Path) -> int:
    """Return how many frames a video has, from its packets; nothing is decoded.

    Raises:
        DataError: Not a video, or damaged.
        MissingExtraError: PyAV is not installed.
    """
    return len(_times(path))


def read_frame(path: Path, index: int) -> UInt8Array:
    """Return a frame as it is displayed: RGB, uint8, (H, W, 3).

    The last video stays open, one a thread: in ascending order each frame is decoded once. Other orders are
    right, but slower.

    Raises:
        DataError: The frame cannot be decoded, or is not there.
        MissingExtraError: PyAV is not installed.
    """
    reader: FrameReader | None = getattr(_open, "reader", None)
    if reader is None or reader.path != path:
        close_video()
        reader = _open.reader = FrameReader(path)
    return reader.read(index)


def close_video() -> None:
    """Close the video that `read_frame` left open in this thread."""
    reader: FrameReader | None = getattr(_open, "reader", None)
    if reader is not None:
        reader.close()
    _open.reader = None


class FrameReader:
    """An open video and a place in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._times: list[int] | None = None
        self._damage: str | None = None
        self._restart()

    def read(self, index: int) -> UInt8Array:
        """Return a frame: RGB, uint8, (H, W, 3). What the container says about its rotation is applied."""
        if index < self._next or (index > self._next + JUMP_FRAMES and self._can_seek()):
            self._seek(index)
        frame = None
        while self._next <= index:
            frame = self._decode_next()
            self._next += 1
        assert frame is not None
        return _upright(frame)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _decode_next(self) -> VideoFrame:
        from av.error import FFmpegError

        try:
            frame = None if self._damage else next(self._frames, None)
        except FFmpegError as error:  # what follows cannot be numbered any more
            frame, self._damage = None, f"damaged from frame {self._next} on: {error.strerror}"
        if frame is None:
            raise DataError(f"{self.path}: {self._damage or f'there is no frame {self._next}: the video ends'}")
        return frame

    def _restart(self) -> None:
        self._container = _open_video(self.path)
        self._frames = self._container.decode(self._container.streams.video[0])
        self._next, self._damage = 0, None

    def _can_seek(self) -> bool:
        """Others have no index of key frames, or no times to find a frame by."""
        return any(name in self._container.format.name for name in ("mp4", "matroska"))

    def _seek(self, index: int) -> None:
        """Go to a frame, by its time from the key frame before it, or where that fails from the start."""
        if self._times is None:
            self._times = _times(self.path)
        self.close()
        self._restart()
        if index > JUMP_FRAMES and self._can_seek() and index < len(self._times):
            stream = self._container.streams.video[0]
            self._container.seek(self._times[index], stream=stream)
            self._frames = self._from_time(self._container.decode(stream), self._times[index])
            self._next = index

    def _from_time(self, frames: Iterator[VideoFrame], time: int) -> Iterator[VideoFrame]:
        for frame in frames:
            if frame.pts is not None and frame.pts >= time:
                yield frame
                break
        yield from frames


def _times(path: Path) -> list[int]:
    """Return when each frame is shown, in the stream's own unit, in ascending order."""
    with needs_extra("video", "reading a video"):
        from av.error import FFmpegError
    try:
        with _open_video(path) as container:
            packets = container.demux(container.streams.video[0])
            times = [packet.pts or 0 for packet in packets if packet.size and not packet.is_discard]
    except FFmpegError as error:
        raise DataError(f"{path}: damaged video: {error.strerror}") from error
    return sorted(times)


def _open_video(path: Path) -> InputContainer:
    with needs_extra("video", "reading a video"):
        import av
        from av.error import FFmpegError
    if not path.is_file():
        raise DataError(f"{path}: not a file")
    try:
        container = av.open(f"file:{path}", mode="r", options=LOCAL_VIDEO)
    except FFmpegError as error:
        raise DataError(f"{path}: not a video: {error.strerror}") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: there is no video in it")
    return container


def _upright(frame: VideoFrame) -> UInt8Array:
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
