"""int8 quantization with Q/DQ nodes; sensitive layers stay in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from gmtool.images import UInt8Array
from gmtool.resources import temporary_dir

OPERATORS = ["Conv", "Add", "Relu", "Clip", "MaxPool", "Concat"]
"""Quantized operators: convolutions and the operators between them. Attention stays in float. Clip is ReLU6:
without it the 256 steps of the convolution before it would cover what is clipped away."""
ACTIVATIONS = ("Relu", "Clip")


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: Sequence[UInt8Array]) -> None:
        self._batches: Iterator[UInt8Array] = (image[None] for image in images)

    def get_next(self) -> dict[str, UInt8Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def measure_ranges(model: onnx.ModelProto, images: Sequence[UInt8Array]) -> TensorsData:
    """Return the smallest and largest value of every activation over calibration images.

    Args:
        model: Float32 graph.
        images: RGB, (H, W, 3) uint8 each.
    """
    with temporary_dir() as folder:
        path = folder / "model.onnx"
        onnx.save(model, path)
        calibrator = create_calibrator(
            path,
            OPERATORS,
            augmented_model_path=str(folder / "augmented.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Images(images))
        ranges: TensorsData = calibrator.compute_data()
    return ranges


def quantize_graph(
    model: onnx.ModelProto,
    ranges: TensorsData,
    *,
    symmetric: bool,
    operators: Sequence[str] = OPERATORS,
    float_layers: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return the graph with Q/DQ pairs around its convolutions; weights are int8, symmetric, per channel.

    Args:
        model: Float32 graph; not modified.
        ranges: Result of `measure_ranges`.
        symmetric: Signed activations with zero point 0, which TensorRT requires. Otherwise unsigned activations
            with any zero point: ReLU is then free, and VNNI multiplies them directly.
        operators: Operators to quantize.
        float_layers: Names of nodes that stay in float32.
    """
    # Insert Q/DQ nodes into a copy
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[name for name in _feature_nodes(model.graph, operators) if name not in float_layers],
        nodes_to_exclude=[],
        op_types_to_quantize=list(operators),
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT supports no int32 bias; ONNX Runtime rounds it when it fuses
        },
    )
    # Sort, and fuse ReLUs for TensorRT
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    if symmetric:
        _keep_activations_together(quantized.graph)
    return quantized


def _feature_nodes(graph: onnx.GraphProto, operators: Sequence[str]) -> list[str]:
    """Return the names of nodes to quantize: convolutions, and other operators on their results.

    Additions inside the matrices of pooling and resizing are excluded: positions would be rounded.
    """
    features: set[str] = set()
    constants = {entry.name for entry in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type != "Conv" and (
            not features.intersection(node.input)
            or (node.op_type != "Clip" and constants.intersection(node.input))  # Clip's bounds are constants
        ):
            continue
        if node.op_type in operators:
            names.append(node.name)
        if node.op_type in OPERATORS:
            features.update(node.output)
    return names


def _op_type(node: onnx.NodeProto | None) -> str | None:
    return None if node is None else node.op_type


def _keep_activations_together(graph: onnx.GraphProto) -> None:
    """Remove Q/DQ nodes between a convolution and its ReLU or ReLU6: TensorRT fuses the two and rounds once."""
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ACTIVATIONS and _op_type(makers.get(node.input[0])) == "DequantizeLinear":
            quantizing = makers[makers[node.input[0]].input[0]]
            if makers[quantizing.input[0]].op_type == "Conv":
                node.input[0] = quantizing.input[0]
    # In reverse, so that nodes that only a dropped node needs are dropped too
    needed = {entry.name for entry in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    unused = [entry for entry in graph.initializer if entry.name not in needed]
    for entry in unused:
        graph.initializer.remove(entry)
