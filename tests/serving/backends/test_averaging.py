"""Windows, scales and mirror images against PyTorch's own resizing, with a small ONNX model that gives logits."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from gmtool_serving.backends.multi_view import Averaging, check_averaging, predict_mask
from gmtool_serving.backends.onnx_runtime import OrtBackend
from gmtool_serving.backends.tiles import window_starts
from onnx import TensorProto, helper, numpy_helper

from gmtool.artifact.sealed_onnx import SHA256_KEY, SPEC_KEY, UNSEALED, seal
from gmtool.artifact.spec import ArtifactSpec, ModelProvenance
from gmtool.classes import ClassSet, voc_palette
from gmtool.errors import BackendError, ConfigError
from gmtool.images import UInt8Array

CLASSES = ClassSet(("a", "b", "c", "d"), voc_palette(4), (0, 1, 2, 3))
WEIGHTS = np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype(np.float32) / 100
BIAS = np.array([0, 0.1, -0.1, 0.2], dtype=np.float32)


def write_model(path: Path, scale: float = 1.0, classes: ClassSet = CLASSES) -> Path:
    """Write a sealed model of one convolution whose output is its logits."""
    provenance = ModelProvenance("run", 1, None, "0", "0", "0", "2026-01-01")
    spec = ArtifactSpec(classes, "fp32", "toy", 1, None, ("logits",), provenance)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights", "bias"], ["logits"], pads=[2, 2, 2, 2]),
    ]
    tensors = [
        numpy_helper.from_array(WEIGHTS * np.float32(scale), "weights"),
        numpy_helper.from_array(BIAS, "bias"),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4, "h", "w"])
    model = helper.make_model(
        helper.make_graph(nodes, "toy", [image], [logits], tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.helper.set_model_props(model, {SPEC_KEY: spec.to_json(), SHA256_KEY: UNSEALED})
    path.write_bytes(seal(model.SerializeToString()))
    return path


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> OrtBackend:
    return OrtBackend(write_model(tmp_path_factory.mktemp("model") / "m.onnx"), device="cpu", threads=1)


@pytest.fixture(scope="module")
def image() -> UInt8Array:
    return np.random.default_rng(1).integers(0, 255, (12, 15, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)


def planes(image: UInt8Array) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def network(x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, torch.from_numpy(WEIGHTS), torch.from_numpy(BIAS), padding=2)


def assert_same_but_where_close(mask: UInt8Array, logits: torch.Tensor) -> None:
    """Allow another label only where the two best logits are closer than what rounding of pixels can do."""
    best = logits[0].topk(2, dim=0).values
    differs = torch.from_numpy(mask) != logits[0].argmax(dim=0).to(torch.uint8)
    assert ((best[0] - best[1])[differs] < 0.02).all()
    assert differs.float().mean() < 0.02
    assert len(np.unique(mask)) > 1


def test_scales_and_mirror_images_are_averaged_as_in_pytorch(backend: OrtBackend, image: UInt8Array) -> None:
    height, width = image.shape[:2]
    total = torch.zeros(1, 4, height, width)
    for scale in (0.5, 1.0, 1.75):
        size = (round(scale * height), round(scale * width))
        scaled = F.interpolate(planes(image), size=size, mode="bilinear", antialias=True).round()
        for look in (network(scaled), network(scaled.flip(3)).flip(3)):
            total += F.interpolate(look, size=(height, width), mode="bilinear", antialias=True)
    mask = predict_mask(backend, image, Averaging(scales=(0.5, 1.0, 1.75), flip=True))
    assert_same_but_where_close(mask, total)
    once = predict_mask(backend, image, Averaging())
    assert (mask != once).any()
    np.testing.assert_array_equal(once, network(planes(image)).argmax(dim=1)[0].numpy())


def test_windows_are_averaged_where_they_overlap(backend: OrtBackend, image: UInt8Array) -> None:
    height, width = image.shape[:2]
    total, covered = torch.zeros(1, 4, height, width), torch.zeros(height, width)
    for top in (0, 12, 24, 28):  # 48 pixels, windows of 20, steps of 12: the last is moved back
        for left in (0, 15, 30, 35):
            window = network(planes(image)[:, :, top : top + 20, left : left + 25])
            total[:, :, top : top + 20, left : left + 25] += window
            covered[top : top + 20, left : left + 25] += 1
    mask = predict_mask(backend, image, Averaging(window=(20, 25), stride=(12, 15)))
    assert_same_but_where_close(mask, total / covered)
    whole = predict_mask(backend, image, Averaging(window=(500, 500)))
    np.testing.assert_array_equal(whole, predict_mask(backend, image, Averaging()))


@pytest.mark.parametrize("length", [1, 7, 8, 20, 33])
def test_windows_cover_every_pixel_and_none_beyond(length: int) -> None:
    for window, step in ((8, 8), (8, 5), (8, 1)):
        starts = window_starts(length, window, step)
        covered = {place for start in starts for place in range(start, min(length, start + window))}
        assert covered == set(range(length))
        assert starts == sorted(set(starts))
        assert starts[-1] == max(0, length - window)


def test_a_model_without_logits_is_refused_before_any_work(toy_model: Path) -> None:
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    for averaging in (Averaging(flip=True), Averaging(scales=(0.5,)), Averaging(window=(8, 8))):
        with pytest.raises(ConfigError, match="gives mask: export the model with --output logits"):
            check_averaging(backend, averaging)
    check_averaging(backend, Averaging())


def test_scores_that_are_not_finite_are_no_mask(tmp_path: Path, image: UInt8Array) -> None:
    backend = OrtBackend(write_model(tmp_path / "m.onnx", scale=float("nan")), device="cpu", threads=1)
    with pytest.raises(BackendError, match="not finite"):
        predict_mask(backend, image, Averaging(flip=True))


@pytest.mark.parametrize(
    "options", [{"stride": (4, 4)}, {"window": (8, 8), "stride": (9, 8)}, {"window": (0, 8)}, {"scales": (0.0,)}]
)
def test_looks_that_make_no_sense_are_refused(options: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match=r"--(stride|sliding|scales)"):
        Averaging(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("averaging", [Averaging(), Averaging(flip=True), Averaging(window=(32, 32))])
def test_case_55_a_graph_with_more_classes_than_its_description_is_not_scored(
    tmp_path: Path, image: UInt8Array, averaging: Averaging
) -> None:
    fewer = ClassSet(CLASSES.names[:2], CLASSES.palette[:2], CLASSES.raw_ids[:2])
    model = OrtBackend(write_model(tmp_path / "m.onnx", classes=fewer), device="cpu", threads=1)
    with pytest.raises(
        BackendError, match=r"the model gave label [23], but it has 2 classes, 0 to 1: its"
    ) as error:
        predict_mask(model, image, averaging)
    assert error.value.code == "unknown_label"
