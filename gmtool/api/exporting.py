"""Export a trained run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gmtool.api.arguments import PathLike, as_path, refuse, refuse_idle
from gmtool.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from gmtool_export.make import PlanRunner
    from gmtool_export.run import ExportResult
    from gmtool_export.targets import TensorRTTarget, TritonTarget

    from gmtool.artifact.spec import OutputName, Precision

OUTPUTS: dict[str, tuple[OutputName, ...]] = {
    "mask": ("mask",),
    "mask+confidence": ("mask", "confidence"),
    "logits": ("logits",),
    "mask+confidence+embedding": ("mask", "confidence", "embedding"),
    "logits+embedding": ("logits", "embedding"),
}
OutputChoice: TypeAlias = Literal[
    "mask", "mask+confidence", "logits", "mask+confidence+embedding", "logits+embedding"
]


def export(
    run: PathLike | None = None,
    *,
    precision: Precision = "fp32",
    output: OutputChoice = "mask",
    shape: str | None = None,
    trt: bool | TensorRTTarget = False,
    onnx: bool | None = None,
    openvino: bool = False,
    triton: PathLike | TritonTarget | None = None,
    checkpoint: Literal["best", "last"] | None = None,
    parity: bool = True,
    images: PathLike | None = None,
    score_images: int | None = None,
    min_agreement: float | None = None,
    max_miou_drop: float | None = None,
    allow_few_classes: bool = False,
    calibration: PathLike | None = None,
    symmetric: bool = False,
) -> ExportResult:
    """Export a trained run, and prove that the model agrees with PyTorch on real images.

    Args:
        run: Run folder, or a .json in its checkpoints; None for the newest run below `runs/`.
        precision: `fp32`, `fp16` or `int8`.
        output: Class indices, also the largest probability, or the logits of all classes.
        shape: The one shape of the ONNX model, as `1x480x640`, for runtimes without dynamic shapes.
        trt: Build a TensorRT plan, with settings if given.
        onnx: Write an ONNX model; by default unless another one is made.
        openvino: Write an OpenVINO model (IR), for processors.
        triton: Model repository of Triton to put the model into.
        checkpoint: Weights: `best` on validation, or `last`.
        parity: Compare with PyTorch; a model that differs is not written.
        images: Folder of images to compare on; by default the run's validation images.
        score_images: Validation images to score on, evenly spaced; 0 for all. [fp32 4; fp16, int8 24]
        min_agreement: Least pixels of the same label, per cent. [fp32 99.9, fp16 99.5, int8 90]
        max_miou_drop: Largest loss of mIoU, points. [fp32 0.05, fp16 0.2, int8 1]
        allow_few_classes: Accept a network that predicts fewer than three classes.
        calibration: int8: folder of images for the ranges; by default the run's training images.
        symmetric: int8: quantize the ONNX model as TensorRT needs it.

    Returns:
        The files written, their proofs, and seconds.

    Raises:
        CheckpointError: No such run, or damaged weights.
        ParityError: The model does not agree with PyTorch; nothing was written.
        UsageError: Keywords that contradict each other.
    """
    from gmtool.artifact.lookup import find_checkpoint
    from gmtool.artifact.shapes import BatchShape

    run_dir, name = find_checkpoint(run, checkpoint)  # before torch is imported, which takes seconds
    with needs_extra("export", "exporting"):
        from gmtool_export.data_check import check_images
    check_images(
        run_dir,
        parity=parity,
        image_dir=as_path(images),
        int8=precision == "int8",
        calibration_dir=as_path(calibration),
    )
    with needs_extra("export", "exporting"):
        from gmtool_export.run import ExportOptions, export_run
        from gmtool_export.targets import TensorRTTarget, TritonTarget
    for_int8 = {"--calibration": calibration, "--symmetric": symmetric}
    refuse_idle(for_int8, used=precision == "int8", needs="--precision int8")
    for_parity = {
        "--images": images,
        "--score-images": score_images is not None,
        "--min-agreement": min_agreement is not None,
        "--max-miou-drop": max_miou_drop is not None,
    }
    refuse_idle(for_parity, used=parity, needs="--parity")
    fixed = None if shape is None else BatchShape.parse(shape, where="--shape")
    if fixed is not None:
        refuse({"--trt": trt, "--triton": triton}, "does not go with --shape: it is for the ONNX model")
    if output.endswith("embedding"):
        refuse({"--trt": trt}, f"does not go with --output {output}: gmtool select takes the ONNX model")
    plan = TensorRTTarget() if trt is True else trt or None
    repository = TritonTarget(triton) if isinstance(triton, str | os.PathLike) else triton
    if repository is not None:
        refuse_idle({"--triton-plan": repository.plans}, used=plan is not None, needs="--trt")
        if openvino and not onnx and plan is None:
            raise UsageError("--triton takes the ONNX model or the plan, not --openvino: give --onnx too")
        repository.check()
    options = ExportOptions(
        precision=precision,
        outputs=OUTPUTS[output],
        shape=fixed,
        onnx=(plan is None and not openvino) if onnx is None else onnx,
        openvino=openvino,
        plan=None if plan is None else plan.build_options(run_dir),
        run_plan=_plan_runner(),
        symmetric=symmetric,
        calibration_dir=as_path(calibration),
        parity=parity,
        image_dir=as_path(images),
        num_scored=score_images,
        min_agreement=None if min_agreement is None else min_agreement / 100,
        max_miou_drop=max_miou_drop,
        allow_few_classes=allow_few_classes,
    )
    done = export_run(run_dir, name=name, options=options)
    if repository is not None:
        repository.add(done.paths)
    return done


def _plan_runner() -> PlanRunner:
    """Return what opens a plan on this machine's GPU: the part that exports does not know the one that serves."""

    def open_plan(path: Path) -> tuple[str, Any]:
        from gmtool_serving.backends.opening import open_backend

        backend = open_backend(path)

        def run(images: Any) -> dict[str, Any]:
            given = backend.predict(images)
            return {"mask": given.mask} | ({} if given.logits is None else {"logits": given.logits})

        return backend.description, run

    return open_plan
