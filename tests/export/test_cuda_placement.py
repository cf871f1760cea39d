"""Nodes that ONNX Runtime's CUDA provider leaves to the processor: a recorded list, without a card.

The provider is the real one, on a stand-in for CUDA (tests/stand_in_cuda): it optimises the graph and
looks kernels up by operator, version and types before it would compute. So the list proves where nodes go
with the installed ONNX Runtime, not that kernels run, nor that they are fast.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from gmtool_export.graph.onnx import export_graph, keep_outputs
from gmtool_export.int8.quantize import measure_ranges, quantize_graph
from stand_in_cuda.build import SOURCE, build

from gmtool.nn.checkpoint import load_network

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
SHAPE_ARITHMETIC = {
    *("Add", "And", "Cast", "Concat", "Div", "Equal", "Less", "Mod", "Mul", "Reshape", "Squeeze", "Sub"),
}
"""Operators on the processor: sizes of padding and of pooled regions, computed from the shape of the input."""
UPLOADS = 18
"""Copies from the processor: the image, and results of that arithmetic."""
PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def placed(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Counter[str]]]:
    """Number of nodes by precision, provider and operator."""
    if sys.platform != "linux":
        pytest.skip("the stand-in for CUDA needs Linux")
    folder = tmp_path_factory.mktemp("placement")
    places = build(folder)
    network = load_network(toy_run, "best")[0]
    graph = export_graph(network)
    images = [np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)]
    int8 = quantize_graph(graph, measure_ranges(graph, images), symmetric=True)
    graphs = zip(PRECISIONS, (graph, export_graph(network, half=True), int8), strict=True)
    paths = []
    for name, model in graphs:
        paths.append(folder / f"{name}.onnx")
        onnx.save(keep_outputs(model, ["mask"]), paths[-1])
    program = subprocess.run(
        [sys.executable, SOURCE / "placement.py", *paths],
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.returncode == 0, program.stderr[-3000:]
    found = json.loads(program.stdout.splitlines()[-1])
    if not any(CUDA in one for one in found):
        pytest.skip("this onnxruntime was built without CUDA")
    counted = [{provider: Counter(nodes) for provider, nodes in one.items()} for one in found]
    return dict(zip(PRECISIONS, counted, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_arithmetic_of_shapes_is_left_to_the_processor(
    placed: dict[str, dict[str, Counter[str]]], precision: str
) -> None:
    on_cpu, on_cuda = placed[precision][CPU], placed[precision][CUDA]
    assert set(on_cpu) <= SHAPE_ARITHMETIC
    # Nothing that the card computed goes back for it
    assert not on_cuda["MemcpyToHost"] and on_cuda["MemcpyFromHost"] <= UPLOADS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_convolution_product_and_resize_has_a_kernel_on_the_card(
    placed: dict[str, dict[str, Counter[str]]], precision: str
) -> None:
    on_cuda = placed[precision][CUDA]
    assert on_cuda["Conv"] == 26  # of the toy network
    assert on_cuda["MatMul"] + on_cuda["FusedMatMul"] == 14
    for operator in ("Softmax", "Resize", "ArgMax", "MaxPool"):
        assert on_cuda[operator] == 1, operator
