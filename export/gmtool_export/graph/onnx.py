"""Export the deployment graph to a self-contained ONNX file with its spec and hash."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Sequence

import onnx
import torch
from onnx.utils import Extractor

from gmtool.artifact.sealed_onnx import SHA256_KEY, SPEC_KEY, UNSEALED, seal
from gmtool.artifact.shapes import BatchShape
from gmtool.artifact.spec import ArtifactSpec, OutputName, Precision
from gmtool.errors import ArtifactError
from gmtool.nn.model import GuidedMixNet
from gmtool_export.graph.deploy import OUTPUTS, DeployModel

OPSET = 18
"""ONNX opset: ONNX Runtime's CUDA provider lacks kernels of 19 and later, TensorRT refuses 23's Attention."""
IR_VERSION = 8
"""Version of the file format: that of opset 18. torch writes 10, which ONNX Runtime refuses before 1.18."""
TRACED_SHAPE = (2, 160, 224)
"""Batch, height and width of the example; all three are dynamic in the graph."""
DIMENSIONS: dict[OutputName, tuple[str | int, ...]] = {
    "mask": ("batch", "height", "width"),
    "confidence": ("batch", "height", "width"),
    "logits": ("batch", "classes", "height", "width"),
    "embedding": ("batch", "features"),
}


def export_graph(network: GuidedMixNet, *, half: bool = False, embedding: bool = False) -> onnx.ModelProto:
    """Return the deployment graph of a network with all `OUTPUTS` and dynamic batch, height and width.

    Args:
        network: Trained network on the CPU; not modified.
        half: Compute the network in float16.
        embedding: Add the output `embedding`.
    """
    # The exporter and its optimiser print to stdout, which is for results
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # about the exporter's internals; parity is checked afterwards
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = trace(DeployModel(network, half=half, embedding=embedding))
        program.optimize()
    model = program.model_proto
    _forget_origin(model.graph)
    for output in model.graph.output:  # the exporter writes Min(height, 8*(((height + 7)//8)))
        for dimension, name in zip(output.type.tensor_type.shape.dim, DIMENSIONS[output.name], strict=True):
            if not dimension.dim_value:
                dimension.dim_param = str(name)
    return model


def trace(model: DeployModel) -> torch.onnx.ONNXProgram:
    """Return the graph that torch writes for a model, before anything in it is folded."""
    example = torch.zeros(*TRACED_SHAPE, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["image"],
        output_names=[*OUTPUTS, "embedding"] if model.embedding else list(OUTPUTS),
        dynamic_shapes={"image": {0: "batch", 1: "height", 2: "width"}},
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    return program


def _forget_origin(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes about the Python source of each node: a third of a megabyte."""
    for entry in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del entry.metadata_props[:]
        entry.doc_string = ""


def keep_outputs(model: onnx.ModelProto, outputs: Sequence[OutputName]) -> onnx.ModelProto:
    """Return a graph with only `outputs` and the nodes that they need."""
    return Extractor(model).extract_model([entry.name for entry in model.graph.input], list(outputs))


def fix_shape(model: onnx.ModelProto, shape: BatchShape) -> onnx.ModelProto:
    """Return a graph that takes one shape, with all that follows from it computed: no shape arithmetic is left.

    Args:
        model: Graph with dynamic batch, height and width; not modified.
        shape: Batch, height and width.

    Raises:
        ArtifactError: The graph cannot take the shape.
    """
    from onnxscript import optimizer

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    names = {"batch": shape.batch, "height": shape.height, "width": shape.width}
    dimensions = fixed.graph.input[0].type.tensor_type.shape.dim
    for dimension, size in zip(dimensions, names.values(), strict=False):
        dimension.dim_value = size
    for output in fixed.graph.output:
        for dimension in output.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_value = names[dimension.dim_param]
    del fixed.graph.value_info[:]  # that of the dynamic graph
    try:
        with contextlib.redirect_stdout(sys.stderr):
            logging.getLogger("onnxscript").setLevel(logging.ERROR)
            folded: onnx.ModelProto = optimizer.optimize(fixed)
    except Exception as error:  # shape inference raises many types
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"--shape {shape}: the graph cannot take it: {reason}") from error
    left = [node.op_type for node in folded.graph.node if node.op_type in ("Shape", "Range", "If", "Loop")]
    if left:
        raise ArtifactError(f"--shape {shape}: the graph still computes shapes ({', '.join(left)}): this is a bug")
    return folded


def finish(model: onnx.ModelProto, spec: ArtifactSpec) -> bytes:
    """Return the content of a sealed ONNX file: the graph with the outputs of `spec`, the spec and a hash."""
    kept = keep_outputs(model, spec.outputs)
    kept.ir_version = IR_VERSION
    onnx.helper.set_model_props(kept, {SPEC_KEY: spec.to_json(), SHA256_KEY: UNSEALED})
    onnx.checker.check_model(kept)
    return seal(kept.SerializeToString())


def precision_of(model: onnx.ModelProto) -> Precision:
    """Return the precision that a graph's convolutions actually have."""
    types = {entry.name: entry.data_type for entry in model.graph.initializer}
    weights = {types.get(node.input[0]) for node in model.graph.node if node.op_type == "DequantizeLinear"}
    if onnx.TensorProto.INT8 in weights:
        return "int8"
    convolved = {types.get(node.input[1]) for node in model.graph.node if node.op_type == "Conv"}
    return "fp16" if convolved == {onnx.TensorProto.FLOAT16} else "fp32"
