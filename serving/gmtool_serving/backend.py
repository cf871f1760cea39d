"""What prediction needs from whatever runs an exported model."""

from __future__ import annotations

from typing import Literal, Protocol

from gmtool.images import UInt8Array
from gmtool.spec import ArtifactSpec

DeviceName = Literal["auto", "cpu", "cuda"]


class Backend(Protocol):
    """A loaded model."""

    spec: ArtifactSpec
    description: str
    """What computes, for reports: "onnxruntime 1.31 CPUExecutionProvider"."""
    model: str
    """The model's file."""
    model_sha256: str
    """Hash of that file."""

    def masks(self, images: UInt8Array) -> UInt8Array:
        """Return class indices (N, H, W) for RGB images (N, H, W, 3), both uint8.

        Raises:
            BackendError: The runtime failed on these images.
        """
        ...
