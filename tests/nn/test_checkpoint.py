import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from gmtool.artifact.checkpoints import read_sealed, sealed
from gmtool.classes import load_classes
from gmtool.config import ModelConfig
from gmtool.errors import CheckpointError
from gmtool.files import sha256_of_file
from gmtool.nn.checkpoint import (
    CheckpointName,
    build_network,
    load_network,
    read_checkpoint,
    resumable_names,
)
from gmtool.nn.saving import save_checkpoint

MODEL = ModelConfig(encoder="toy", decoder_channels=16)
CLASSES = load_classes("voc")


def save(
    run_dir: Path, names: list[CheckpointName], iteration: int, *, keep_last: int = 2
) -> dict[str, torch.Tensor]:
    torch.manual_seed(iteration)
    network = build_network(MODEL, CLASSES)
    save_checkpoint(
        run_dir,
        names,
        network,
        iteration=iteration,
        miou=0.5,
        model=MODEL,
        classes=CLASSES,
        keep_last=keep_last,
    )
    return network.state_dict()


def weights_of(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").glob("*.safetensors"))


def test_best_and_last_come_back_bit_for_bit_and_others_are_deleted(tmp_path: Path) -> None:
    first = save(tmp_path, ["last", "best"], 1)
    save(tmp_path, ["last"], 2)
    third = save(tmp_path, ["last"], 3)
    assert [name[:14] for name in weights_of(tmp_path)] == ["weights-000001", "weights-000002", "weights-000003"]
    save(tmp_path, ["last"], 4)
    assert [name[:14] for name in weights_of(tmp_path)] == ["weights-000001", "weights-000003", "weights-000004"]
    for name, expected in (("best", first), ("iteration-000003", third)):
        network, checkpoint = load_network(tmp_path, name)
        assert not network.training
        assert checkpoint.classes == CLASSES
        for key, value in network.state_dict().items():
            assert torch.equal(value, expected[key])


def test_case_32_never_fewer_than_two_to_go_on_from(tmp_path: Path) -> None:
    for iteration in range(1, 7):
        save(tmp_path, ["last"], iteration, keep_last=3)
        names = resumable_names(tmp_path)
        kept = [read_checkpoint(tmp_path, name).iteration for name in names]
        assert kept == list(range(iteration, 0, -1))[:3]
        for name in names:
            load_network(tmp_path, name)
    # Gone back behind a damaged one: what came after it goes, too
    save(tmp_path, ["last"], 5, keep_last=3)
    assert resumable_names(tmp_path) == ["last", "iteration-000004"]
    assert [name[:14] for name in weights_of(tmp_path)] == ["weights-000004", "weights-000005"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    save(tmp_path, ["last"], 1)
    before = (tmp_path / "checkpoints/last.json").read_bytes()
    network = build_network(MODEL, CLASSES)
    torch.nn.init.constant_(network.classifier.weight, float("inf"))
    with pytest.raises(CheckpointError, match=r"classifier\.weight .* not finite after 2 steps; .* lower"):
        save_checkpoint(tmp_path, ["last"], network, iteration=2, miou=None, model=MODEL, classes=CLASSES)
    assert (tmp_path / "checkpoints/last.json").read_bytes() == before
    load_network(tmp_path, "last")


def rewrite(run_dir: Path, change: dict[str, torch.Tensor], drop: str = "") -> None:
    """Change saved weights and make their hash right again."""
    path = run_dir / "checkpoints" / weights_of(run_dir)[0]
    state = {key: value for key, value in safetensors.torch.load_file(path).items() if key != drop}
    safetensors.torch.save_file(state | change, path)
    description = run_dir / "checkpoints" / "last.json"
    description.write_text(sealed(read_sealed(description) | {"sha256": sha256_of_file(path)}))


def test_case_29_a_flipped_bit_is_found_by_the_hash(tmp_path: Path) -> None:
    save(tmp_path, ["last"], 1)
    path = tmp_path / "checkpoints" / weights_of(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its sha256"):
        load_network(tmp_path, "last")


def test_case_34_wrong_weights_are_one_typed_line(tmp_path: Path) -> None:
    for name, change, drop, expected in (
        ("shape", {"decoder.classifier.weight": torch.zeros(5, 2, 1, 1)}, "", "does not fit"),
        ("missing", {}, "decoder.classifier.weight", "does not fit"),
        (
            "nan",
            {"decoder.classifier.bias": torch.full((21,), float("nan"))},
            "",
            "decoder.classifier.bias has values",
        ),
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


@pytest.mark.parametrize(
    "change",
    [
        {"miou": 0.99},
        {"iteration": 7},
        {"labeled_sha256": "0" * 64},
        {"training": {"schedule": {"last_epoch": 3}}},
    ],
)
def test_case_49_a_changed_description_is_found_by_its_seal(tmp_path: Path, change: dict[str, object]) -> None:
    save(tmp_path, ["last"], 1)
    description = tmp_path / "checkpoints" / "last.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | change))
    with pytest.raises(CheckpointError, match=r"last\.json: damaged: its content does not match its desc[^\n]*$"):
        load_network(tmp_path, "last")


def test_case_49_a_changed_description_displaces_no_whole_checkpoint(tmp_path: Path) -> None:
    """Kept as the checkpoint before, it would leave a single whole one."""
    for iteration in (1, 2):
        save(tmp_path, ["last"], iteration)
    description = tmp_path / "checkpoints" / "last.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | {"miou": 0.99}))
    save(tmp_path, ["last"], 3)
    assert [load_network(tmp_path, name)[1].iteration for name in ("last", "iteration-000001")] == [3, 1]


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/hostname", "folder/weights.safetensors"])
def test_case_49_weights_that_do_not_lie_beside_their_description_are_refused(tmp_path: Path, place: str) -> None:
    save(tmp_path, ["last"], 1)
    description = tmp_path / "checkpoints" / "last.json"
    description.write_text(sealed(read_sealed(description) | {"weights": place}))
    with pytest.raises(CheckpointError, match=r"which is not in the same folder[^\n]*$"):
        load_network(tmp_path, "last")


@pytest.mark.parametrize("names", [["last"], ["last", "best"]])
def test_case_27_a_save_that_fails_at_any_operation_leaves_a_checkpoint_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[CheckpointName]
) -> None:
    """A full disk at the n-th sync, rename or deletion, for every n."""
    outcomes = set()
    for fail_at in range(1, 40):
        run_dir = tmp_path / str(fail_at)
        run_dir.mkdir()
        before = save(run_dir, ["last", "best"], 1)
        calls = 0

        def counted(real: Callable[..., object], fail_at: int = fail_at) -> Callable[..., object]:
            def wrapper(*arguments: object, **keywords: object) -> object:
                nonlocal calls
                calls += 1
                if calls == fail_at:
                    raise OSError(28, "No space left on device")
                return real(*arguments, **keywords)

            return wrapper

        monkeypatch.setattr(os, "fsync", counted(os.fsync))
        monkeypatch.setattr(Path, "replace", counted(Path.replace))
        monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            after = save(run_dir, names, 2)
            failed = False
        except OSError:
            torch.manual_seed(2)
            after, failed = build_network(MODEL, CLASSES).state_dict(), True
        monkeypatch.undo()
        for name in ("last", "best"):
            network, checkpoint = load_network(run_dir, name)
            outcomes.add((name, checkpoint.iteration))
            expected = before if checkpoint.iteration == 1 else after
            for key, value in network.state_dict().items():
                assert torch.equal(value, expected[key])
        if not failed:
            break
    assert not failed and fail_at > 4
    assert outcomes >= {("last", 1), ("last", 2), ("best", 1)}
