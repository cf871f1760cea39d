"""What of running a plan needs no GPU; and where there is one, that it gives ONNX Runtime's masks."""

import ctypes
import dataclasses
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from backend_contract import BackendContract, random_images
from conftest import Cli
from fakes import FakeBackend
from gmtool_export.tensorrt.build import BuildOptions, build_plan
from gmtool_serving.backends import cuda_memory
from gmtool_serving.backends import tensorrt as trt_backend
from gmtool_serving.backends import tensorrt_engine as trt_engine
from gmtool_serving.backends.cuda_memory import GRAIN_BYTES, TensorMemory, grown_size
from gmtool_serving.backends.opening import open_backend
from gmtool_serving.backends.tensorrt import TrtBackend, deserialize, refuse_misfit
from gmtool_serving.backends.tensorrt_engine import TrtEngine, pick_profile

from gmtool.artifact.nvidia import cuda_result, read_gpu, tensorrt_log, this_platform
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.spec import OutputName
from gmtool.artifact.tensorrt_plan import Gpu, Host, LoadedPlan, read_plan, sidecar_path, write_plan
from gmtool.errors import ArtifactError, BackendError, BackendMemoryError
from gmtool.images import UInt8Array

pytest.importorskip("tensorrt_rtx")

OUTPUTS: tuple[OutputName, ...] = ("mask", "logits")
SMALL = ShapeProfile(BatchShape(1, 32, 32), BatchShape(1, 64, 64), BatchShape(2, 128, 128))
LARGE = ShapeProfile(BatchShape(1, 64, 64), BatchShape(1, 256, 256), BatchShape(8, 512, 1024))


def has_gpu() -> bool:
    try:
        read_gpu()
    except BackendError:
        return False
    return True


needs_gpu = pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="there is an NVIDIA GPU")


@pytest.fixture(scope="module")
def plan_path(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real plan of the toy model with its sidecar. Not to be changed."""
    path = tmp_path_factory.mktemp("plan") / "model_fp32.rtx.plan"
    model = toy_model.read_bytes()
    options = BuildOptions("tensorrt_rtx", (SMALL,))
    path.with_name("model_fp32.onnx").write_bytes(model)
    write_plan(build_plan(model, read_sealed_spec(model, where=toy_model), options), path)
    return path


@needs_no_gpu
def test_a_machine_without_a_gpu_is_told_so_in_one_line(plan_path: Path) -> None:
    with pytest.raises(BackendError, match="no NVIDIA driver on this machine; TensorRT needs an"):
        open_backend(plan_path)


def test_a_plan_is_not_for_the_processor(plan_path: Path) -> None:
    with pytest.raises(BackendError, match=r"--device cpu: .*\.plan is a TensorRT plan.*use the ONNX model"):
        open_backend(plan_path, device="cpu")


def test_case_37_a_plan_is_checked_before_anything_of_nvidias_is_loaded(plan_path: Path, tmp_path: Path) -> None:
    bare = tmp_path / plan_path.name
    bare.write_bytes(plan_path.read_bytes())
    with pytest.raises(ArtifactError, match="has no sidecar .*or give --trust"):
        open_backend(bare)
    sidecar_path(bare).write_bytes(sidecar_path(plan_path).read_bytes())
    bare.write_bytes(b"<html>")
    with pytest.raises(ArtifactError, match="is not the plan that"):
        open_backend(bare)
    if not has_gpu():  # with --trust it gets as far as a good one
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            open_backend(bare, trust=True)


@needs_no_gpu
@pytest.mark.parametrize(
    "command",
    [
        "predict {images} --out {out} --model {model}",
        "evaluate --data {images} --model {model}",
        "benchmark {model} --images {images}",
    ],
)
def test_the_command_line_asks_for_trust_and_takes_it(
    cli: Cli, plan_path: Path, toy_data: Path, tmp_path: Path, command: str
) -> None:
    bare = tmp_path / plan_path.name
    bare.write_bytes(plan_path.read_bytes())
    places = {"images": toy_data / "JPEGImages", "out": tmp_path / "masks", "model": bare}
    arguments = [part.format(**places) for part in command.split()]
    code, out, err = cli(arguments)
    assert (code, out) == (1, "") and "has no sidecar" in err and "--trust" in err and err.count("\n") == 1
    bare.with_name("model_fp32.onnx").write_bytes(plan_path.with_name("model_fp32.onnx").read_bytes())
    code, _, err = cli([*arguments, "--trust"])
    assert code == 1 and "no NVIDIA driver" in err


def test_case_36_tensorrt_refuses_a_foreign_file_that_was_trusted(plan_path: Path) -> None:
    good = read_plan(plan_path)
    for content in (b"", b"<html>" * 100):
        plan = LoadedPlan(content, "", good.artifact, None)
        with pytest.raises(ArtifactError, match=r"x.plan: TensorRT-RTX [\d.]+ refuses it: \w+") as error:
            deserialize("tensorrt_rtx", plan, where=Path("x.plan"))
        assert "\n" not in str(error.value)


def test_every_reason_why_a_plan_does_not_run_here_is_in_the_line(plan_path: Path) -> None:
    spec = read_plan(plan_path).spec
    assert spec is not None
    here = Host(spec.version, this_platform(), Gpu("RTX 3090", "8.6", 24 << 30))
    refuse_misfit(plan_path, spec, here)
    there = Host("1.2.0.54", this_platform(), Gpu("NVIDIA H100", "9.0", 80 << 30))
    with pytest.raises(ArtifactError, match=r"needs TensorRT-RTX .*; it is for GPUs .* H100 has 9.0: build it"):
        refuse_misfit(plan_path, spec, there)


def test_another_card_of_the_same_kind_is_remarked_on(plan_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from gmtool import console

    console.stderr.cache_clear()
    spec = read_plan(plan_path).spec
    assert spec is not None
    built = dataclasses.replace(spec, gpu="NVIDIA A10", compute_capabilities=("8.6",))
    host = Host(spec.version, this_platform(), Gpu("RTX 3090", "8.6", 24 << 30))
    refuse_misfit(plan_path, built, host)
    assert "built on NVIDIA A10; it may be slower on RTX 3090" in capfd.readouterr().err
    refuse_misfit(plan_path, dataclasses.replace(built, gpu="RTX 3090"), host)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("shape", "index"),
    [((1, 32, 32), 0), ((1, 128, 128), 0), ((2, 128, 128), 0), ((1, 256, 200), 1), ((3, 64, 64), 1)],
)
def test_the_profile_that_is_fastest_nearest_to_a_shape_is_taken(shape: tuple[int, int, int], index: int) -> None:
    assert pick_profile([SMALL, LARGE], BatchShape(*shape)) == index


@pytest.mark.parametrize(
    ("shape", "profiles", "message"),
    [
        ((1, 20, 32), [SMALL], "^1x20x32 .* does not fit the plan: height 20 is outside 32..128: resize"),
        ((3, 64, 129), [SMALL], "batch 3 is outside 1..2, width 129 is outside 32..128: "),
        ((1, 600, 64), [SMALL, LARGE], "height 600 is outside 32..128; or height 600 is outside 64..512: "),
    ],
)
def test_a_shape_outside_every_profile_is_refused_by_name(
    shape: tuple[int, int, int], profiles: list[ShapeProfile], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        pick_profile(profiles, BatchShape(*shape))


def test_memory_grows_in_whole_grains_and_never_shrinks() -> None:
    assert grown_size(0, 1) == GRAIN_BYTES
    assert grown_size(GRAIN_BYTES, GRAIN_BYTES) == GRAIN_BYTES
    assert grown_size(10 * GRAIN_BYTES, 5) == 10 * GRAIN_BYTES
    assert grown_size(10 * GRAIN_BYTES, 10 * GRAIN_BYTES + 1) == 15 * GRAIN_BYTES
    assert grown_size(10 * GRAIN_BYTES, 20 * GRAIN_BYTES + 1) == 21 * GRAIN_BYTES
    capacity, steps = 0, 0
    for needed in range(1, 100 * GRAIN_BYTES, GRAIN_BYTES // 4):  # a stream of ever larger images
        grown = grown_size(capacity, needed)
        assert grown >= needed and grown % GRAIN_BYTES == 0
        capacity, steps = grown, steps + (grown > capacity)
    assert steps < 15


def test_the_host_side_is_seen_as_an_array_of_any_type() -> None:
    """Ordinary memory in the place of pinned memory: what is laid over it is the same."""
    memory = TensorMemory()
    backing = np.zeros(64, np.uint8)
    memory._host = backing.ctypes.data
    memory.view((2, 2, 3), np.float32)[...] = np.arange(12).reshape(2, 2, 3)
    assert backing[:48].view(np.float32).tolist() == list(range(12))
    assert not backing[48:].any()


@needs_no_gpu
def test_a_failed_cuda_call_is_one_line_with_a_remedy() -> None:
    with pytest.raises(BackendError, match="^CUDA: CUDA driver version is insufficient.*: update the"):
        TensorMemory().reserve(1)
    from cuda.bindings import runtime

    assert cuda_result((runtime.cudaError_t.cudaSuccess, 1, 2)) == (1, 2)
    with pytest.raises(BackendMemoryError, match="^CUDA: out of memory: take smaller images or smaller batches$"):
        cuda_result((runtime.cudaError_t.cudaErrorMemoryAllocation, None))


@needs_gpu
def test_masks_equal_onnxruntimes_on_a_gpu(plan_path: Path, toy_model: Path) -> None:
    try:
        backend = open_backend(plan_path)
    except ArtifactError as error:  # TensorRT-RTX is not for data-centre GPUs
        assert "compute capability" in str(error)
        pytest.skip(str(error))
    reference = open_backend(toy_model, device="cpu")
    random = np.random.default_rng(0)
    for shape in [(1, 64, 64), (2, 128, 128), (1, 33, 97), (1, 64, 64)]:
        images = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        mask = backend.predict(images).mask
        assert mask.shape == shape and mask.dtype == np.uint8
        assert (mask == reference.predict(images).mask).mean() >= 0.999
    with pytest.raises(BackendError, match="height 16 is outside 32..128"):
        backend.predict(np.zeros((1, 16, 64, 3), np.uint8))


class Context:
    """An execution context that computes nothing."""


class Engine:
    """An engine of one input and no output, as far as it is asked before a batch."""

    num_io_tensors = num_optimization_profiles = 1

    def get_tensor_name(self, index: int) -> str:
        return "image"

    def get_tensor_mode(self, name: str) -> str:
        return "input"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(1, 8, 8, 3)] * 3

    def create_execution_context(self) -> Context:
        return Context()


@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_an_engine_is_released_in_order_without_the_collector(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    released: list[str] = []

    def note(what: str) -> None:
        released.append(what)
        assert not gc.isenabled()  # TensorRT may log in there

    def destroy(stream: str) -> tuple[Any]:
        note(stream)
        return (success,)

    success = cuda_success()
    cuda = SimpleNamespace(
        cudaStreamNonBlocking=1,
        cudaStreamCreateWithFlags=lambda flags: (success, "stream"),
        cudaStreamDestroy=destroy,
    )
    monkeypatch.setattr(trt_engine, "runtime", cuda)
    modes: Any = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"))
    engine = TrtEngine(modes, Engine(), tensorrt_log("tensorrt_rtx"))
    weakref.finalize(engine._gpu.context, note, "context")
    weakref.finalize(engine._gpu.engine, note, "engine")
    if way == "closed":
        engine.close()
    else:
        del engine
    assert released == ["context", "engine", "stream"]
    assert gc.isenabled()


class HostRuntime:
    """CUDA's runtime with the machine's own memory as the GPU's."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}

    def cudaMalloc(self, size: int) -> tuple[Any, int]:  # noqa: N802
        block = np.zeros(size, np.uint8)
        self._blocks[block.ctypes.data] = block
        return cuda_success(), block.ctypes.data

    cudaMallocHost = cudaMalloc  # noqa: N815

    def cudaFree(self, address: int) -> None:  # noqa: N802
        del self._blocks[address]

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(self, to: int, source: int, count: int, kind: int, stream: int) -> tuple[Any]:  # noqa: N802
        ctypes.memmove(to, source, count)
        return (cuda_success(),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:  # noqa: N802
        return cuda_success(), 1

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:  # noqa: N802
        return (cuda_success(),)

    cudaStreamSynchronize = cudaStreamDestroy  # noqa: N815


class ComputingContext(Context):
    """An execution context that computes what `FakeBackend` does, in the memory that it was given."""

    def __init__(self) -> None:
        self._fake = FakeBackend(outputs=OUTPUTS)
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        count, height, width, _ = self._shape
        return (count, 3, height, width) if name == "logits" else (count, height, width)

    def execute_async_v3(self, stream: int) -> bool:
        given = self._fake.predict(self._at("image", self._shape, np.uint8))
        self._at("mask", self.get_tensor_shape("mask"), np.uint8)[...] = given.mask
        self._at("logits", self.get_tensor_shape("logits"), np.float32)[...] = given.logits
        return True

    def _at(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        memory = TensorMemory()
        memory._host = self._addresses[name]
        return memory.view(shape, dtype)


class ComputingEngine(Engine):
    """An engine for one or two images of 32 to 64 pixels a side, with a mask and logits."""

    num_io_tensors = 3

    def get_tensor_name(self, index: int) -> str:
        return ("image", *OUTPUTS)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "image" else "output"

    def get_tensor_dtype(self, name: str) -> type:
        return np.float32 if name == "logits" else np.uint8

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(1, 32, 32, 3), (1, 64, 64, 3), (2, 64, 64, 3)]

    def create_execution_context(self) -> ComputingContext:
        return ComputingContext()


class TestTensorRT(BackendContract):
    @pytest.fixture
    def backend(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrtBackend]:
        runtime = HostRuntime()
        monkeypatch.setattr(trt_engine, "runtime", runtime)
        monkeypatch.setattr(cuda_memory, "runtime", runtime)
        plan = LoadedPlan(b"plan", "0" * 64, FakeBackend(outputs=OUTPUTS).spec, None)
        modes = SimpleNamespace(INPUT="input", OUTPUT="output")
        tensorrt = SimpleNamespace(TensorIOMode=modes, nptype=lambda dtype: dtype)
        replacements: dict[str, Any] = {
            "read_plan": lambda path, *, trust: plan,
            "this_host": lambda flavour: Host("1", this_platform(), Gpu("RTX 3090", "8.6", 24 << 30)),
            "load_tensorrt": lambda flavour: tensorrt,
            "deserialize": lambda flavour, plan, *, where: ComputingEngine(),
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(trt_backend, name, replacement)
        backend = TrtBackend(Path("model_fp32.rtx.plan"), trust=True)
        yield backend
        backend.close()
        assert not runtime._blocks

    @pytest.fixture
    def refused(self) -> UInt8Array:
        return random_images(1, 96, 96)


def cuda_success() -> Any:
    from cuda.bindings import runtime

    return runtime.cudaError_t.cudaSuccess
