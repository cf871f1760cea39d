import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gmtool.classes import load_classes
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError
from gmtool.files import sha256_of_file
from gmtool.nn.checkpoint import CheckpointName, build_network, load_network, save_checkpoint

MODEL = ModelConfig(encoder="toy", decoder_channels=16)
CLASSES = load_classes("voc")


def save(run_dir: Path, names: list[CheckpointName], iteration: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(iteration)
    network = build_network(MODEL, CLASSES)
    save_checkpoint(run_dir, names, network, iteration=iteration, miou=0.5, model=MODEL, classes=CLASSES)
    return network.state_dict()


def weights_of(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("*.safetensors"))


def test_best_and_last_come_back_bit_for_bit_and_others_are_deleted(tmp_path: Path) -> None:
    first = save(tmp_path, ["last", "best"], 1)
    save(tmp_path, ["last"], 2)
    third = save(tmp_path, ["last"], 3)
    assert weights_of(tmp_path) == ["weights-000001.safetensors", "weights-000003.safetensors"]
    for name, expected in (("best", first), ("last", third)):
        network, checkpoint = load_network(tmp_path, name)  # type: ignore[arg-type]
        assert not network.training
        assert checkpoint.classes == CLASSES
        for key, value in network.state_dict().items():
            assert torch.equal(value, expected[key])


def rewrite(run_dir: Path, change: dict[str, torch.Tensor], drop: str = "") -> None:
    """Change saved weights and make their hash right again."""
    path = run_dir / "checkpoints" / "weights-000001.safetensors"
    state = {key: value for key, value in safetensors.torch.load_file(path).items() if key != drop}
    safetensors.torch.save_file(state | change, path)
    description = run_dir / "checkpoints" / "last.json"
    value = json.loads(description.read_text()) | {"sha256": sha256_of_file(path)}
    description.write_text(json.dumps(value))


def test_case_29_a_flipped_bit_is_found_by_the_hash(tmp_path: Path) -> None:
    save(tmp_path, ["last"], 1)
    path = tmp_path / "checkpoints" / "weights-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its sha256"):
        load_network(tmp_path, "last")


def test_case_34_wrong_weights_are_one_typed_line(tmp_path: Path) -> None:
    for name, change, drop, expected in (
        ("shape", {"classifier.weight": torch.zeros(5, 2, 1, 1)}, "", "does not fit"),
        ("missing", {}, "classifier.weight", "does not fit"),
        ("nan", {"classifier.bias": torch.full((21,), float("nan"))}, "", "classifier.bias has values that"),
    ):
        run_dir = tmp_path / name
        run_dir.mkdir()
        save(run_dir, ["last"], 1)
        rewrite(run_dir, change, drop)
        with pytest.raises(CheckpointError, match=expected) as error:
            load_network(run_dir, "last")
        assert "\n" not in str(error.value)


def test_a_damaged_or_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a trained run"):
        load_network(tmp_path, "best")
    save(tmp_path, ["last"], 1)
    description = tmp_path / "checkpoints" / "last.json"
    whole = description.read_text()
    for text in (whole[:50], "[]", whole.replace('"toy"', '"resnet7"'), whole.replace("format_version", "x")):
        description.write_text(text)
        with pytest.raises(CheckpointError, match=r"last\.json: damaged"):
            load_network(tmp_path, "last")
    description.write_text(whole.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(CheckpointError, match="another version"):
        load_network(tmp_path, "last")


def test_a_save_that_cannot_finish_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = save(tmp_path, ["last"], 1)
    real_replace, calls = Path.replace, []

    def fails_second(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:  # the weights are in place, the JSON is not
            raise OSError(28, "No space left on device")
        return real_replace(self, target)

    monkeypatch.setattr(Path, "replace", fails_second)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, ["last"], 2)
    monkeypatch.undo()
    network, _ = load_network(tmp_path, "last")
    for key, value in network.state_dict().items():
        assert torch.equal(value, expected[key])
