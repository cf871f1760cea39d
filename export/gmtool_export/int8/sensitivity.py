"""Which convolutions lose accuracy in int8: one graph in which each can be switched between int8 and float32."""

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
"""Batch, height and width that layers are compared at."""
GOAL = 0.99
"""Share of the pixels that keep float32's label, at which no further layer is left in float32."""
MAX_SHARE = 0.25
"""Share of the layers that may be left in float32: with more, int8 is not worth its name."""

Bools = npt.NDArray[np.bool_]


class SwitchedModel:
    """A float32 graph whose every convolution takes int8 weights and inputs, rounded, if its switch is on.

    One session then answers for every choice of layers; a quantized graph for each would be built and loaded anew.

    Args:
        model: The float32 graph, with logits among its outputs.
        quantized: The same with Q/DQ pairs around its convolutions and nothing else.
    """

    def __init__(self, model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
        float_inputs = {node.name: list(node.input) for node in model.graph.node if node.op_type == "Conv"}
        self.layers = [node.name for node in quantized.graph.node if node.op_type == "Conv"]
        """Names of the convolutions' nodes, first to last."""
        self.titles = {name: float_inputs[name][1].removesuffix(".weight") for name in self.layers}
        """What the network calls them."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        content = _switched_graph(model, quantized, float_inputs).SerializeToString()
        self._session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def logits(self, images: UInt8Array, on: Bools) -> npt.NDArray[np.float32]:
        """Return the logits of images (N, H, W, 3) with the layers in int8 for which `on`, (layers,), is true."""
        logits: npt.NDArray[np.float32]
        (logits,) = self._session.run(["logits"], {"image": images, SWITCH: on})
        return logits


def least_robust_layers(
    model: SwitchedModel, images: Sequence[UInt8Array], *, always: Sequence[str]
) -> tuple[list[str], float]:
    """Return the layers to leave in float32, the worst first, and the agreement with float32 that results.

    Each layer's own error is what it does to the logits when it alone is in int8. The worst are left out one
    after another until `GOAL` is reached, at most `MAX_SHARE` of them. N + 2 passes at least for N layers if
    int8 alone misses the goal, else 2.

    Args:
        model: The network with switches.
        images: Real images, (H, W, 3) each; not those that the result is judged on.
        always: Layers that are in float32 in any case.
    """
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

    on = np.array([layer not in always for layer in model.layers])
    reached = agreement(on)
    if reached >= GOAL:
        return [], reached
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
    """Return `quantized` with a choice between the two kinds of input in front of every convolution."""
    graph = onnx.GraphProto()
    graph.CopyFrom(quantized.graph)
    sources = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    rounded = {
        node.output[0]: sources[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in sources
    }
    known = {entry.name for entry in graph.initializer}
    weights = {names[1] for names in float_inputs.values()}
    graph.initializer.extend(
        entry for entry in model.graph.initializer if entry.name in weights and entry.name not in known
    )
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
            # What is no convolution takes float32 always
            for place, name in enumerate(node.input):
                node.input[place] = rounded.get(name, name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input.append(onnx.helper.make_tensor_value_info(SWITCH, onnx.TensorProto.BOOL, [layer]))
    return onnx.helper.make_model(graph, opset_imports=quantized.opset_import, ir_version=quantized.ir_version)
