"""The program that verifies a model without gmtool: its TensorRT part, with a stand-in for the card."""

import ast
import ctypes
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gmtool_serving.verification import target
from gmtool_serving.verification.script import verification_script

from gmtool.artifact.verification import path_beside

Arrays = dict[str, npt.NDArray[Any]]


class FakeCudart:
    """libcudart with the host's memory: copies go through the addresses that the program passes."""

    def __init__(self, *, code: int = 0) -> None:
        self.live: dict[int, Any] = {}
        self.cudaGetDeviceCount = lambda count: code
        self.cudaMalloc = lambda pointer, size: self._malloc(pointer._obj, size)
        self.cudaMemcpy = self._memcpy
        self.cudaFree = lambda pointer: int(self.live.pop(pointer.value, None) is None)
        self.cudaGetErrorString = lambda code: b"no CUDA-capable device is detected"
        for name, call in list(vars(self).items()):
            if name.startswith("cuda"):
                setattr(self, name, _Function(call))

    def _malloc(self, pointer: ctypes.c_void_p, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        pointer.value = ctypes.addressof(buffer)
        self.live[ctypes.addressof(buffer)] = buffer
        return 0

    def _memcpy(self, to: Any, source: Any, count: int, kind: int) -> int:
        device = to if kind == 1 else source
        assert len(self.live[device.value]) == count
        ctypes.memmove(to, source, count)
        return 0


class _Function:
    """Function of a library, which takes the types of its arguments."""

    def __init__(self, call: Any) -> None:
        self.__call = call

    def __call__(self, *given: Any) -> Any:
        return self.__call(*given)


class FakeEngine:
    """Engine and context of TensorRT that run ONNX Runtime on the addresses that they are given."""

    def __init__(self, model: Path, cudart: FakeCudart, *, largest: int = 224) -> None:
        self._run = target.open_onnx(model, "CPUExecutionProvider")[1]
        self._cudart, self._largest = cudart, largest
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}
        self.num_io_tensors = 2

    def create_execution_context(self) -> "FakeEngine":
        return self

    def get_tensor_name(self, index: int) -> str:
        return ("image", "mask")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"image": "input", "mask": "output"}[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(1, 32, 32, 3), (1, 64, 64, 3), (8, self._largest, self._largest, 3)]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape[:3]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address in self._cudart.live

    def execute_async_v3(self, stream: int) -> bool:
        uploaded = self._cudart.live[self._addresses["image"]].raw
        mask = self._run(np.frombuffer(uploaded, np.uint8).reshape(self._shape))["mask"]
        ctypes.memmove(self._addresses["mask"], mask.tobytes(), mask.nbytes)
        return True


def tensorrt_of(engine: FakeEngine | None) -> Any:
    """Module `tensorrt` that deserialises every plan to one engine."""
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: engine)
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, severity: None})
    mode = SimpleNamespace(INPUT="input", OUTPUT="output")
    return SimpleNamespace(
        __name__="tensorrt",
        __version__="10.0",
        Logger=logger,
        Runtime=lambda log: runtime,
        TensorIOMode=mode,
        nptype=np.dtype,
    )


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    library = FakeCudart()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return library


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model_fp32.plan"
    path.write_bytes(b"a plan")
    return path


def kept(model: Path) -> tuple[Arrays, dict[str, Any]]:
    with np.load(path_beside(model)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return arrays, json.loads(arrays["header"].tobytes())


def test_a_plan_gives_the_shares_of_the_onnx_model(
    toy_model: Path,
    cudart: FakeCudart,
    plan: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays, header = kept(toy_model)
    arrays["mask_1"] = arrays["mask_1"].copy()
    arrays["mask_1"][0, :40] = 5  # one batch that fails
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_of(FakeEngine(toy_model, cudart)))
    title, run = target.open_plan(plan)
    assert title == "tensorrt 10.0"
    failed = target.compare(run, arrays, header)
    printed = capsys.readouterr().out
    assert failed == ["1x97x133"] and printed.count("100.0000% equal") == 2 and printed.count("FAILED") == 1
    assert not cudart.live, "all memory is freed"
    assert target.compare(target.open_onnx(toy_model, "CPUExecutionProvider")[1], arrays, header) == failed
    assert capsys.readouterr().out == printed


def test_what_a_target_lacks_is_one_line(
    toy_model: Path, cudart: FakeCudart, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, line: str) -> None:
        with pytest.raises(SystemExit, match=line):
            target.open_plan(path)[1](np.zeros((1, 64, 96, 3), np.uint8))

    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(plan, "model_fp32.plan needs tensorrt: pip install tensorrt")
    refused(plan.with_name("model_fp32.rtx.plan"), "needs tensorrt_rtx: pip install tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_of(None))
    refused(plan, "tensorrt 10.0 refuses .*model_fp32.plan: build it on this machine")
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_of(FakeEngine(toy_model, cudart, largest=80)))
    refused(plan, r"takes images from \(1, 32, 32, 3\) to \(8, 80, 80, 3\); got \(1, 64, 96, 3\)")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCudart(code=100))
    refused(plan, "error: CUDA: no CUDA-capable device is detected")

    def no_library(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    refused(plan, "libcudart of CUDA is not found")


def test_every_call_exists_in_nvidias_module() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    owners = {"engine": trt.ICudaEngine, "context": trt.IExecutionContext, "trt": trt, "runtime": trt.Runtime}
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(inspect.getsource(target)))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners
    }
    assert {owner for owner, _ in used} == set(owners) and len(used) > 12
    assert [pair for pair in used if not hasattr(owners[pair[0]], pair[1])] == []


def test_the_real_cuda_runtime_is_found_and_called() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    try:
        target._cuda()
    except SystemExit as error:  # a machine without a card
        assert str(error).startswith("error: CUDA: ") and len(str(error)) > 20


def test_the_program_stands_alone(toy_model: Path) -> None:
    text = verification_script(path_beside(toy_model).read_bytes())
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
