"""What of running a plan needs no GPU; and where there is one, that it gives ONNX Runtime's masks."""

import ctypes
import dataclasses
import gc
import importlib
import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


MODES = SimpleNamespace(INPUT="input", OUTPUT="output")
FLAVOUR: Any = SimpleNamespace(
    TensorIOMode=MODES,
    nptype=lambda dtype: dtype,
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="by the user"),
)


class Engine:
    """An engine of one input and no output, as far as it is asked before a batch."""

    num_io_tensors = num_optimization_profiles = 1

    def get_tensor_name(self, index: int) -> str:
        return "image"

    def get_tensor_mode(self, name: str) -> str:
        return "input"

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(1, 8, 8, 3)] * 3

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "by the user"
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
    engine = TrtEngine(FLAVOUR, Engine(), tensorrt_log("tensorrt_rtx"))
    weakref.finalize(engine._gpu.context, note, "context")
    weakref.finalize(engine._gpu.engine, note, "engine")
    if way == "closed":
        engine.close()
    else:
        del engine
    assert released == ["context", "engine", "stream", "stream"]
    assert gc.isenabled()


class HostRuntime:
    """CUDA's runtime with the machine's own memory as the GPU's."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}
        self.most = 64 << 20
        """Bytes of a block that is too large."""
        self.total = 1 << 40
        """Bytes of all blocks together, those of the machine included."""

    def cudaMalloc(self, size: int) -> tuple[Any, int]:  # noqa: N802
        if size > self.most or size + sum(map(len, self._blocks.values())) > self.total:
            from cuda.bindings import runtime

            return runtime.cudaError_t.cudaErrorMemoryAllocation, 0
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
        self._needed: int | None = None
        self.scratch: list[int] = []
        """Sizes of the memory that it was given."""

    def update_device_memory_size_for_shapes(self) -> int:
        count, height, width, _ = self._shape
        self._needed = 2048 * count * height * width
        return self._needed

    def set_device_memory(self, address: int, size: int) -> None:
        assert self._needed is not None and size >= self._needed
        ctypes.memset(address, 1, self._needed)  # it is all there
        self.scratch.append(size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._shape != tuple(shape):
            self._shape, self._needed = tuple(shape), None
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        count, height, width, _ = self._shape
        return (count, 3, height, width) if name == "logits" else (count, height, width)

    def execute_async_v3(self, stream: int) -> bool:
        if self._needed is None:  # its memory is that of another shape
            return False
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

    def create_execution_context(self, strategy: str) -> ComputingContext:
        assert strategy == "by the user"
        return ComputingContext()


@pytest.fixture
def host_runtime(monkeypatch: pytest.MonkeyPatch) -> HostRuntime:
    runtime = HostRuntime()
    monkeypatch.setattr(trt_engine, "runtime", runtime)
    monkeypatch.setattr(cuda_memory, "runtime", runtime)
    return runtime


def test_a_context_gets_the_memory_of_its_images_not_of_the_largest(host_runtime: HostRuntime) -> None:
    engine = TrtEngine(FLAVOUR, ComputingEngine(), tensorrt_log("tensorrt_rtx"))
    scratch = engine._gpu.context.scratch
    for shape in [(1, 32, 32), (1, 32, 32), (1, 64, 64), (1, 32, 32), (2, 64, 64)]:
        engine.run(random_images(*shape))
    # The same shape twice is prepared once; a smaller one takes the memory that is there
    assert scratch == [2 << 20, 8 << 20, 8 << 20, 16 << 20]
    engine.close()
    assert not host_runtime._blocks


def test_one_batch_is_copied_while_another_is_computed(
    host_runtime: HostRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TrtEngine(FLAVOUR, ComputingEngine(), tensorrt_log("tensorrt_rtx"))
    context = engine._gpu.context
    first, second = random_images(1, 64, 64), random_images(2, 32, 48)
    expected = {name: [engine.run(images)[name] for images in (first, second)] for name in OUTPUTS}
    uploads, computing, compute, copy = [0], [0], context.execute_async_v3, host_runtime.cudaMemcpyAsync
    uploaded_again = threading.Event()

    def count(to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any]:
        if kind == host_runtime.cudaMemcpyKind.cudaMemcpyHostToDevice:
            uploads[0] += 1
            if uploads[0] == 2:
                uploaded_again.set()
        return copy(to, source, size, kind, stream)

    def wait_and_compute(stream: int) -> bool:
        computing[0] += 1
        assert computing[0] == 1  # a context runs one batch at a time
        assert uploaded_again.wait(10)  # the other batch's images, while this one is computed
        computing[0] -= 1
        return bool(compute(stream))

    monkeypatch.setattr(host_runtime, "cudaMemcpyAsync", count)
    monkeypatch.setattr(context, "execute_async_v3", wait_and_compute)
    with ThreadPoolExecutor(2) as pool:
        given = list(pool.map(engine.run, (first, second)))
    for name in OUTPUTS:
        for number in range(2):
            np.testing.assert_array_equal(given[number][name], expected[name][number])
    engine.close()
    assert not host_runtime._blocks


def test_one_thread_allocates_one_lane(host_runtime: HostRuntime) -> None:
    engine = TrtEngine(FLAVOUR, ComputingEngine(), tensorrt_log("tensorrt_rtx"))
    for _ in range(3):
        engine.run(random_images(1, 32, 32))
    assert len(host_runtime._blocks) == 2 * 3 + 1  # both sides of image, mask and logits, and the scratch memory
    engine.close()


def test_a_batch_that_does_not_fit_leaves_the_engine_to_smaller_ones(host_runtime: HostRuntime) -> None:
    host_runtime.most = 8 << 20
    engine = TrtEngine(FLAVOUR, ComputingEngine(), tensorrt_log("tensorrt_rtx"))
    with pytest.raises(BackendMemoryError, match="out of memory"):
        engine.run(random_images(2, 64, 64))
    assert engine.run(random_images(1, 64, 64))["mask"].shape == (1, 64, 64)
    engine.close()
    assert not host_runtime._blocks


def test_batches_that_do_not_fit_side_by_side_are_computed_one_after_the_other(host_runtime: HostRuntime) -> None:
    images = random_images(1, 64, 64)
    engine = TrtEngine(FLAVOUR, ComputingEngine(), tensorrt_log("tensorrt_rtx"))
    expected = engine.run(images)["mask"]
    host_runtime.total = sum(map(len, host_runtime._blocks.values()))  # what one lane takes
    with ThreadPoolExecutor(2) as pool:
        given = list(pool.map(engine.run, [images] * 20))
    assert all(np.array_equal(each["mask"], expected) for each in given)
    with pytest.raises(BackendMemoryError, match="out of memory"):
        engine.run(random_images(2, 64, 64))
    assert np.array_equal(engine.run(images)["mask"], expected)
    engine.close()
    assert not host_runtime._blocks


def test_a_closed_engine_says_so(host_runtime: HostRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TrtEngine(FLAVOUR, ComputingEngine(), tensorrt_log("tensorrt_rtx"))
    monkeypatch.setattr(engine._gpu, "kernels", SimpleNamespace(serialize=lambda: None))
    engine.run(random_images(1, 32, 32))
    engine.close()
    assert not host_runtime._blocks
    for _ in range(3):
        with pytest.raises(BackendError, match="the plan is closed"):
            engine.run(random_images(1, 32, 32))


class Kernels:
    """A cache of kernels that takes what begins with the name of its card."""

    def __init__(self) -> None:
        self.content = b"card:"

    def deserialize(self, content: bytes) -> bool:
        if not content.startswith(b"card:"):
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content


class RtxEngine(ComputingEngine):
    """An engine of TensorRT-RTX, which compiles a kernel for each new shape."""

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(kernels=None, strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: vars(config).update(strategy=strategy)
        config.create_runtime_cache = Kernels
        config.set_runtime_cache = lambda kernels: vars(config).update(kernels=kernels)
        return config

    def create_execution_context(self, config: Any) -> ComputingContext:
        assert config.strategy == "by the user"
        context = ComputingContext()
        compute = context.execute_async_v3

        def compile_and_compute(stream: int) -> bool:
            kernel = f"{context._shape};".encode()
            if kernel not in config.kernels.content:
                config.kernels.content += kernel
            return compute(stream)

        context.execute_async_v3 = compile_and_compute  # type: ignore[method-assign]
        return context


def test_kernels_that_tensorrt_rtx_compiled_are_kept_beside_the_plan(
    host_runtime: HostRuntime, tmp_path: Path
) -> None:
    plan = tmp_path / "model_fp32.rtx.plan"
    plan.write_bytes(b"plan")
    path = trt_backend.kernels_path(plan)

    def process(*shapes: tuple[int, int, int]) -> None:
        keep = lambda kernels: trt_backend.keep_kernels(plan, kernels)  # noqa: E731
        kernels = trt_backend.read_kernels(plan)
        engine = TrtEngine(FLAVOUR, RtxEngine(), tensorrt_log("tensorrt_rtx"), kernels=kernels, keep_kernels=keep)
        for shape in shapes:
            engine.run(random_images(*shape))
        engine.close()

    process((1, 32, 32))
    assert path.read_bytes() == b"card:(1, 32, 32, 3);"
    process((1, 64, 64), (1, 32, 32))
    assert path.read_bytes() == b"card:(1, 32, 32, 3);(1, 64, 64, 3);"
    # No new kernel: no write
    path.chmod(0o400)
    written = path.stat().st_mtime_ns
    process((1, 64, 64))
    assert path.stat().st_mtime_ns == written
    # Those of another card, and those older than the plan, are replaced
    path.unlink()
    path.write_bytes(b"other:")
    process((1, 32, 32))
    assert path.read_bytes() == b"card:(1, 32, 32, 3);"
    os.utime(path, (1, 1))
    assert trt_backend.read_kernels(plan) == b""
    # A link is not followed, and a folder that cannot be written is no error
    path.unlink()
    path.symlink_to(plan)
    assert trt_backend.read_kernels(plan) == b""
    trt_backend.keep_kernels(tmp_path / "missing" / plan.name, b"kernels")


def test_the_calls_of_contexts_and_kernels_are_in_the_installed_package() -> None:
    trt = importlib.import_module("tensorrt_rtx")
    calls = {
        "ICudaEngine": ["create_execution_context", "create_runtime_config"],
        "IRuntimeConfig": [
            "create_runtime_cache",
            "set_execution_context_allocation_strategy",
            "set_runtime_cache",
        ],
        "IRuntimeCache": ["deserialize", "serialize"],
        "IExecutionContext": ["set_device_memory", "update_device_memory_size_for_shapes"],
        "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
        "PreviewFeature": ["RUNTIME_ACTIVATION_RESIZE_10_10"],
    }
    assert [(kind, call) for kind in calls for call in calls[kind] if not hasattr(getattr(trt, kind), call)] == []


class TestTensorRT(BackendContract):
    @pytest.fixture
    def backend(self, monkeypatch: pytest.MonkeyPatch, host_runtime: HostRuntime) -> Iterator[TrtBackend]:
        plan = LoadedPlan(b"plan", "0" * 64, FakeBackend(outputs=OUTPUTS).spec, None)
        replacements: dict[str, Any] = {
            "read_plan": lambda path, *, trust: plan,
            "this_host": lambda flavour: Host("1", this_platform(), Gpu("RTX 3090", "8.6", 24 << 30)),
            "load_tensorrt": lambda flavour: FLAVOUR,
            "deserialize": lambda flavour, plan, *, where: ComputingEngine(),
        }
        for name, replacement in replacements.items():
            monkeypatch.setattr(trt_backend, name, replacement)
        backend = TrtBackend(Path("model_fp32.rtx.plan"), trust=True)
        yield backend
        backend.close()
        assert not host_runtime._blocks

    @pytest.fixture
    def refused(self) -> UInt8Array:
        return random_images(1, 96, 96)


def cuda_success() -> Any:
    from cuda.bindings import runtime

    return runtime.cudaError_t.cudaSuccess
