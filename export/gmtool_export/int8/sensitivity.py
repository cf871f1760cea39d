"""Find convolutions that lose accuracy in int8, with a graph that switches each between int8 and float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from PIL import Image

from gmtool.images import UInt8Array

SWITCH = "gmtool.int8"
TUNING_SHAPE = (4, 160, 224)
"""Batch, height and width of the comparison of layers."""
GOAL = 0.99
"""Share of the pixels with float32's label at which no further layer is moved to float32."""
MAX_SHARE = 0.25
"""Largest share of layers in float32; more would defeat int8's purpose."""

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
        content = _switched_graph(model, quantized, float_inputs).SerializeToString()
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def logits(self, images: UInt8Array, on: Bools) -> npt.NDArray[np.float32]:
        """Return logits (N, C, H, W) of images (N, H, W, 3); layers with true in `on`, (layers,), are int8."""
        logits: npt.NDArray[np.float32]
        (logits,) = self._session.run(["logits"], {"image": images, SWITCH: on})
        return logits


def least_robust_layers(
    model: SwitchedModel, images: Sequence[UInt8Array], *, always: Sequence[str]
) -> tuple[list[str], float]:
    """Return the layers to keep in float32, the most sensitive first, and the resulting agreement with float32.

    The error of a layer is the mean squared change of the logits when it alone is in int8. The worst layers move
    to float32 one by one until `GOAL` is reached, at most `MAX_SHARE` of them. Takes 2 passes if int8 reaches the
    goal, else at least N + 2 for N layers.

    Args:
        model: Network with switches.
        images: Real images, (H, W, 3) uint8 each, other than those of the proof.
        always: Layers that always stay in float32.
    """
    # Reference labels in float32
    count, height, width = TUNING_SHAPE
    step = max(len(images) // count, 1)
    batch = np.stack(
        [np.array(Image.fromarray(image).resize((width, height))) for image in images[::step][:count]]
    )
    layers = len(model.layers)
    expected = model.logits(batch, np.zeros(layers, dtype=bool))
    labels = expected.argmax(axis=1)

    def agreement(on: Bools) -> float:
        return float((model.logits(batch, on).argmax(axis=1) == labels).mean())

    # All layers in int8
    on = np.array([layer not in always for layer in model.layers])
    reached = agreement(on)
    if reached >= GOAL:
        return [], reached
    # Rank layers by their own error, and move the worst to float32
    errors = [
        float(np.square(model.logits(batch, np.arange(layers) == layer) - expected).mean())
        for layer in range(layers)
    ]
    excluded: list[str] = []
    ranked = [layer for layer in np.argsort(errors)[::-1] if on[layer]]
    for layer in ranked[: int(layers * MAX_SHARE)]:
        on[layer] = False
        excluded.append(model.layers[layer])
        reached = agreement(on)
        if reached >= GOAL:
            break
    return excluded, reached


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
