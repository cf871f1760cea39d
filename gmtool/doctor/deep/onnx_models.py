"""Deep check: ONNX Runtime in three precisions: the labels of the processor, and no convolution on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gmtool.artifact.runs import EXPORT_DIR
from gmtool.artifact.spec import Precision
from gmtool.doctor.deep.result import Checked, Setting, require
from gmtool.doctor.deep.toy_model import PRECISIONS
from gmtool.images import UInt8Array

LEAST: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.98, "int8": 0.9}
"""Least share of pixels with the label of fp32 on the processor. The toy network is unsure of many pixels."""
SHAPES = ((2, 48, 64), (1, 65, 97))
CONVOLUTIONS = ("Conv", "FusedConv", "ConvInteger", "QLinearConv")


def check(setting: Setting) -> Checked:
    """Compare labels with those of fp32 on the processor; list where the nodes of each model run."""
    from gmtool_serving.backends.opening import open_backend

    images = toy_images(setting)
    reference = open_backend(model_path(setting, "fp32"), device="cpu")
    expected = [reference.predict(batch).mask for batch in images]
    figures: dict[str, float] = {}
    for precision in PRECISIONS:
        path = model_path(setting, precision)
        backend = open_backend(path, device=setting.place)
        equal = [backend.predict(batch).mask == mask for batch, mask in zip(images, expected, strict=True)]
        figures[precision] = float(np.mean([part.mean() for part in equal]))
        said = f"{precision} on {setting.place}: {figures[precision]:.2%} of the labels of fp32 on the processor"
        require(figures[precision] >= LEAST[precision], said)
        if setting.place == "cuda":
            _refuse_convolutions_on_the_processor(path, precision, images[0], setting.folder)
    shares = ", ".join(f"{name} {share:.2%}" for name, share in figures.items())
    if setting.place == "cuda":
        return Checked(f"labels of fp32 on the processor: {shares}; every convolution on the card", None, figures)
    left_out = "CUDA: no card"
    return Checked(f"labels of fp32, on the processor: {shares}", left_out, figures)


def model_path(setting: Setting, precision: Precision) -> Path:
    """Return the toy model of a precision; that of int8 is quantized as TensorRT needs it."""
    suffix = "_symmetric" if precision == "int8" else ""
    return setting.run / EXPORT_DIR / f"model_{precision}{suffix}.onnx"


def toy_images(setting: Setting) -> list[UInt8Array]:
    """Return batches of `SHAPES`, (N, H, W, 3), of toy images, repeated where they are too small."""
    from gmtool.images import open_image

    paths = sorted((setting.data / "JPEGImages").iterdir())
    batches = []
    for count, height, width in SHAPES:
        tiled = [np.tile(np.asarray(open_image(path).convert("RGB")), (2, 2, 1)) for path in paths[:count]]
        batches.append(np.stack([image[:height, :width] for image in tiled]))
    return batches


def _refuse_convolutions_on_the_processor(
    path: Path, precision: Precision, images: UInt8Array, folder: Path
) -> None:
    """Run a model with ONNX Runtime's profile, and look where its convolutions ran."""
    import onnxruntime as ort
    from gmtool_serving.backends.onnx_runtime import CPU, CUDA, cuda_options

    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / f"profile-{precision}")
    providers = [(CUDA, cuda_options(precision)), (CPU, {})]
    session = ort.InferenceSession(path.read_bytes(), options, providers=providers)
    session.run(None, {session.get_inputs()[0].name: images})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event.get("args", {}) for event in events if event.get("cat") == "Node"]
    convolutions = [node for node in nodes if "provider" in node and node.get("op_name") in CONVOLUTIONS]
    elsewhere = [node for node in convolutions if node["provider"] != CUDA]
    require(bool(convolutions), f"{precision}: the profile names no convolution")
    said = f"{precision}: {len(elsewhere)} of {len(convolutions)} convolutions ran on the processor"
    require(not elsewhere, said)
