"""ReLU6 (Clip) in int8: rounded once, over what it lets through."""

import numpy as np
import onnx
import pytest
from gmtool_export.int8.quantize import measure_ranges, quantize_graph
from gmtool_export.proof.parity import onnx_runner
from onnx import TensorProto, helper, numpy_helper

from gmtool.images import UInt8Array


@pytest.fixture
def graph() -> onnx.ModelProto:
    """Two convolutions with a ReLU6 between them, which clips most of the first one's range, -1000 to 1000."""
    random = np.random.default_rng(0)
    first = random.normal(size=(8, 3, 1, 1)).astype(np.float32)
    second = random.normal(size=(4, 8, 1, 1)).astype(np.float32)
    constants = {"first": first, "second": second, "low": np.float32(0), "high": np.float32(6)}
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "first"], ["y"], name="conv1"),
        helper.make_node("Clip", ["y", "low", "high"], ["z"], name="clip"),
        helper.make_node("Conv", ["z", "second"], ["logits"], name="conv2"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, images: UInt8Array) -> np.ndarray:
    """Return the logits as exports are proved: exact without VNNI too, where 0.36 of the labels had stayed."""
    logits: np.ndarray = onnx_runner(model.SerializeToString(), ["logits"])(images)["logits"]
    return logits


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_steps_of_a_convolution_before_relu6_cover_what_it_lets_through(
    graph: onnx.ModelProto, symmetric: bool
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    quantized = quantize_graph(graph, measure_ranges(graph, list(images)), symmetric=symmetric)
    onnx.checker.check_model(quantized)
    # Nothing rounds between the convolution and its ReLU6
    makers = {name: node for node in quantized.graph.node for name in node.output}
    clips = [node for node in quantized.graph.node if node.op_type == "Clip"]
    assert len(clips) == (1 if symmetric else 0)  # unsigned steps from 0 to 6 clip by themselves
    assert all(makers[clip.input[0]].op_type == "Conv" for clip in clips)
    scales = {entry.name: numpy_helper.to_array(entry) for entry in quantized.graph.initializer}
    after = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "z"]
    assert [float(scales[node.input[1]]) for node in after] == pytest.approx(
        [6 / (127 if symmetric else 255)], rel=0.02
    )
    # Labels stay
    expected, actual = run(graph, images), run(quantized, images)
    assert (actual.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
