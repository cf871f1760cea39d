import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gmtool_serving.backends import onnx_runtime as ort_module
from gmtool_serving.backends.onnx_runtime import OrtBackend
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.pipeline.pipeline import Outcome
from gmtool_serving.pipeline.run import predict_images
from PIL import Image

from gmtool.errors import ArtifactError, BackendError, ImageTooLargeError
from gmtool.images import read_image
from gmtool.masks.files import read_mask
from gmtool.nn.checkpoint import load_network
from gmtool.nn.model import normalize


@pytest.fixture(scope="module")
def backend(toy_model: Path) -> OrtBackend:
    return OrtBackend(toy_model, device="cpu", threads=1)


@pytest.fixture
def images(toy_data: Path, tmp_path: Path) -> Path:
    """A few images of different sizes, some in a sub-folder."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for index, path in enumerate(sorted((toy_data / "JPEGImages").iterdir())[:12]):
        image = Image.open(path).resize((64 + 3 * index, 48 - index))
        image.save(root / ("sub" if index % 3 == 0 else "") / path.name)
    return root


def predict(backend: OrtBackend, root: Path, out: Path) -> list[Outcome]:
    return list(predict_images(backend, collect_images([str(root)], out), out))


def test_masks_have_the_images_sizes_and_are_those_of_pytorch(
    backend: OrtBackend, images: Path, tmp_path: Path, toy_run: Path
) -> None:
    outcomes = predict(backend, images, tmp_path / "masks")
    assert len(outcomes) == 12
    assert all(outcome.error is None for outcome in outcomes)
    network, _ = load_network(toy_run, "best")
    for outcome in outcomes:
        image = read_image(outcome.image.path)
        mask = read_mask(tmp_path / "masks" / f"{outcome.image.output}.png", backend.spec.classes)
        with torch.no_grad():
            logits = network(normalize(torch.from_numpy(image).permute(2, 0, 1)[None])).logits[0]
        assert mask.shape == image.shape[:2]
        assert (mask == logits.argmax(0).numpy()).mean() >= 0.999


def test_a_bad_image_harms_only_itself(backend: OrtBackend, images: Path, tmp_path: Path) -> None:
    (images / "bad.jpg").write_text("not an image")
    cut = images / "cut.png"
    Image.new("RGB", (50, 50)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-30])
    outcomes = predict(backend, images, tmp_path / "masks")
    failed = {outcome.image.path.name: outcome.error for outcome in outcomes if outcome.error}
    assert set(failed) == {"bad.jpg", "cut.png"}
    assert "bad.jpg: not an image" in str(failed["bad.jpg"])
    files = [path for path in (tmp_path / "masks").rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".png"]) == 12
    assert [path.name for path in files if path.suffix != ".png"] == ["manifest.jsonl"]


def test_a_mask_that_cannot_be_written_is_a_failure_and_leaves_nothing(
    backend: OrtBackend, images: Path, tmp_path: Path
) -> None:
    collected = collect_images([str(images)], tmp_path / "masks")
    (tmp_path / "masks" / f"{collected[3].output}.png").mkdir(parents=True)  # a folder in the way
    outcomes = list(predict_images(backend, collected, tmp_path / "masks"))
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert failed.image == collected[3]
    assert failed.failure is not None and failed.failure.code == "cannot_write"
    assert "cannot be written" in failed.failure.message
    assert not list((tmp_path / "masks").rglob("*gmtool-tmp"))


def test_an_image_too_large_for_attention_fails_before_memory_runs_out(
    backend: OrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_module, "MEMORY_SHARE", 1e-6)
    with pytest.raises(BackendError, match="160x120 pixels: the non-local block would need"):
        backend.predict(np.zeros((1, 120, 160, 3), dtype=np.uint8))


def test_case_52_an_image_too_large_for_the_container_fails_and_one_that_fitted_still_does(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OrtBackend(toy_model, device="cpu", threads=1)
    small, large = (np.zeros((1, *size, 3), dtype=np.uint8) for size in ((64, 64), (120, 160)))
    monkeypatch.setattr(ort_module, "available_memory", lambda: 100_000)  # 64 positions need 32 768 bytes
    backend.predict(small)
    monkeypatch.setattr(ort_module, "available_memory", lambda: 0)
    backend.predict(small)  # in the memory that the runtime kept
    with pytest.raises(ImageTooLargeError, match="160x120 pixels: the non-local block would need"):
        backend.predict(large)


def test_asking_for_cuda_without_it_is_an_error_and_not_a_silent_fallback(toy_model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(BackendError, match="--device cuda: no CUDA driver"):
        OrtBackend(toy_model, device="cuda")
    assert "CPUExecutionProvider" in OrtBackend(toy_model, device="auto").description


def test_a_model_file_that_is_missing_or_changed_is_refused(toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        OrtBackend(tmp_path / "nowhere.onnx")
    changed = tmp_path / "model.onnx"
    shutil.copy(toy_model, changed)
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    with pytest.raises(ArtifactError, match="was changed after it was exported"):
        OrtBackend(changed)
