"""`gmtool export`: a trained run as an ONNX model or a TensorRT plan that is proven against PyTorch."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gmtool.api import exporting
from gmtool.cli.options import AsJson, groups
from gmtool.errors import UsageError

if TYPE_CHECKING:
    from gmtool_export.record import ArtifactRecord
    from gmtool_export.run import ExportResult
    from gmtool_export.targets import TensorRTTarget, TritonTarget

SHAPE = "BxHxW"
EPILOG = groups(
    {
        "model": "--precision --output --shape --checkpoint --onnx --openvino --json",
        "proof": "--images --score-images --min-agreement --max-miou-drop --no-parity --allow-few-classes",
        "int8": "--calibration --symmetric",
        "TensorRT": "--trt --min-shape --opt-shape --max-shape --trt-runtime --workspace --timing-cache "
        "--hardware-compatible --version-compatible --compute-capability",
        "Triton": "--triton --triton-name --triton-plan --max-batch --instances --queue-delay-us --warmup",
    }
)


def export(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|CHECKPOINT]",
            help="Run folder, or a .json in its checkpoints; default: the newest run below runs/.",
        ),
    ] = None,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="Precision of the network.")] = "fp32",
    output: Annotated[
        Literal["mask", "mask+confidence", "logits", "mask+confidence+embedding", "logits+embedding"],
        typer.Option(
            help="Class indices, also the largest probability, or the logits of all classes; embedding: a vector "
            "of each image, for gmtool select."
        ),
    ] = "mask",
    shape: Annotated[
        str | None,
        typer.Option(metavar=SHAPE, help="One shape for the ONNX model, for runtimes without dynamic ones. [any]"),
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT plan.")] = False,
    openvino: Annotated[
        bool, typer.Option("--openvino", help="Write an OpenVINO model (IR), for processors.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write an ONNX model; the default without --trt and --openvino.")
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Add the model to this Triton model repository, as its next version."),
    ] = None,
    checkpoint: Annotated[
        Literal["best", "last"] | None, typer.Option(help="Weights: the best on validation, or the last. [best]")
    ] = None,
    parity: Annotated[bool, typer.Option(help="Compare with PyTorch; what differs is not written.")] = True,
    images: Annotated[
        Path | None, typer.Option(help="Images to compare on. [the run's validation images]")
    ] = None,
    score_images: Annotated[
        int | None,
        typer.Option(
            min=0, help="Validation images to score on, evenly spaced; 0 for all. [fp32 4, fp16 and int8 24]"
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Pixels of the same label, per cent. [fp32 99.9, fp16 99.5, int8 90]"),
    ] = None,
    max_miou_drop: Annotated[
        float | None, typer.Option(min=0, help="Points of mIoU. [fp32 0.05, fp16 0.2, int8 1]")
    ] = None,
    allow_few_classes: Annotated[
        bool, typer.Option("--allow-few-classes", help="Accept a network that predicts fewer than three classes.")
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="int8: images for the ranges. [the run's training images]")
    ] = None,
    symmetric: Annotated[
        bool,
        typer.Option(
            "--symmetric", help="int8: the ONNX model as TensorRT needs it; for other runtimes leave it out."
        ),
    ] = False,
    min_shape: Annotated[
        str | None, typer.Option(metavar=SHAPE, help="--trt: smallest batch, height and width.")
    ] = None,
    opt_shape: Annotated[str | None, typer.Option(metavar=SHAPE, help="--trt: shape of highest speed.")] = None,
    max_shape: Annotated[str | None, typer.Option(metavar=SHAPE, help="--trt: largest ones.")] = None,
    runtime: Annotated[
        Literal["tensorrt", "tensorrt_rtx"] | None,
        typer.Option("--trt-runtime", help="--trt: which TensorRT. [the installed one]"),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(min=1, metavar="MIB", help="--trt: limit of the builder's scratch memory.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="--trt: file of kernel timings, for a faster second build.")
    ] = None,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="--trt: also for other GPUs, Ampere and later.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="--trt: also for later versions of TensorRT.")
    ] = False,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="--trt: GPUs to build for, such as 8.6; repeatable. TensorRT-RTX.")
    ] = None,
    triton_name: Annotated[
        str | None, typer.Option(help="--triton: name of the model there. [that of the run]")
    ] = None,
    triton_plan: Annotated[
        list[Path] | None, typer.Option(help="--triton: a plan of the same model for another GPU; repeatable.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="--triton: images at once. [8, or what the plans take]")
    ] = None,
    instances: Annotated[int | None, typer.Option(min=1, help="--triton: copies on each GPU. [1]")] = None,
    queue_delay_us: Annotated[
        int | None, typer.Option(min=0, help="--triton: longest wait for a batch, microseconds. [2000]")
    ] = None,
    warmup: Annotated[
        list[str] | None, typer.Option(metavar="HxW", help="--triton: image sizes to warm up with; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained run to ONNX or TensorRT, and prove that it still is the same model.

    The model takes images as decoded (uint8 RGB, any size); it knows its classes, its origin and its hash. It is
    written only if it agrees with PyTorch on real images.
    """
    from gmtool_export.targets import TensorRTTarget, TritonTarget

    from gmtool.console import result

    plan = TensorRTTarget(
        min_shape=min_shape,
        opt_shape=opt_shape,
        max_shape=max_shape,
        runtime=runtime,
        workspace_mib=workspace,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        compute_capabilities=tuple(compute_capability or ()),
        timing_cache=timing_cache,
    )
    repository = TritonTarget(
        triton or Path(),
        name=triton_name,
        plans=tuple(triton_plan or ()),
        max_batch=max_batch,
        instances=instances,
        queue_delay_us=queue_delay_us,
        warmup=tuple(warmup) if warmup else None,
    )
    if not trt:
        _refuse_idle(plan, needs="--trt")
    if triton is None:
        _refuse_idle(repository, needs="--triton")
    done = exporting.export(
        source,
        precision=precision,
        output=output,
        shape=shape,
        trt=plan if trt else False,
        onnx=onnx or not (trt or openvino),
        openvino=openvino,
        triton=None if triton is None else repository,
        checkpoint=checkpoint,
        parity=parity,
        images=images,
        score_images=score_images,
        min_agreement=min_agreement,
        max_miou_drop=max_miou_drop,
        allow_few_classes=allow_few_classes,
        calibration=calibration,
        symmetric=symmetric,
    )
    if as_json:
        result(json.dumps([record.to_dict() for record in done.records], indent=1))
    else:
        result("\n".join(str(path) for path in done.paths))
    show_export(done)


OPTIONS = {
    "runtime": "--trt-runtime",
    "workspace_mib": "--workspace",
    "compute_capabilities": "--compute-capability",
    "name": "--triton-name",
    "plans": "--triton-plan",
}
"""Options that are not called as their fields are."""


def _refuse_idle(target: TensorRTTarget | TritonTarget, *, needs: str) -> None:
    """Refuse options of a target that is not asked for."""
    for field in fields(target):
        if field.default is not MISSING and getattr(target, field.name) != field.default:
            option = OPTIONS.get(field.name, f"--{field.name.replace('_', '-')}")
            raise UsageError(f"{option} does nothing without {needs}")


def show_export(done: ExportResult) -> None:
    """Say on stderr how well each model agrees, and what to do next."""
    from gmtool.artifact.verification import path_beside
    from gmtool.console import remark

    for path, record in zip(done.paths, done.records, strict=True):
        remark(f"{path}: {record.precision}, {record.bytes / 1e6:.1f} MB")
        for line in _proof_lines(record):
            remark(f"  {line}")
    first = done.path
    remark(f"exported in {done.seconds:.0f} s; all that was measured: {first.parent / 'export.md'}")
    remark("next:")
    remark(f"  gmtool predict IMAGES --out masks/ --model {first}")
    remark(f"  gmtool evaluate --model {first}")
    if done.records[0].proofs:
        remark(f"  gmtool verify {first}   where it will run; copy {path_beside(first).name} with it")
    if done.records[0].precision == "fp32":
        remark(f"  gmtool export {first.parent.parent} {_faster_here()}")


def _faster_here() -> str:
    """Return the options of a faster model on this machine."""
    from importlib.util import find_spec

    from gmtool.artifact.nvidia import has_gpu

    if not has_gpu():
        return "--precision int8"
    return "--precision fp16 --trt" if find_spec("tensorrt") else "--precision fp16"


def _proof_lines(record: ArtifactRecord) -> list[str]:
    from gmtool.report.report import percent

    lines = [] if record.proofs else ["not compared with PyTorch (--no-parity)"]
    if record.quantization is not None:
        made = record.quantization
        lines.append(f"{made.quantized_layers} convolutions in int8; in float32: {', '.join(made.float_layers)}")
    for proof in record.proofs:
        lines.append(f"pixels with PyTorch's label in {proof.runtime}:")
        for row in proof.rows:
            shape = f"{row.batch}x{row.height}x{row.width}"
            differ = "" if row.max_difference is None else f"  logits within {row.max_difference:.2g}"
            lines.append(f"  {row.shape:<11} {shape:<12} {row.agreement:9.4%}  {row.classes_seen} classes{differ}")
        if proof.score is None:
            lines.append(f"mIoU not compared: {proof.not_scored}")
            continue
        score = proof.score
        lines.append(
            f"mIoU {percent(score.miou)} %, PyTorch {percent(score.miou_pytorch)} %, on {score.num_images} of "
            f"{score.num_listed} validation images; worst {score.worst.id}: {score.worst.agreement:.2%} agree"
        )
    return lines
