"""Read video frames by number, with PyAV."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gmtool.errors import DataError, ImageError, needs_extra
from gmtool.images import MAX_PIXELS, SHRINK, UInt8Array
from gmtool_serving.inputs.frame_colors import RgbConverter

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv")
JUMP_FRAMES = 100
"""Seek to a key frame for jumps of more frames than this, instead of decoding all frames between."""
LOCAL_VIDEO = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf",
}
"""FFmpeg options: no playlists, which could open other files or the network."""

_open = threading.local()


def count_frames(path: Path) -> int:
    """Return the number of frames, counted from packets without decoding.

    Raises:
        DataError: Not a video, or damaged.
        MissingExtraError: PyAV is not installed.
    """
    return len(_times(path))


def read_frame(path: Path, index: int, *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Return a frame as displayed: RGB, (H, W, 3) uint8.

    Each thread keeps its last video open: in ascending order each frame is decoded once; other orders are slower.

    Raises:
        ImageError: The frame has more than `max_pixels` pixels; it is not decoded.
        DataError: The frame cannot be decoded or does not exist.
        MissingExtraError: PyAV is not installed.
    """
    reader: FrameReader | None = getattr(_open, "reader", None)
    if reader is None or (reader.path, reader.max_pixels) != (path, max_pixels):
        close_video()
        reader = _open.reader = FrameReader(path, max_pixels)
    return reader.read(index)


def close_video() -> None:
    """Close the video that `read_frame` keeps open in this thread."""
    reader: FrameReader | None = getattr(_open, "reader", None)
    if reader is not None:
        reader.close()
    _open.reader = None


class FrameReader:
    """Open video and its current frame."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path, self.max_pixels = path, max_pixels
        self._times: list[int] | None = None
        self._to_rgb = RgbConverter()
        self._end: DataError | None = None
        """Error that every further frame raises; None while frames can be decoded."""
        self._restart()

    def read(self, index: int) -> UInt8Array:
        """Return a frame: RGB, (H, W, 3) uint8, with the container's rotation applied."""
        if index < self._next or (index > self._next + JUMP_FRAMES and self._can_seek()):
            self._seek(index)
        frame = None
        while self._next <= index:
            frame = self._decode_next()
            self._next += 1
        assert frame is not None
        return self._upright(frame)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _upright(self, frame: VideoFrame) -> UInt8Array:
        """Return the pixels rotated by right angles and mirrored as the display matrix says, (H, W, 3) uint8."""
        from av.error import FFmpegError

        try:
            pixels = self._to_rgb(frame)
        except FFmpegError as error:
            raise DataError(f"{self.path}: frame {self._next - 1}: no RGB from it: {error.strerror}") from error
        if "DISPLAYMATRIX" not in frame.side_data:
            return np.ascontiguousarray(pixels)
        matrix = bytes(frame.side_data["DISPLAYMATRIX"])  # type: ignore[typeddict-item]  # PyAV's stub has no key
        # Displayed x = a x + c y, displayed y = b x + d y: row vectors, 16.16 fixed point
        (a, b, _), (c, d, _), _ = np.frombuffer(matrix, dtype=np.int32, count=9).reshape(3, 3).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def _decode_next(self) -> VideoFrame:
        from av.error import ArgumentError, FFmpegError

        frame = None
        if self._end is None:
            try:
                frame = next(self._frames, None)
            except ArgumentError:  # raised for FFmpeg's option `max_pixels`
                self._end = self._too_large(f"more than {self.max_pixels}")
            except FFmpegError as error:
                self._end = DataError(f"{self.path}: damaged from frame {self._next} on: {error.strerror}")
        if frame is None:
            raise self._end or DataError(f"{self.path}: no frame {self._next}: the video has ended")
        return frame

    def _too_large(self, pixels: str) -> ImageError:
        return ImageError(
            "too_large", f"{self.path}: frames of {pixels} pixels; at most {self.max_pixels} are taken: {SHRINK}"
        )

    def _restart(self) -> None:
        self._container = _open_video(self.path, self.max_pixels)
        stream = self._container.streams.video[0]
        codec = stream.codec_context
        codec.options = {"max_pixels": str(self.max_pixels)}  # a later frame may be larger than the first
        self._frames = self._container.decode(stream)
        self._next, self._end = 0, None
        if codec.width * codec.height > self.max_pixels:
            self._end = self._too_large(f"{codec.width}x{codec.height}")

    def _can_seek(self) -> bool:
        """Return whether the container has an index of key frames and reliable times."""
        return any(name in self._container.format.name for name in ("mp4", "matroska"))

    def _seek(self, index: int) -> None:
        """Go to a frame, from the key frame before it or, if seeking is unavailable, from the start."""
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
    """Return the presentation time of each frame, in the stream's time base, in ascending order."""
    with needs_extra("video", "reading a video"):
        from av.error import FFmpegError
    try:
        with _open_video(path) as container:
            packets = container.demux(container.streams.video[0])
            times = [packet.pts or 0 for packet in packets if packet.size and not packet.is_discard]
    except FFmpegError as error:
        raise DataError(f"{path}: damaged video: {error.strerror}") from error
    return sorted(times)


def _open_video(path: Path, max_pixels: int = MAX_PIXELS) -> InputContainer:
    with needs_extra("video", "reading a video"):
        import av
        from av.error import FFmpegError
    if not path.is_file():
        raise DataError(f"{path}: not a file")
    try:
        container = av.open(f"file:{path}", mode="r", options=LOCAL_VIDEO | {"max_pixels": str(max_pixels)})
    except FFmpegError as error:
        raise DataError(f"{path}: not a video: {error.strerror}") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: no video stream in it")
    return container
