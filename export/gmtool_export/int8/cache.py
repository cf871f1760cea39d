"""Ranges and layer errors of a quantization, kept so that a second export does not compute them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData

from gmtool.console import remark
from gmtool.errors import DataError
from gmtool.files import write_atomically
from gmtool.images import UInt8Array
from gmtool.json_toml import read_json, typed
from gmtool.resources import EXACT_INT8
from gmtool_export.int8.calibration import Calibration
from gmtool_export.int8.quantize import OPERATORS, measure_ranges
from gmtool_export.int8.sensitivity import LayerError, SwitchedModel, layer_errors, tuning_images

CACHE_NAME = "int8_cache.json"
"""File in the folder of the exported models. It may be deleted."""


@dataclass(frozen=True)
class Calibrated:
    """Calibration images and activation ranges."""

    images: tuple[UInt8Array, ...]
    ranges: TensorsData
    source: str
    """Description of the images' origin."""
    sha256: str
    """SHA-256 of their file names."""
    key: str
    """SHA-256 of graph, images and the version of onnxruntime."""
    cache: Path | None
    """File of what was computed; None keeps nothing."""

    def layer_errors(self, switched: SwitchedModel, *, symmetric: bool) -> tuple[LayerError, ...]:
        """Return the error of each layer, from the cache if it has them."""
        name = "symmetric" if symmetric else "asymmetric"
        kept = _read(self.cache, self.key).get(name)
        if kept is not None and [entry["node"] for entry in kept] == switched.layers:
            remark("int8: layers as measured by an earlier export")
            return tuple(typed(LayerError, entry, where=str(self.cache)) for entry in kept)
        remark(f"int8: measuring {len(switched.layers)} layers on {len(tuning_images(self.images))} images")
        errors = layer_errors(switched, self.images)
        _keep(self.cache, self.key, {name: [asdict(error) for error in errors]})
        return errors


def calibrate(model: onnx.ModelProto, calibration: Calibration, *, cache: Path | None = None) -> Calibrated:
    """Measure activation ranges of the float32 graph on the calibration images, unless `cache` has them.

    Args:
        model: Float32 graph.
        calibration: Images.
        cache: File of what earlier exports computed.
    """
    images = tuple(calibration.read())
    key = _key(model, images)
    kept = _read(cache, key).get("ranges")
    if kept is None:
        ranges = measure_ranges(model, images)
        _keep(cache, key, {"ranges": {name: _pair(entry) for name, entry in ranges.items()}})
    else:
        remark("int8: ranges as measured by an earlier export")
        ranges = _tensors(kept)
    return Calibrated(images, ranges, calibration.source, calibration.sha256, key, cache)


def _key(model: onnx.ModelProto, images: Sequence[UInt8Array]) -> str:
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    digest.update(f"{ort.__version__} {OPERATORS} {EXACT_INT8}".encode())
    for image in images:
        digest.update(f"{image.shape}".encode() + image.tobytes())
    return digest.hexdigest()


def _pair(entry: Any) -> list[float]:
    low, high = entry.range_value
    return [np.asarray(low).item(), np.asarray(high).item()]


def _tensors(pairs: dict[str, list[float]]) -> TensorsData:
    return TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high))
            for name, (low, high) in pairs.items()
        },
    )


def _read(path: Path | None, key: str) -> dict[str, Any]:
    """Return what a cache holds of a key; nothing if it is missing, damaged or of another key."""
    try:
        value = None if path is None or not path.is_file() else read_json(path)
        return dict(value["kept"]) if value is not None and value["key"] == key else {}
    except (DataError, LookupError, TypeError, ValueError):
        return {}


def _keep(path: Path | None, key: str, entries: dict[str, Any]) -> None:
    if path is None:
        return
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps({"key": key, "kept": _read(path, key) | entries}) + "\n")
