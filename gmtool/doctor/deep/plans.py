"""Deep check: TensorRT plans of three precisions at four shapes, built and, on a card, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gmtool.artifact.nvidia import load_tensorrt
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES, Flavour, write_plan
from gmtool.doctor.deep.onnx_models import LEAST, model_path
from gmtool.doctor.deep.result import Checked, LeftOutError, Setting, require
from gmtool.doctor.deep.toy_model import PRECISIONS
from gmtool.errors import BackendError, MissingExtraError
from gmtool.images import UInt8Array

SHAPES = tuple(BatchShape(*shape) for shape in ((1, 48, 64), (1, 65, 97), (2, 96, 128), (4, 128, 128)))
PROFILE = ShapeProfile(BatchShape(1, 32, 32), BatchShape(2, 96, 128), BatchShape(4, 128, 128))


def check(setting: Setting) -> Checked:
    """Build the plans with the TensorRT that is installed; compare their labels with ONNX Runtime's."""
    from gmtool_export.tensorrt.build import BuildOptions, build_plan
    from gmtool_serving.backends.model_file import read_model_file
    from gmtool_serving.backends.opening import open_backend

    flavour = _flavour(setting)
    options, images = BuildOptions(flavour, (PROFILE,)), [_images(shape) for shape in SHAPES]
    reference = open_backend(model_path(setting, "fp32"), device="cpu")
    expected = [reference.predict(batch).mask for batch in images]
    sizes: dict[str, int] = {}
    shares: dict[str, float] = {}
    for precision in PRECISIONS:
        file = read_model_file(model_path(setting, precision), trust=False)
        plan = build_plan(file.content, file.spec, options)
        sizes[precision] = len(plan.content)
        if setting.place == "cpu":
            continue
        path = Path(setting.folder / f"model_{precision}{'.rtx' * (flavour == 'tensorrt_rtx')}.plan")
        write_plan(plan, path)
        backend = open_backend(path)
        equal = [backend.predict(batch).mask == mask for batch, mask in zip(images, expected, strict=True)]
        shares[precision] = min(float(part.mean()) for part in equal)
        said = f"{precision}: {shares[precision]:.2%} of the labels of fp32 on the processor, at the worst shape"
        require(shares[precision] >= LEAST[precision], said)
    title = f"{FLAVOUR_TITLES[flavour]} {load_tensorrt(flavour).__version__}"
    built = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    if setting.place == "cpu":
        return Checked(f"{title} built {built}", "running them at four shapes: no card", {"bytes": sizes})
    ran = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    text = f"{title} built {built}; labels of fp32 at the worst of {len(SHAPES)} shapes: {ran}"
    return Checked(text, None, {"bytes": sizes, "labels": shares})


def _flavour(setting: Setting) -> Flavour:
    """Return the installed TensorRT that builds for this machine's card, or without one."""
    reasons = []
    for flavour in FLAVOUR_TITLES:
        try:
            trt = load_tensorrt(flavour)
        except (MissingExtraError, BackendError) as error:
            reasons.append(str(error))
            continue
        if setting.place == "cpu" and flavour == "tensorrt":
            reasons.append("TensorRT builds on a card alone")
        elif setting.place == "cuda" and flavour == "tensorrt_rtx" and not _builds_for_card(trt):
            reasons.append("TensorRT-RTX builds for no card of this compute capability")
        else:
            return flavour
    raise LeftOutError("; ".join(reasons))


def _builds_for_card(trt: object) -> bool:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return hasattr(getattr(trt, "ComputeCapability", None), f"SM{major}{minor}")


def _images(shape: BatchShape) -> UInt8Array:
    """Return random images, (N, H, W, 3), of large patches: noise would be of no class."""
    patches = np.random.default_rng(shape.pixels).integers(0, 256, (shape.batch, 8, 8, 3), dtype=np.uint8)
    repeated = patches.repeat(-(-shape.height // 8), axis=1).repeat(-(-shape.width // 8), axis=2)
    return repeated[:, : shape.height, : shape.width].copy()
