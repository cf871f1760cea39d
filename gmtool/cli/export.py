"""`gmtool export`: a trained run as an ONNX model or a TensorRT plan that is proven against PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gmtool.errors import needs_extra

if TYPE_CHECKING:
    from gmtool_export.make import PlanRunner
    from gmtool_export.record import ArtifactRecord
    from gmtool_export.run import ExportResult
    from gmtool_export.triton.config import TritonOptions

SHAPE = "BxHxW"
OUTPUTS: dict[str, Any] = {
    "mask": ("mask",),
    "mask+confidence": ("mask", "confidence"),
    "logits": ("logits",),
}


def export(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|CHECKPOINT]",
            help="Run folder, or a .json in its checkpoints; default: the newest run below runs/.",
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX model; the default without --trt.")] = False,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT plan.")] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], typer.Option(help="What the network computes in.")
    ] = "fp32",
    output: Annotated[
        Literal["mask", "mask+confidence", "logits"],
        typer.Option(help="What the model gives: class indices, also the largest probability, or all scores."),
    ] = "mask",
    checkpoint: Annotated[
        Literal["best", "last"] | None,
        typer.Option(help="Which weights: the best on validation (default), or the last."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Images to compare on; default: the run's validation images.")
    ] = None,
    score_images: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Validation images to score on, evenly spaced; 0 for all; default: fp32 4, fp16 and int8 24.",
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Per cent of pixels; default: fp32 99.9, fp16 99.5, int8 90."),
    ] = None,
    max_miou_drop: Annotated[
        float | None, typer.Option(help="Points of mIoU; default: fp32 0.05, fp16 0.2, int8 1.")
    ] = None,
    parity: Annotated[bool, typer.Option(help="Compare with PyTorch; what differs is not written.")] = True,
    allow_few_classes: Annotated[
        bool, typer.Option("--allow-few-classes", help="Accept a network that predicts fewer than three classes.")
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="int8: images for the ranges; default: the run's training images.")
    ] = None,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="int8: the ONNX model as TensorRT needs it; slower on a processor.")
    ] = False,
    min_shape: Annotated[
        str | None, typer.Option(metavar=SHAPE, help="--trt: smallest batch, height and width.")
    ] = None,
    opt_shape: Annotated[
        str | None, typer.Option(metavar=SHAPE, help="--trt: those that it shall be fastest at.")
    ] = None,
    max_shape: Annotated[str | None, typer.Option(metavar=SHAPE, help="--trt: largest ones.")] = None,
    runtime: Annotated[
        Literal["tensorrt", "tensorrt_rtx"] | None,
        typer.Option("--trt-runtime", help="--trt: which TensorRT; default: the one that is installed."),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(min=1, metavar="MIB", help="--trt: limit of the builder's scratch memory.")
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
    timing_cache: Annotated[
        Path | None, typer.Option(help="--trt: file of kernel timings, for a faster second build.")
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Put the model into this model repository of Triton, as its next version."
        ),
    ] = None,
    triton_name: Annotated[
        str | None, typer.Option(help="--triton: the model's name there; default: that of the run.")
    ] = None,
    triton_plan: Annotated[
        list[Path] | None, typer.Option(help="--triton: a plan of the same model for another GPU; repeatable.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="--triton: images at once; default: 8, or what the plans take.")
    ] = None,
    instances: Annotated[int | None, typer.Option(min=1, help="--triton: copies on each GPU; default: 1.")] = None,
    queue_delay_us: Annotated[
        int | None, typer.Option(min=0, help="--triton: longest wait for a batch, microseconds; default: 2000.")
    ] = None,
    warmup: Annotated[
        list[str] | None, typer.Option(metavar="HxW", help="--triton: image sizes to warm up with; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written and its proof as JSON.")] = False,
) -> None:
    """Export a trained run to ONNX or TensorRT, and prove that it still is the same model.

    The model takes images as decoded (uint8 RGB, any size); it knows its classes, its origin and its hash. It is
    written only if it agrees with PyTorch on real images.
    """
    from gmtool.artifact.tensorrt_plan import PLAN_SUFFIX
    from gmtool.console import result

    run_dir, name = _checkpoint(source, checkpoint)  # before torch is imported, which takes seconds
    with needs_extra("export", "exporting"):
        from gmtool_export.run import ExportOptions, export_run
        from gmtool_export.tensorrt.build import BuildOptions, choose_flavour
        from gmtool_export.triton.config import TritonOptions
    shapes = {"--min-shape": min_shape, "--opt-shape": opt_shape, "--max-shape": max_shape}
    about_plans = {
        **shapes,
        "--trt-runtime": runtime,
        "--workspace": workspace,
        "--hardware-compatible": hardware_compatible,
        "--version-compatible": version_compatible,
        "--compute-capability": compute_capability,
        "--timing-cache": timing_cache,
    }
    _refuse_idle(about_plans, used=trt, needs="--trt")
    about_triton = {
        "--triton-name": triton_name,
        "--triton-plan": triton_plan,
        "--max-batch": max_batch,
        "--instances": instances,
        "--queue-delay-us": queue_delay_us is not None,
        "--warmup": warmup,
    }
    _refuse_idle(about_triton, used=triton is not None, needs="--triton")
    if triton_plan and not trt:
        raise typer.BadParameter("--triton-plan stands beside a plan: give --trt too")
    into_triton = TritonOptions(max_batch, instances, queue_delay_us, _sizes(warmup))
    about_int8 = {"--calibration": calibration, "--symmetric": symmetric}
    _refuse_idle(about_int8, used=precision == "int8", needs="--precision int8")
    about_parity = {"--images": images, "--min-agreement": min_agreement, "--max-miou-drop": max_miou_drop}
    _refuse_idle(about_parity, used=parity, needs="--parity")
    build = None
    if trt:
        from gmtool_export.tensorrt.profiles import profile_of_run

        build = BuildOptions(
            flavour=choose_flavour(runtime),
            profiles=(profile_of_run(run_dir, shapes),),
            workspace_bytes=None if workspace is None else workspace << 20,
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            compute_capabilities=tuple(compute_capability or ()),
            timing_cache=timing_cache,
        )
    options = ExportOptions(
        precision=precision,
        outputs=OUTPUTS[output],
        onnx=onnx or not trt,
        plan=build,
        run_plan=_plan_runner(),
        symmetric=symmetric,
        calibration_dir=calibration,
        parity=parity,
        image_dir=images,
        num_scored=score_images,
        min_agreement=None if min_agreement is None else min_agreement / 100,
        max_miou_drop=max_miou_drop,
        allow_few_classes=allow_few_classes,
    )
    done = export_run(run_dir, name=name, options=options)
    if triton is not None:
        # An ONNX model and a plan are two models to Triton: of both, the plan
        made = [path for path in done.paths if path.suffix == PLAN_SUFFIX] or done.paths
        _to_triton([*made, *(triton_plan or [])], triton, triton_name, into_triton)
    if as_json:
        result(json.dumps([record.to_dict() for record in done.records], indent=1))
    else:
        result("\n".join(str(path) for path in done.paths))
    _tell(done, run_dir)


def _sizes(texts: list[str] | None) -> tuple[tuple[int, int], ...] | None:
    from gmtool.artifact.shapes import parse_size

    return None if texts is None else tuple(parse_size(text, where="--warmup") for text in texts)


def _to_triton(artifacts: list[Path], repository: Path, name: str | None, options: TritonOptions) -> None:
    from gmtool_export.triton.repository import export_triton

    from gmtool.console import remark

    model = export_triton(artifacts, repository, name=name, options=options)
    remark(f"Triton: version {model.version} of {model.folder}, at most {model.max_batch} images at once")


def _refuse_idle(options: Mapping[str, object], *, used: bool, needs: str) -> None:
    """End with a usage error if one of some options was given though nothing would look at it."""
    given = [] if used else [option for option, value in options.items() if value]
    if given:
        raise typer.BadParameter(f"{given[0]} does nothing without {needs}")


def _checkpoint(source: Path | None, asked: str | None) -> tuple[Path, str]:
    """Return the run folder and the checkpoint's name that the command line means."""
    from gmtool.artifact.runs import CHECKPOINT_DIR, newest_run
    from gmtool.errors import CheckpointError

    if source is None:
        return newest_run(), asked or "best"
    if source.suffix != ".json":
        if not source.is_dir():
            raise CheckpointError(f"run folder {source} does not exist")
        return source, asked or "best"
    if asked is not None:
        raise typer.BadParameter(f"{source} is a checkpoint itself: leave --checkpoint out")
    if source.parent.name != CHECKPOINT_DIR or not source.is_file():
        raise CheckpointError(
            f"{source} is no checkpoint: expected a run folder, or RUN/{CHECKPOINT_DIR}/NAME.json"
        )
    return source.parent.parent, source.stem


def _plan_runner() -> PlanRunner:
    """Return what opens a plan on this machine's GPU. Exporting does not know the part that serves models."""

    def open_plan(path: Path) -> tuple[str, Any]:
        from gmtool_serving.backends.opening import open_backend

        backend = open_backend(path)

        def run(images: Any) -> dict[str, Any]:
            given = backend.predict(images)
            return {"mask": given.mask} | ({} if given.logits is None else {"logits": given.logits})

        return backend.description, run

    return open_plan


def _tell(done: ExportResult, run_dir: Path) -> None:
    """Say on stderr how well each model agrees, and what to do next."""
    from gmtool.console import remark

    for path, record in zip(done.paths, done.records, strict=True):
        remark(f"{path}: {record.precision}, {record.bytes / 1e6:.1f} MB")
        for line in _proof_lines(record):
            remark(f"  {line}")
    first = done.paths[0]
    remark(f"exported in {done.seconds:.0f} s; all that was measured: {first.parent / 'export.md'}")
    remark("next:")
    remark(f"  gmtool predict IMAGES --out masks/ --model {first}")
    remark(f"  gmtool evaluate --model {first}")
    if done.records[0].precision == "fp32":
        remark(f"  gmtool export {run_dir} --precision fp16")


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
