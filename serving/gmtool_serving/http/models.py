"""Models of the service: names, files, loaded backends."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmtool.artifact.describe import describe
from gmtool.artifact.lookup import find_model
from gmtool.errors import ArtifactError, UsageError
from gmtool.images import MEAN_COLOR
from gmtool_serving.backends.base import Backend, InferenceDevice
from gmtool_serving.backends.opening import open_backend

WARM_UP_SIZE = (384, 512)
"""Height and width of the image of a model's first run, pixels; a TensorRT plan has its own."""


@dataclass(frozen=True)
class ServedModel:
    """A loaded model under its name in URLs."""

    name: str
    backend: Backend
    card: dict[str, str]
    """Facts that `gmtool info` prints about the file."""

    @property
    def has_confidence(self) -> bool:
        """Return whether the model gives a confidence for each pixel."""
        return bool({"confidence", "logits"} & set(self.backend.spec.outputs))

    def warm_up(self) -> None:
        """Run the model once, so that the first request does not pay for what a runtime sets up then.

        Raises:
            BackendError: The runtime failed.
        """
        height, width = getattr(self.backend, "preferred_size", WARM_UP_SIZE)
        shape = (self.backend.preferred_batch, height, width, 3)
        self.backend.predict(np.broadcast_to(np.array(MEAN_COLOR, np.uint8), shape).copy())

    def summary(self) -> dict[str, Any]:
        """Return the model's entry in the list of models."""
        spec = self.backend.spec
        return {
            "name": self.name,
            "classes": len(spec.classes),
            "precision": spec.precision,
            "outputs": list(spec.outputs),
            "confidence": self.has_confidence,
            "tiles": "logits" in spec.outputs,
            "backend": self.backend.description,
            "sha256": self.backend.model_sha256,
        }

    def details(self) -> dict[str, Any]:
        """Return all that the service tells about the model, without paths of this machine."""
        spec = json.loads(self.backend.spec.to_json())
        classes = spec["classes"] | {
            "colors": ["#{:02x}{:02x}{:02x}".format(*c) for c in spec["classes"]["palette"]]
        }
        return self.summary() | {"classes": classes, "spec": spec, "card": self.card}


def name_models(given: Sequence[str]) -> dict[str, Path]:
    """Return the file of each model by its name: a file's stem, a run folder's name, or NAME in NAME=FILE.

    Args:
        given: Files or run folders, each with or without a name; none for the newest model below `runs/`.

    Raises:
        ArtifactError: There is no model in a run folder, or below `runs/`.
        UsageError: Two models have one name, or a name cannot be a part of a URL.
    """
    named: dict[str, Path] = {}
    for text in given or [""]:
        name, equals, rest = text.partition("=")
        if not equals or os.path.lexists(text):
            name, rest = "", text
        path = find_model(rest or None)
        name = name or (path.stem if not rest or path == Path(rest) else Path(rest).resolve().name)
        if not name.isprintable() or set(name) & set('/\\?#%"<>') or name in (".", ".."):
            raise UsageError(
                f"model {text}: {name!r} cannot be a part of a URL: expected letters, digits, - and _"
            )
        if name in named:
            raise UsageError(f"two models are named {name}: name them as NAME={named[name]} OTHER={path}")
        named[name] = path
    return named


def open_models(
    files: dict[str, Path], *, device: InferenceDevice, threads: int, trust: bool
) -> dict[str, ServedModel]:
    """Load models.

    Raises:
        ArtifactError: A file is missing, damaged or foreign.
        BackendError: Device unavailable.
        MissingExtraError: A runtime is not installed.
    """
    opened = {}
    for name, path in files.items():
        backend = open_backend(path, device=device, threads=threads, trust=trust)
        opened[name] = ServedModel(name, backend, _card(path, trust=trust))
    return opened


def _card(path: Path, *, trust: bool) -> dict[str, str]:
    try:
        return dict(describe(path).facts)
    except ArtifactError:
        if not trust:
            raise
        return {}  # a plan without a sidecar tells nothing
