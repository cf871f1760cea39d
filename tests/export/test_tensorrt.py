"""Real engines, built with TensorRT-RTX, which needs no GPU. TensorRT itself cannot be installed everywhere."""

import dataclasses
import gc
import hashlib
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gmtool_export.tensorrt.build import BuildOptions, _configure, build_plan, check_options, choose_flavour
from gmtool_export.tensorrt.profiles import fit_to_memory, needed_bytes, profile_of_run, proof_shapes
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from gmtool import console
from gmtool.artifact import nvidia
from gmtool.artifact.nvidia import tensorrt_log
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.spec import ArtifactSpec, Precision
from gmtool.artifact.tensorrt_plan import Flavour, Gpu, Plan
from gmtool.errors import ArtifactError, BackendError, ConfigError, MissingExtraError

trt = pytest.importorskip("tensorrt_rtx")

PROFILE = ShapeProfile(BatchShape(1, 32, 32), BatchShape(2, 96, 128), BatchShape(4, 256, 256))
SMALL = ShapeProfile(BatchShape(1, 8, 8), BatchShape(1, 8, 8), BatchShape(1, 16, 16))
RTX = BuildOptions("tensorrt_rtx", (PROFILE,))


@pytest.fixture(scope="module")
def spec(toy_model: Path) -> ArtifactSpec:
    return read_sealed_spec(toy_model.read_bytes(), where=toy_model)


@pytest.fixture(autouse=True)
def fresh_modules() -> Iterator[None]:
    """What is loaded is remembered for the life of a process; not from one test to the next."""
    yield
    nvidia.load_tensorrt.cache_clear()


def graph(operator: str = "ArgMax", domain: str = "", name: str = "best", **attributes: Any) -> bytes:
    """The smallest model with the contract of a deployed one: the mask is the brightest channel."""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node(operator, ["x"], ["label"], domain=domain, name=name, **attributes),
        helper.make_node("Cast", ["label"], ["mask"], to=TensorProto.UINT8),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    mask = helper.make_tensor_value_info("mask", TensorProto.UINT8, ["batch", "height", "width"])
    made = helper.make_graph(nodes, "graph", [image], [mask])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("custom", 1)]
    model: onnx.ModelProto = helper.make_model(made, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())


TINY = graph(axis=3, keepdims=0)


def in_precision(model: Path, precision: Precision, folder: Path) -> bytes:
    """Return a model in another precision, by ONNX Runtime's own tools."""
    if precision == "fp16":
        half = convert_float_to_float16(onnx.load(model), keep_io_types=True, op_block_list=["Resize", "ArgMax"])
        return bytes(half.SerializeToString())
    if precision == "int8":
        quantize_static(
            model,
            folder / "int8.onnx",
            _Calibration(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        return (folder / "int8.onnx").read_bytes()
    return model.read_bytes()


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        images = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
        self._batches = iter([{"image": images}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def is_an_engine(content: bytes) -> bool:
    """Ask TensorRT-RTX itself; without a GPU it can tell no more than whether the file is one of its own."""
    _, faults = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).get_engine_validity(content)
    return not int(faults) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_engine_is_built_in_each_precision_with_dynamic_shapes(
    toy_model: Path, spec: ArtifactSpec, precision: Precision, tmp_path: Path
) -> None:
    model = in_precision(toy_model, precision, tmp_path)
    other: Precision = "fp32" if precision == "fp16" else "fp16"
    with pytest.raises(ArtifactError, match=f"computes in {precision}, and its description says {other}"):
        build_plan(model, dataclasses.replace(spec, precision=other), RTX)
    plan = build_plan(model, dataclasses.replace(spec, precision=precision), RTX)
    assert is_an_engine(plan.content)
    assert not is_an_engine(b"anything before it" + plan.content)
    assert plan.spec.artifact.precision == precision
    assert plan.spec.profiles == (PROFILE,)


def test_the_sidecar_says_what_was_built(spec: ArtifactSpec) -> None:
    plan = build_plan(TINY, spec, dataclasses.replace(RTX, profiles=(PROFILE, SMALL), workspace_bytes=1 << 28))
    said = plan.spec
    assert (said.flavour, said.version, said.gpu) == ("tensorrt_rtx", trt.__version__, None)
    assert said.onnx_sha256 == hashlib.sha256(TINY).hexdigest()
    assert (said.profiles, said.workspace_bytes) == ((PROFILE, SMALL), 1 << 28)
    assert (said.hardware_compatible, said.version_compatible) == (False, False)
    assert said.platform == nvidia.this_platform()
    assert said.artifact == spec


def test_a_plan_is_built_to_take_the_memory_of_the_images_that_it_gets(spec: ArtifactSpec) -> None:
    config = trt.Builder(tensorrt_log("tensorrt_rtx").logger).create_builder_config()
    feature = trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10
    config.set_preview_feature(feature, False)  # as TensorRT has it by default
    _configure(trt, config, spec, RTX)
    assert config.get_preview_feature(feature)


WIDE = ShapeProfile(BatchShape(1, 32, 32), BatchShape(4, 1024, 2048), BatchShape(8, 1024, 2048))


@pytest.mark.parametrize(
    ("gib", "largest", "best"),
    [(141, "8x1024x2048", "4x1024x2048"), (48, "4x1024x2048", "4x1024x2048"), (24, "2x1024x2048", "2x1024x2048")],
)
def test_the_default_profile_is_cut_to_the_memory_of_the_card(
    spec: ArtifactSpec, gib: int, largest: str, best: str
) -> None:
    """At 1024x2048 attention has 32 768 positions: their matrix takes 4 GiB, and its softmax as much."""
    assert needed_bytes(WIDE.opt, spec) == 2 * 16 << 30
    profile = fit_to_memory(WIDE, spec, gib << 30, given=False)
    assert (str(profile.min), str(profile.opt), str(profile.max)) == ("1x32x32", best, largest)


def test_where_one_image_does_not_fit_the_sides_are_cut_and_given_shapes_stay(
    spec: ArtifactSpec, capfd: pytest.CaptureFixture[str]
) -> None:
    console.stderr.cache_clear()
    profile = fit_to_memory(WIDE, spec, 8 << 30, given=False)
    assert profile.max.batch == profile.opt.batch == 1
    assert 900 <= profile.max.height < 1024 and profile.max.width == pytest.approx(2 * profile.max.height, abs=4)
    assert needed_bytes(profile.max, spec) <= 0.8 * (8 << 30)
    assert f"largest shape {profile.max} instead of 8x1024x2048, for a card of 8 GiB" in capfd.readouterr().err
    assert fit_to_memory(WIDE, spec, 8 << 30, given=True) == WIDE
    assert "--max-shape 8x1024x2048 needs about 64 GiB on a card of 8" in capfd.readouterr().err
    # Not below the smallest shape; without attention the features decide
    least = ShapeProfile(BatchShape(2, 64, 64), BatchShape(2, 96, 96), BatchShape(8, 1024, 1024))
    assert fit_to_memory(least, spec, 1 << 20, given=False).max == least.min
    plain = dataclasses.replace(spec, attention_stride=None)
    assert fit_to_memory(WIDE, plain, 24 << 30, given=False) == WIDE


def test_the_proof_computes_no_batch_in_pytorch_that_takes_minutes() -> None:
    shapes = proof_shapes(WIDE)
    assert all(shape.pixels <= 1_000_000 and WIDE.misfit(shape) is None for shape in shapes.values())
    assert shapes["smallest"] == WIDE.min and shapes["largest"].batch == 1
    assert shapes["largest"].height > 600 and set(shapes) >= {"best", "odd", "batch of 3"}


def test_default_shapes_follow_the_images_and_are_best_at_several_at_once(toy_run: Path) -> None:
    given = {"--min-shape": None, "--opt-shape": None, "--max-shape": None}
    profile = profile_of_run(toy_run, given)
    assert (profile.min.batch, profile.opt.batch, profile.max.batch) == (1, 4, 8)
    assert profile_of_run(toy_run, given | {"--opt-shape": "9x40x50"}).max.batch == 9


def target_bits(plan: Plan) -> int:
    """The GPUs in the head of a plan of TensorRT-RTX 1.x: a bit for each member of `ComputeCapability`."""
    return int.from_bytes(plan.content[32:36], "little")


def test_one_plan_is_built_for_the_gpus_that_were_asked_for(spec: ArtifactSpec) -> None:
    """Without a GPU: what the builder was told is read from the plan itself."""
    one = build_plan(TINY, spec, dataclasses.replace(RTX, compute_capabilities=("8.6",)))
    two = build_plan(TINY, spec, dataclasses.replace(RTX, compute_capabilities=("12.0", "8.6", "8.6")))
    default = build_plan(TINY, spec, RTX)
    assert one.spec.compute_capabilities == ("8.6",)
    assert two.spec.compute_capabilities == ("8.6", "12.0")
    assert default.spec.compute_capabilities[:3] == ("8.0", "8.6", "8.9")
    assert default.spec.compute_capabilities[-1].endswith("+")
    bits = [target_bits(plan) for plan in (one, two, default)]
    assert [bit.bit_count() for bit in bits[:2]] == [1, 2]
    assert bits[0] & bits[1] == bits[0] and bits[1] & bits[2] == bits[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute_capabilities": ("8.6", "9.0")}, r"9.0: TensorRT-RTX .* builds for 7.5, 8.0, .* use TensorRT"),
        ({"compute_capabilities": ("86",)}, "--compute-capability 86: "),
        ({"hardware_compatible": True}, "--hardware-compatible: TensorRT-RTX has no such option"),
        ({"version_compatible": True}, "--version-compatible: TensorRT-RTX has no such option"),
        ({"timing_cache": Path("x")}, "--timing-cache: TensorRT-RTX has no such option"),
        ({"workspace_bytes": 0}, "workspace of 0 bytes"),
        ({"profiles": ()}, "needs at least one range of shapes"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_options(dataclasses.replace(RTX, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            graph("Mystery", "custom", "strange"),
            r"TensorRT-RTX .* refuses the ONNX graph: node strange \(Mystery\): ",
        ),
        (TINY[: len(TINY) // 2], "refuses the ONNX graph: .*Failed to parse"),
        (b"", r"takes \[\] and gives \[\]; its description says \['image'\] and \['mask'\]"),
        (TINY.replace(b"image", b"pixel"), r"takes \['pixel'\] and gives \['mask'\]"),
    ],
)
def test_a_graph_that_tensorrt_refuses_is_one_line(spec: ArtifactSpec, model: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        build_plan(model, spec, RTX)
    assert "\n" not in str(error.value)


def test_the_builders_log_is_shown_on_request(spec: ArtifactSpec, capfd: pytest.CaptureFixture[str]) -> None:
    build_plan(TINY, spec, RTX)
    assert capfd.readouterr() == ("", "")
    build_plan(TINY, spec, dataclasses.replace(RTX, verbose=True))
    out, err = capfd.readouterr()
    assert out == "" and "[verbose] " in err and "[info] " in err


A_BUILDER_IN_A_CYCLE = """
import gc, sys
from pathlib import Path
import tensorrt_rtx as trt
from gmtool_export.tensorrt.build import BuildOptions, build_plan
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.nvidia import TensorRTLog
from gmtool.artifact.shapes import BatchShape, ShapeProfile

take = TensorRTLog._take

def take_and_allocate(log, *message):
    gc.set_threshold(1)
    [[] for _ in range(10)]
    take(log, *message)

TensorRTLog._take = take_and_allocate
graph, model = map(Path, sys.argv[1:])
spec = read_sealed_spec(model.read_bytes(), where=model)
profile = ShapeProfile(*[BatchShape(1, 8, 8)] * 3)
gc.set_threshold(100_000)
other = TensorRTLog(trt)  # TensorRT warns of a second logger, with its lock held
cycle = [trt.Builder(other.logger)]
cycle.append(cycle)
del cycle
build_plan(graph.read_bytes(), spec, BuildOptions("tensorrt_rtx", (profile,)))
print("built")
"""


def test_a_builder_that_waits_in_a_cycle_does_not_stop_the_next_one(toy_model: Path, tmp_path: Path) -> None:
    """Its destructor wants the lock that TensorRT holds while it logs: a collection there never ends."""
    (tmp_path / "tiny.onnx").write_bytes(TINY)
    command = [sys.executable, "-c", A_BUILDER_IN_A_CYCLE, str(tmp_path / "tiny.onnx"), str(toy_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.returncode) == ("built\n", 0), done.stderr


def test_nothing_is_collected_while_tensorrt_calls_its_logger(
    spec: ArtifactSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled: list[bool] = []
    take = nvidia.TensorRTLog._take

    def watch(log: nvidia.TensorRTLog, is_error: bool, severity: str, message: str) -> None:
        enabled.append(gc.isenabled())
        take(log, is_error, severity, message)

    monkeypatch.setattr(nvidia.TensorRTLog, "_take", watch)
    assert gc.isenabled()
    build_plan(TINY, spec, RTX)
    assert enabled and not any(enabled)
    with pytest.raises(ArtifactError):
        build_plan(b"", spec, RTX)
    assert not any(enabled) and gc.isenabled()


@pytest.mark.parametrize("model", [graph("Mystery", "custom"), b""], ids=["not parsed", "not as described"])
def test_a_build_that_fails_releases_its_builder_though_its_error_is_kept(
    spec: ArtifactSpec, monkeypatch: pytest.MonkeyPatch, model: bytes
) -> None:
    made: list[weakref.ref[Any]] = []

    def builder(logger: Any, make: Any = trt.Builder) -> Any:
        one = make(logger)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(trt, "Builder", builder)
    gc.disable()  # what lies in a cycle stays
    try:
        with pytest.raises(ArtifactError) as error:
            build_plan(model, spec, RTX)
        assert error.value.__traceback__ is not None
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()


def test_the_collector_goes_on_when_the_last_thread_has_left_tensorrt() -> None:
    with nvidia.collector_held_off:
        with nvidia.collector_held_off:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()  # somebody else's wish is kept
    try:
        with nvidia.collector_held_off:
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Put a package `tensorrt` of that code first on the path."""
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # so that what this test imports is forgotten after it
    del sys.modules["tensorrt"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        # What the wheel of TensorRT 11.4 says where NVIDIA's index was not reached
        (
            "raise ImportError('libnvonnxparser.so.11: cannot open shared object file')",
            r"without its libraries \(lib",
        ),
        ("import tensorrt_bindings_of_nothing", r"needs TensorRT \(tensorrt_bindings_of_nothing\), which is not"),
        ("__version__ = '0.0.1'", "tensorrt is a placeholder package"),
        ("__version__, Builder = '9.3.0', None", "TensorRT 9.3.0 is too old: expected 10.3 or later"),
    ],
)
def test_a_tensorrt_that_cannot_work_is_said_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, message: str
) -> None:
    install(monkeypatch, tmp_path, code)
    with pytest.raises((BackendError, MissingExtraError), match=message + ".*gmtool.trt."):
        choose_flavour()


@pytest.mark.parametrize(
    ("flavour", "message"),
    [
        ("tensorrt", r"TensorRT \(tensorrt\), which is not installed: pip install .gmtool\[trt\]"),
        (
            "tensorrt_rtx",
            r"TensorRT-RTX .* which is not installed: pip install .gmtool\[trt-rtx\]",
        ),
    ],
)
def test_a_missing_flavour_is_named(monkeypatch: pytest.MonkeyPatch, flavour: Flavour, message: str) -> None:
    nvidia.load_tensorrt.cache_clear()
    monkeypatch.setitem(sys.modules, flavour, None)
    with pytest.raises(MissingExtraError, match=message):
        choose_flavour(flavour)


@pytest.fixture
def shared_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT-RTX's library under TensorRT's name: that branch makes its calls, on the API that both share."""
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(nvidia.OLDEST, "tensorrt", "1.2")
    nvidia.load_tensorrt.cache_clear()
    yield
    nvidia.load_tensorrt.cache_clear()


def test_tensorrt_builds_for_the_gpu_that_is_there(shared_api: None, spec: ArtifactSpec) -> None:
    if nvidia_gpu_is_there():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="no NVIDIA driver on this machine"):
        build_plan(TINY, spec, BuildOptions("tensorrt", (PROFILE,)))
    with pytest.raises(ConfigError, match="--compute-capability: TensorRT builds for the GPU of this machine"):
        check_options(BuildOptions("tensorrt", (PROFILE,), compute_capabilities=("8.6",)))


def nvidia_gpu_is_there() -> bool:
    try:
        nvidia.read_gpu()
    except BackendError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_the_calls_of_tensorrts_branch_are_those_of_the_shared_api(
    shared_api: None, spec: ArtifactSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("gmtool_export.tensorrt.build.read_gpu", lambda: Gpu("NVIDIA A10", "8.6", 24 << 30))
    options = BuildOptions("tensorrt", (PROFILE,), timing_cache=tmp_path / "timing.cache")
    plan = build_plan(TINY, spec, options)
    assert (plan.spec.flavour, plan.spec.gpu) == ("tensorrt", "NVIDIA A10")
    assert plan.spec.compute_capabilities == ("8.6",)
    assert (tmp_path / "timing.cache").is_file()
    plan = build_plan(TINY, spec, dataclasses.replace(options, hardware_compatible=True))
    assert plan.spec.compute_capabilities == ("8.0+",) and plan.spec.hardware_compatible
    # The lean runtime that such a plan carries is not part of TensorRT-RTX: a build that fails is one line
    with pytest.raises(ArtifactError, match=r"could not build a plan: .*libnvinfer_lean.so"):
        build_plan(TINY, spec, dataclasses.replace(options, version_compatible=True))
