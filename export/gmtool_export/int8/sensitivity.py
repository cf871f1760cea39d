"""Find convolutions that lose accuracy in int8, with a graph that switches each between int8 and float32."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from gmtool.images import UInt8Array
from gmtool.resources import EXACT_INT8
from gmtool_export.int8.calibration import shrink, spread

SWITCH = "gmtool.int8"
TUNING_IMAGES = 3
"""Calibration images on which layers are compared."""
TUNING_PIXELS = 80_000
"""Limit to which larger ones are scaled down: each layer is a pass over all of them."""

Bools = npt.NDArray[np.bool_]


class SwitchedModel:
    """Graph in which each convolution can be switched between float32 and int8 weights and inputs.

    One session evaluates every choice of layers, instead of a new quantized graph for each.

    Args:
        model: Float32 graph with the output `logits`.
        quantized: The same graph with Q/DQ pairs around its convolutions only.
    """

    def __init__(self, model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        float_inputs = {node.name: list(node.input) for node in model.graph.node if node.op_type == "Conv"}
        self.layers = [node.name for node in quantized.graph.node if node.op_type == "Conv"]
        """Names of the convolution nodes, in graph order."""
        self.titles = {name: float_inputs[name][1].removesuffix(".weight") for name in self.layers}
        """Names of the layers in the network, by node name."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(*EXACT_INT8)
        content = _switched_graph(model, quantized, float_inputs).SerializeToString()
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def logits(self, images: UInt8Array, on: Bools) -> npt.NDArray[np.float32]:
        """Return logits (N, C, H, W) of images (N, H, W, 3); layers with true in `on`, (layers,), are int8."""
        logits: npt.NDArray[np.float32]
        (logits,) = self._session.run(["logits"], {"image": images, SWITCH: on})
        return logits


@dataclass(frozen=True)
class LayerError:
    """Loss of a convolution when it alone is in int8."""

    node: str
    """Name of its node."""
    title: str
    """Name of the layer in the network."""
    error: float
    """Mean squared change of the logits."""
    changed: float
    """Share of pixels that get another label, in [0, 1]."""


def layer_errors(model: SwitchedModel, images: Sequence[UInt8Array]) -> tuple[LayerError, ...]:
    """Return the loss of each layer, in graph order; one pass over the images a layer.

    Args:
        model: Network with switches.
        images: Real images, (H, W, 3) uint8 each, other than those of the proof.
    """
    count = len(model.layers)
    squares, changed, pixels = np.zeros(count), np.zeros(count), 0
    for image in tuning_images(images):
        expected = model.logits(image, np.zeros(count, dtype=bool))
        labels = expected.argmax(axis=1)
        pixels += labels.size
        for layer in range(count):
            logits = model.logits(image, np.arange(count) == layer)
            squares[layer] += float(np.square(logits - expected).mean()) * labels.size
            changed[layer] += int((logits.argmax(axis=1) != labels).sum())
    return tuple(
        LayerError(name, model.titles[name], float(squares[layer] / pixels), float(changed[layer] / pixels))
        for layer, name in enumerate(model.layers)
    )


def agreement(model: SwitchedModel, images: Sequence[UInt8Array], *, float_layers: Collection[str]) -> float:
    """Return the share of pixels with float32's label, in [0, 1], with all but `float_layers` in int8."""
    on = np.array([layer not in float_layers for layer in model.layers])
    same = pixels = 0
    for image in tuning_images(images):
        labels = model.logits(image, np.zeros(len(on), dtype=bool)).argmax(axis=1)
        same += int((model.logits(image, on).argmax(axis=1) == labels).sum())
        pixels += labels.size
    return same / pixels


def tuning_images(images: Sequence[UInt8Array]) -> list[UInt8Array]:
    """Return some of the images, evenly spaced, (1, H, W, 3) each."""
    return [shrink(image, TUNING_PIXELS)[None] for image in spread(images, TUNING_IMAGES)]


def _switched_graph(
    model: onnx.ModelProto, quantized: onnx.ModelProto, float_inputs: dict[str, list[str]]
) -> onnx.ModelProto:
    """Return `quantized` with a switch between int8 and float32 inputs in front of every convolution."""
    # Find the float32 source of each rounded tensor
    graph = onnx.GraphProto()
    graph.CopyFrom(quantized.graph)
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    rounded = {
        node.output[0]: sources[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in sources
    }
    # Add the float32 weights
    known = {entry.name for entry in graph.initializer}
    weights = {names[1] for names in float_inputs.values()}
    graph.initializer.extend(
        entry for entry in model.graph.initializer if entry.name in weights and entry.name not in known
    )
    # Insert the switches
    nodes: list[onnx.NodeProto] = []
    layer = 0
    for node in graph.node:
        if node.op_type == "Conv":
            switch = f"{SWITCH}.{layer}"
            nodes.append(onnx.helper.make_node("Gather", [SWITCH, f"{switch}.index"], [switch]))
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(layer), f"{switch}.index"))
            for place, name in enumerate(float_inputs[node.name][:2]):
                chosen = f"{switch}.{place}"
                nodes.append(onnx.helper.make_node("Where", [switch, node.input[place], name], [chosen]))
                node.input[place] = chosen
            layer += 1
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            # Other nodes always take float32
            for place, name in enumerate(node.input):
                node.input[place] = rounded.get(name, name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.append(onnx.helper.make_tensor_value_info(SWITCH, onnx.TensorProto.BOOL, [layer]))
    return onnx.helper.make_model(graph, opset_imports=quantized.opset_import, ir_version=quantized.ir_version)
