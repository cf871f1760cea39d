from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torchvision.models import get_model

from gmtool.artifact.checkpoints import read_checkpoint
from gmtool.errors import CheckpointError
from gmtool.nn import weights as weights_module
from gmtool.nn.encoder import Encoder
from gmtool.nn.weights import load_encoder_weights


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("resnet18", output_stride=8)


@pytest.fixture(scope="module")
def official() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = get_model("resnet18", weights=None).state_dict()
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_files_of_both_kinds_are_read(
    tmp_path: Path, encoder: Encoder, official: dict[str, torch.Tensor], suffix: str
) -> None:
    path = tmp_path / f"resnet18{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(official, path)
    line = load_encoder_weights(encoder, "resnet18", str(path))
    assert "100 of 100 tensors loaded" in line
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, official[key]), key


def test_what_is_missing_or_does_not_fit_is_said_in_one_line(
    tmp_path: Path, encoder: Encoder, official: dict[str, torch.Tensor]
) -> None:
    part = {key: value.half() for key, value in official.items() if not key.startswith("layer4")}
    part["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    path = tmp_path / "part.safetensors"
    safetensors.torch.save_file(part, path)
    before = encoder.state_dict()["layer4.0.conv1.weight"].clone()
    line = load_encoder_weights(encoder, "resnet18", str(path))
    assert "74 of 100 tensors loaded; 25 missing (layer4.0.conv1.weight, " in line
    assert "1 of another shape (conv1.weight)" in line
    after = encoder.state_dict()
    assert torch.equal(after["layer4.0.conv1.weight"], before)
    assert torch.equal(after["layer1.0.conv1.weight"], official["layer1.0.conv1.weight"].half().float())


def test_more_than_half_missing_is_an_error(
    tmp_path: Path, encoder: Encoder, official: dict[str, torch.Tensor]
) -> None:
    few = {key: value for key, value in official.items() if key.startswith("layer1")}
    path = tmp_path / "few.safetensors"
    safetensors.torch.save_file(few, path)
    with pytest.raises(CheckpointError, match="more than half do not fit"):
        load_encoder_weights(encoder, "resnet18", str(path))


def test_case_33_a_pickle_payload_is_refused_and_does_not_run(tmp_path: Path, encoder: Encoder) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    torch.save({"conv1.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth: cannot be read"):
        load_encoder_weights(encoder, "resnet18", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_one_line(tmp_path: Path, encoder: Encoder, content: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        load_encoder_weights(encoder, "resnet18", str(path))
    assert "\n" not in str(error.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of downloaded weights of an own torch home."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    return folder


NAME = "resnet18-f37072fd.pth"
"""torchvision's first weights; the name ends in the beginning of the file's sha256."""


def test_a_failed_download_names_the_file_option(
    encoder: Encoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(CheckpointError, match=r"could not be downloaded \(no route\).*--encoder-weights FILE"):
        load_encoder_weights(encoder, "resnet18", "imagenet")


def test_the_downloaded_weights_are_torchvisions_first(
    encoder: Encoder,
    official: dict[str, torch.Tensor],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def download(url: str, target: str, hash_prefix: str, **_: object) -> None:
        asked.append((url.rpartition("/")[2], target, hash_prefix))
        torch.save(official, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(weights_module, "sha256_of_file", lambda _: "f37072fd" + "0" * 56)
    load_encoder_weights(encoder, "resnet18", "imagenet")
    load_encoder_weights(encoder, "resnet18", "imagenet")
    assert asked == [(NAME, str(cache / NAME), "f37072fd")]  # once: then it is in the cache
    assert torch.equal(encoder.conv1.weight, official["conv1.weight"])
    assert capsys.readouterr().out == ""


def test_case_45_a_cached_file_with_another_hash_is_refused(
    encoder: Encoder, official: dict[str, torch.Tensor], cache: Path
) -> None:
    torch.save(official, cache / NAME)
    with pytest.raises(CheckpointError, match=rf"{NAME}: its sha256 does not begin with f37072fd.*delete it"):
        load_encoder_weights(encoder, "resnet18", "imagenet")


@pytest.mark.parametrize("hash_fits", [True, False])
def test_case_45_a_pickle_in_the_cache_does_not_run(
    encoder: Encoder, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_fits: bool
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "ran"),)

    torch.save({"conv1.weight": Payload()}, cache / NAME)
    if hash_fits:  # as if somebody had found a file that hashes so
        monkeypatch.setattr(weights_module, "sha256_of_file", lambda _: "f37072fd" + "0" * 56)
    with pytest.raises(CheckpointError, match=r"cannot be read" if hash_fits else "sha256"):
        load_encoder_weights(encoder, "resnet18", "imagenet")
    assert not (tmp_path / "ran").exists()


def test_none_keeps_the_random_start_and_toy_has_no_weights(encoder: Encoder) -> None:
    before = encoder.conv1.weight.clone()
    assert "random weights" in load_encoder_weights(encoder, "resnet18", "none")
    assert torch.equal(encoder.conv1.weight, before)
    with pytest.raises(CheckpointError, match="encoder toy has no ImageNet weights"):
        load_encoder_weights(Encoder("toy", output_stride=8), "toy", "imagenet")


def test_the_encoder_of_a_trained_run_starts_another_one(toy_run: Path) -> None:
    """Fine-tuning on other classes: the decoder's tensors are left out."""
    torch.manual_seed(1)
    encoder = Encoder("toy", output_stride=8)
    path = next((toy_run / "checkpoints").glob("weights-*.safetensors"))
    assert "missing" not in load_encoder_weights(encoder, "toy", str(path))
    saved = safetensors.torch.load_file(path)
    for name, value in encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, saved[f"encoder.{name}"]), name


@pytest.mark.parametrize("name", [".", "checkpoints/best.json"])
def test_a_run_folder_gives_the_weights_of_its_best_checkpoint(toy_run: Path, name: str) -> None:
    encoder = Encoder("toy", output_stride=8)
    assert "60 of 60 tensors loaded" in load_encoder_weights(encoder, "toy", str(toy_run / name))
    best = read_checkpoint(toy_run, "best").weights
    saved = safetensors.torch.load_file(toy_run / "checkpoints" / best)
    assert torch.equal(encoder.state_dict()["conv1.weight"], saved["encoder.conv1.weight"])


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda state: {"state_dict": state, "meta": {"epoch": 1}}, ""),
        (
            lambda state: {"model": {f"backbone.{k}": v for k, v in state.items()}, "args": Namespace(lr=1)},
            "backbone.",
        ),
        (
            lambda state: {"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}, "epoch": 200},
            "module.encoder_q.",
        ),
        (
            lambda state: {f"backbone.{k}": v for k, v in state.items()} | {"head.weight": torch.zeros(2)},
            "backbone.",
        ),
    ],
)
def test_what_training_programs_wrap_around_weights_is_taken_off(tmp_path: Path, wrap: Any, prefix: str) -> None:
    torch.manual_seed(5)
    state = Encoder("toy", output_stride=8).state_dict()
    torch.save(wrap(state), tmp_path / "weights.pth")
    encoder = Encoder("toy", output_stride=8)
    line = load_encoder_weights(encoder, "toy", str(tmp_path / "weights.pth"))
    assert line.endswith(": 60 of 60 tensors loaded") and (f"({prefix}*)" in line) == bool(prefix)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in state.items())


def test_what_is_no_state_dict_is_one_line_that_says_what_was_found(tmp_path: Path) -> None:
    for content, expected in (
        ({"optimizer": {}, "meta": {}}, "got a dict of optimizer, meta: save the state dict alone"),
        ({"model": {}, "args": Path("x")}, "save its state dict alone with torch.save"),
    ):
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(CheckpointError, match=f"{expected}$") as raised:
            load_encoder_weights(Encoder("toy", output_stride=8), "toy", str(tmp_path / "weights.pth"))
        assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)
