"""Make an ONNX model, an OpenVINO model or a TensorRT plan from a graph, and prove it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from gmtool.artifact.openvino_ir import IR_SUFFIX, Ir, write_ir
from gmtool.artifact.shapes import ShapeProfile
from gmtool.artifact.spec import ArtifactSpec
from gmtool.artifact.tensorrt_plan import Plan, plan_name, write_plan
from gmtool.classes import ClassSet
from gmtool.console import remark
from gmtool.errors import ArtifactError, BackendError, GmtoolError, MissingExtraError, ParityError
from gmtool.files import write_atomically
from gmtool.images import UInt8Array
from gmtool.nn.model import GuidedMixNet
from gmtool.resources import temporary_dir
from gmtool_export.graph.onnx import finish, keep_outputs, precision_of
from gmtool_export.int8.search import Quantization
from gmtool_export.openvino_ir import convert_ir
from gmtool_export.proof.gate import Tolerance, judge
from gmtool_export.proof.half import Headroom
from gmtool_export.proof.images import Evidence
from gmtool_export.proof.miou_drop import PyTorchMasks, score
from gmtool_export.proof.parity import (
    ReferenceBatch,
    Runner,
    compare,
    onnx_runner,
    reference_batches_of,
)
from gmtool_export.record import ArtifactRecord, Proof, onnx_name, outputs_mark, rejected_name
from gmtool_export.tensorrt.build import BuildOptions, build_plan, fitted
from gmtool_export.tensorrt.profiles import proof_shapes
from gmtool_export.verification import verification_set

PlanRunner = Callable[[Path], tuple[str, Runner]]
"""Opens a plan on this machine's GPU, or an OpenVINO model; returns the name of the runtime and the runner."""


@dataclass(frozen=True)
class Graph:
    """Deployment graph with all outputs, and the measurements of its making."""

    model: onnx.ModelProto
    quantization: Quantization | None = None
    headroom: Headroom | None = None


@dataclass(frozen=True)
class Proving:
    """Network, images and bounds for the proof of a model."""

    network: GuidedMixNet
    evidence: Evidence
    tolerance: Tolerance
    masks: PyTorchMasks

    def drop(self, graph: onnx.ModelProto, classes: ClassSet) -> float:
        """Return the loss of mIoU of a graph with all outputs on the scored images, points."""
        assert self.evidence.scored is not None
        runner = onnx_runner(keep_outputs(graph, ["mask"]).SerializeToString(), ["mask"])
        return score(self.masks, runner, self.evidence.scored, classes).drop


@dataclass(frozen=True)
class Made:
    """Proven model with its record, ready to be written."""

    record: ArtifactRecord
    write: Callable[[Path], None]
    verification: bytes | None
    """Content of the verification set; None if the model was not compared."""


class RejectedError(ParityError):
    """int8 model that failed its proof, with its record and content, to be kept under another name."""

    def __init__(self, message: str, record: ArtifactRecord, content: bytes) -> None:
        super().__init__(message)
        self.record = record
        self.content = content


def make_onnx(graph: Graph, spec: ArtifactSpec, proving: Proving | None, *, checkpoint: str) -> Made:
    """Return a proven ONNX model.

    Args:
        graph: Deployment graph with all outputs.
        spec: Spec of the file.
        proving: Network, images and bounds; None skips the proof.
        checkpoint: Name of the checkpoint, for the record.

    Raises:
        ParityError: The model failed the proof; in int8 a `RejectedError` with the model.
        ArtifactError: The graph's precision is not that of `spec`.
    """
    content = _sealed(graph, spec)
    proof = None if proving is None else _prove_graph(graph, content, spec, proving)
    symmetric = graph.quantization is not None and graph.quantization.symmetric
    name = onnx_name(spec.precision, spec.outputs, symmetric=symmetric, shape=spec.input.shape)
    record = _record(name, content, graph, spec, () if proof is None else (proof,), checkpoint)
    if proof is not None and spec.precision == "int8":
        try:
            _judge("the ONNX model", spec, proof, end=f"it was kept as {rejected_name(name)}, with its figures")
        except ParityError as error:
            raise RejectedError(str(error), record, content) from error
    return Made(record, lambda path: write_atomically(path, content), _verification(record, proving, None))


def make_plan(
    graph: Graph,
    spec: ArtifactSpec,
    options: BuildOptions,
    run_plan: PlanRunner | None,
    proving: Proving | None,
    *,
    checkpoint: str,
) -> Made:
    """Return a TensorRT plan; its graph is proven in ONNX Runtime, the plan itself if it can run here.

    Args:
        graph: Deployment graph with all outputs.
        spec: Spec of the plan.
        options: Build options.
        run_plan: Opens the plan on this machine's GPU; None skips its own proof.
        proving: Network, images and bounds; None skips all proofs.
        checkpoint: Name of the checkpoint, for the record.

    Raises:
        ParityError: Graph or plan failed the proof.
        GmtoolError: TensorRT refuses the graph.
    """
    content = _sealed(graph, spec)
    proofs = [] if proving is None else [_prove_graph(graph, content, spec, proving)]
    for proof in proofs:
        _judge("the ONNX model", spec, proof)
    options = fitted(options, spec)
    remark("building: TensorRT")
    plan = build_plan(content, spec, options)
    if proving is not None:
        own = _prove_plan(plan, spec, options, run_plan, proving)
        proofs += [] if own is None else [own]
    mark = "".join(f"_{name}" for name in outputs_mark(spec.outputs))
    base = plan_name(spec.precision, options.flavour)
    name = base.replace(spec.precision, spec.precision + mark, 1)
    record = _record(name, plan.content, graph, spec, tuple(proofs), checkpoint)
    return Made(record, lambda path: write_plan(plan, path), _verification(record, proving, options.profiles[0]))


def make_ir(
    graph: Graph, spec: ArtifactSpec, run_ir: PlanRunner, proving: Proving | None, *, checkpoint: str
) -> Made:
    """Return an OpenVINO model; its graph is proven in ONNX Runtime, and then it itself in OpenVINO.

    Args:
        graph: Deployment graph with all outputs.
        spec: Spec of the model.
        run_ir: Opens the model with OpenVINO.
        proving: Network, images and bounds; None skips all proofs.
        checkpoint: Name of the checkpoint, for the record.

    Raises:
        ParityError: Graph or model failed the proof.
        GmtoolError: OpenVINO is not installed, or refuses the graph.
    """
    content = _sealed(graph, spec)
    remark("converting: OpenVINO")
    ir = convert_ir(content, spec)
    proofs = []
    if proving is not None:
        proofs = [_prove_graph(graph, content, spec, proving), _prove_ir(ir, spec, run_ir, proving)]
        for what, proof in zip(("the ONNX model", "the OpenVINO model"), proofs, strict=True):
            _judge(what, spec, proof)
    symmetric = graph.quantization is not None and graph.quantization.symmetric
    base = onnx_name(spec.precision, spec.outputs, symmetric=symmetric, shape=spec.input.shape)
    name = base.removesuffix(".onnx") + IR_SUFFIX
    record = _record(name, ir.xml + ir.weights, graph, spec, tuple(proofs), checkpoint)
    return Made(record, lambda path: write_ir(ir, path), _verification(record, proving, None))


def _prove_ir(ir: Ir, spec: ArtifactSpec, run_ir: PlanRunner, proving: Proving) -> Proof:
    with temporary_dir() as folder:
        path = folder / f"model{IR_SUFFIX}"
        write_ir(ir, path)
        runtime, runner = run_ir(path)
        return _prove("the OpenVINO model", runtime, spec, proving, runner, runner, proving.evidence.batches)


def _verification(record: ArtifactRecord, proving: Proving | None, profile: ShapeProfile | None) -> bytes | None:
    return None if proving is None else verification_set(record, proving.network, proving.evidence, profile)


def _sealed(graph: Graph, spec: ArtifactSpec) -> bytes:
    built = precision_of(graph.model)
    if built != spec.precision:
        raise ArtifactError(f"the graph has precision {built}, expected {spec.precision}: this is a bug")
    return finish(graph.model, spec)


def _prove_graph(graph: Graph, content: bytes, spec: ArtifactSpec, proving: Proving) -> Proof:
    """Prove an ONNX file in ONNX Runtime, with the logits of the graph that it was cut from."""
    runner = onnx_runner(content, spec.outputs)
    with_logits = runner
    if "logits" not in spec.outputs:
        logits = onnx_runner(keep_outputs(graph.model, ["logits"]).SerializeToString(), ["logits"])

        def both(images: UInt8Array) -> Mapping[str, npt.NDArray[Any]]:
            return {**runner(images), "logits": logits(images)["logits"]}

        with_logits = both
    runtime = f"onnxruntime {ort.__version__} CPUExecutionProvider"
    return _prove("the ONNX model", runtime, spec, proving, with_logits, runner, proving.evidence.batches)


def _prove_plan(
    plan: Plan, spec: ArtifactSpec, options: BuildOptions, run_plan: PlanRunner | None, proving: Proving
) -> Proof | None:
    """Prove a plan on the GPU; return None if it cannot run here."""
    if run_plan is None:
        return None
    with temporary_dir() as folder:
        path = folder / plan_name(spec.precision, options.flavour)
        write_plan(plan, path)
        try:
            runtime, runner = run_plan(path)
        except (ArtifactError, BackendError, MissingExtraError) as error:
            remark(f"the plan itself is not compared, only its graph: {_tail(error, path)}")
            return None
        shapes = proof_shapes(options.profiles[0])
        inside = reference_batches_of(proving.network, proving.evidence.images, shapes)
        proof = _prove("the TensorRT plan", runtime, spec, proving, runner, runner, inside)
        _judge("the TensorRT plan", spec, proof)
        return proof


def _prove(
    what: str,
    runtime: str,
    spec: ArtifactSpec,
    proving: Proving,
    with_logits: Runner,
    runner: Runner,
    compared: dict[str, ReferenceBatch],
) -> Proof:
    remark(f"comparing: {runtime}")
    rows = compare(with_logits, compared)
    evidence = proving.evidence
    if spec.precision == "fp32" or (spec.precision == "fp16" and evidence.scored is None):
        judge(what, spec.precision, rows, None, proving.tolerance)  # before the slow scoring
    scored = None
    if evidence.scored is not None:
        remark(f"scoring: {len(evidence.scored.samples)} of {evidence.scored.num_listed} validation images")
        scored = score(proving.masks, runner, evidence.scored, spec.classes)
        if spec.precision != "int8":  # what int8 lost is kept
            judge(what, spec.precision, rows, scored, proving.tolerance)
    return Proof(runtime, proving.tolerance, rows, scored, evidence.not_scored, evidence.classes_predicted)


def _judge(what: str, spec: ArtifactSpec, proof: Proof, *, end: str = "nothing was written") -> None:
    judge(what, spec.precision, proof.rows, proof.score, proof.tolerance, end=end)


def _record(
    name: str, content: bytes, graph: Graph, spec: ArtifactSpec, proofs: tuple[Proof, ...], checkpoint: str
) -> ArtifactRecord:
    return ArtifactRecord(
        file=name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        checkpoint=checkpoint,
        precision=spec.precision,
        seconds=0.0,
        spec=spec,
        proofs=proofs,
        quantization=graph.quantization,
        headroom=graph.headroom,
    )


def _tail(error: GmtoolError, path: Path) -> str:
    """Return an error's message without the name of the temporary file."""
    return str(error).replace(str(path), "it")
