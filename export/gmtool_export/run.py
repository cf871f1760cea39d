"""Export a run: load a checkpoint, make and prove the models, write them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch

from gmtool import __version__
from gmtool.artifact.runs import CONFIG_NAME, EXPORT_DIR
from gmtool.artifact.shapes import BatchShape
from gmtool.artifact.spec import ArtifactSpec, InputContract, ModelProvenance, OutputName, Precision
from gmtool.artifact.verification import path_beside
from gmtool.classes import ClassSet
from gmtool.console import remark
from gmtool.errors import CheckpointError
from gmtool.files import sweep_leftovers, write_atomically
from gmtool.nn.checkpoint import Checkpoint, load_network
from gmtool.nn.model import GuidedMixNet
from gmtool.settings import load_config
from gmtool_export.graph.onnx import OPSET, export_graph, fix_shape
from gmtool_export.int8.cache import CACHE_NAME, calibrate
from gmtool_export.int8.calibration import Calibration, calibration_images
from gmtool_export.int8.search import quantize
from gmtool_export.make import Graph, Made, PlanRunner, Proving, RejectedError, make_ir, make_onnx, make_plan
from gmtool_export.model_card import CARD_NAME, model_card
from gmtool_export.proof.gate import TOLERANCES, Tolerance
from gmtool_export.proof.half import half_headroom
from gmtool_export.proof.images import SCORED_IMAGES, gather_evidence
from gmtool_export.proof.miou_drop import PyTorchMasks
from gmtool_export.proof.parity import FIXED, ParityRow
from gmtool_export.record import ArtifactRecord, drop_rejected, save_records, save_rejected
from gmtool_export.tensorrt.build import BuildOptions, check_options


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export: files, precision, proof."""

    precision: Precision = "fp32"
    outputs: tuple[OutputName, ...] = ("mask",)
    shape: BatchShape | None = None
    """The one shape of the ONNX model; None for any."""
    onnx: bool = True
    """Write an ONNX file."""
    plan: BuildOptions | None = None
    """Build options of a TensorRT plan; None builds none."""
    run_plan: PlanRunner | None = None
    """Opens a plan on this machine's GPU, to prove it there, or an OpenVINO model; None skips that of a plan."""
    openvino: bool = False
    """Write an OpenVINO model."""
    symmetric: bool = False
    """int8: symmetric activations, as TensorRT needs them, in the ONNX file too."""
    calibration_dir: Path | None = None
    """Calibration images for int8; by default training images of the run."""
    parity: bool = True
    """Compare the model with PyTorch before it is written."""
    image_dir: Path | None = None
    """Images to compare on; by default validation images of the run."""
    num_scored: int | None = None
    """Validation images to score on; 0 for all, None for `SCORED_IMAGES` of the precision."""
    min_agreement: float | None = None
    """Smallest share of pixels with PyTorch's label, in [0, 1]; by default that of the precision."""
    max_miou_drop: float | None = None
    """Largest loss of mIoU, points; by default that of the precision."""
    allow_few_classes: bool = False
    """Accept a network that predicts fewer than `MIN_CLASSES` classes."""

    @property
    def tolerance(self) -> Tolerance:
        """Bounds of the comparison."""
        usual = TOLERANCES[self.precision]
        return Tolerance(
            usual.min_agreement if self.min_agreement is None else self.min_agreement,
            usual.max_miou_drop if self.max_miou_drop is None else self.max_miou_drop,
        )


@dataclass(frozen=True)
class ExportResult:
    """Written files and their records."""

    paths: tuple[Path, ...]
    records: tuple[ArtifactRecord, ...]
    seconds: float
    all_records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Records of all models in the folder, by file name, as `export.json` has them."""

    @property
    def path(self) -> Path:
        """The first file."""
        return self.paths[0]

    def __fspath__(self) -> str:
        """Return the first file: the result is taken wherever a model's path is."""
        return str(self.path)

    @property
    def spec(self) -> ArtifactSpec:
        """Spec of the first file."""
        return self.records[0].spec

    @property
    def parity(self) -> tuple[ParityRow, ...]:
        """Comparison of the first file with PyTorch, a row a shape; empty if it was not compared."""
        proofs = self.records[0].proofs
        return proofs[0].rows if proofs else ()


def export_run(run_dir: Path, *, name: str = "best", options: ExportOptions | None = None) -> ExportResult:
    """Export models into a run's folder `export`, with records in `export.json` and `export.md`.

    Args:
        run_dir: Run folder.
        name: Checkpoint, such as `best` or `last`.
        options: Export options.

    Raises:
        GmtoolError: No such run, damaged weights, no images, a graph that TensorRT refuses, or a model that fails
            its proof; no file is written.
    """
    # Check options before anything slow
    options = options or ExportOptions()
    if not run_dir.is_dir():
        raise CheckpointError(f"run folder {run_dir} does not exist")
    started = time.monotonic()
    if options.plan is not None:
        check_options(options.plan)
    # Load the network, and run PyTorch on the images of the proof
    network, checkpoint = load_network(run_dir, name)
    config = load_config(run_dir / CONFIG_NAME)
    evidence = None
    if options.parity:
        remark("comparing: PyTorch on real images")
        evidence = gather_evidence(
            network,
            config,
            image_dir=options.image_dir,
            num_scored=SCORED_IMAGES[options.precision] if options.num_scored is None else options.num_scored,
            num_classes=len(checkpoint.classes),
            allow_few_classes=options.allow_few_classes,
            shape=options.shape,
        )
    proving = None
    if evidence is not None:
        proving = Proving(network, evidence, options.tolerance, PyTorchMasks(network))
    # Make the graphs
    calibration = calibration_images(options.calibration_dir, config.data) if options.precision == "int8" else None
    folder = run_dir / EXPORT_DIR
    graphs = _graphs(network, options, calibration, proving, checkpoint.classes, folder / CACHE_NAME)
    spec = _spec(run_dir, network, checkpoint, options)
    # Make and prove the files, then write them
    made: list[Made] = []
    if options.onnx:
        try:
            made.append(make_onnx(graphs[0], spec, proving, checkpoint=name))
        except RejectedError as error:
            folder.mkdir(exist_ok=True)
            save_rejected(folder, error.record, error.content, str(error))
            raise
    if options.openvino:
        assert options.run_plan is not None
        made.append(make_ir(graphs[0], spec, options.run_plan, proving, checkpoint=name))
    if options.plan is not None:
        made.append(make_plan(graphs[-1], spec, options.plan, options.run_plan, proving, checkpoint=name))
    done = _write(folder, made, time.monotonic() - started)
    write_atomically(folder / CARD_NAME, model_card(run_dir, config, done.records[0], done.all_records))
    return done


def _graphs(
    network: GuidedMixNet,
    options: ExportOptions,
    calibration: Calibration | None,
    proving: Proving | None,
    classes: ClassSet,
    cache: Path,
) -> list[Graph]:
    """Return the graphs of the ONNX file and of the plan, in this order; one unless they differ (int8)."""
    headroom = None
    if options.precision == "fp16" and proving is not None:
        batches = proving.evidence.batches
        headroom = half_headroom(network, batches["batch of 3" if options.shape is None else FIXED].images)
    remark("exporting: torch.onnx")
    model = export_graph(network, half=options.precision == "fp16", embedding="embedding" in options.outputs)
    if calibration is None:
        return [Graph(_with_shape(model, options.shape), headroom=headroom)]
    # int8
    remark(f"calibrating: {calibration.source}")
    calibrated = calibrate(model, calibration, cache=cache)
    wanted = [options.symmetric] if options.onnx or options.openvino else []
    if options.plan is not None and True not in wanted:
        wanted.append(True)  # TensorRT needs symmetric activations
    measure = None
    if proving is not None and proving.evidence.scored is not None:
        measure = partial(proving.drop, classes=classes)
    made = []
    for symmetric in wanted:
        remark("quantizing: layers that lose too much stay in float32")
        graph, quantization = quantize(
            model, calibrated, symmetric=symmetric, measure=measure, max_drop=options.tolerance.max_miou_drop
        )
        made.append(Graph(_with_shape(graph, options.shape), quantization))
    return made


def _with_shape(model: onnx.ModelProto, shape: BatchShape | None) -> onnx.ModelProto:
    return model if shape is None else fix_shape(model, shape)


def _write(folder: Path, made: list[Made], seconds: float) -> ExportResult:
    folder.mkdir(exist_ok=True)
    sweep_leftovers(folder)
    paths = tuple(folder / one.record.file for one in made)
    records = tuple(replace(one.record, seconds=seconds) for one in made)
    for one, path in zip(made, paths, strict=True):
        one.write(path)
        drop_rejected(folder, path.name)
        beside = path_beside(path)
        if one.verification is None:
            beside.unlink(missing_ok=True)  # of an earlier file
        else:
            write_atomically(beside, one.verification)
    kept = save_records(folder, {record.file: record for record in records})
    return ExportResult(paths, records, seconds, kept)


def _spec(run_dir: Path, network: GuidedMixNet, checkpoint: Checkpoint, options: ExportOptions) -> ArtifactSpec:
    shape = options.shape
    return ArtifactSpec(
        classes=checkpoint.classes,
        precision=options.precision,
        encoder=checkpoint.model.encoder,
        output_stride=network.output_stride,
        attention_stride=None if network.attention is None else network.attention.stride,
        attention_heads=1 if network.attention is None else network.attention.heads,
        decoder=checkpoint.model.decoder,
        input_scale=checkpoint.model.input_scale,
        encoder_license=network.encoder.license if checkpoint.model.encoder_weights == "imagenet" else None,
        outputs=options.outputs,
        input=InputContract(shape=None if shape is None else (shape.batch, shape.height, shape.width)),
        opset=OPSET,
        provenance=ModelProvenance(
            run=run_dir.resolve().name,
            iteration=checkpoint.iteration,
            miou=checkpoint.miou,
            weights_sha256=checkpoint.sha256,
            gmtool_version=__version__,
            torch_version=str(torch.__version__),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            labeled_sha256=checkpoint.labeled_sha256,
        ),
    )
