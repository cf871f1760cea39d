"""Convert video frames to RGB as FFmpeg's program does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gmtool.images import UInt8Array

if TYPE_CHECKING:
    from av import VideoFrame
    from av.filter import Graph


class RgbConverter:
    """FFmpeg's scale filter for the frames of one video.

    PyAV's own conversion does not know where a frame's chroma samples lie, so that colours of more than 8 bits are
    shifted by a quarter of a sample. The filter is the one that FFmpeg's program inserts: pixels are equal to its.
    """

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._parameters = ""

    def __call__(self, frame: VideoFrame) -> UInt8Array:
        """Return the pixels of a frame as stored, (H, W, 3) uint8.

        Raises:
            av.error.FFmpegError: FFmpeg cannot convert the frame.
        """
        parameters = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1:"
            f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        )
        if self._graph is None or parameters != self._parameters:  # the first frame, or another size or format
            self._graph, self._parameters = _scale_filter(parameters), parameters
        self._graph.push(frame)
        return np.asarray(self._graph.vpull().to_ndarray())


def _scale_filter(parameters: str) -> Graph:
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1  # decoding processes share the processors already
    graph.link_nodes(
        graph.add("buffer", parameters), graph.add("format", "pix_fmts=rgb24"), graph.add("buffersink")
    ).configure()
    return graph
