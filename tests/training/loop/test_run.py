import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gmtool_training.loop.run import train
from gmtool_training.loop.schedule import FitSchedule
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gmtool.config import TrainConfig
from gmtool.data.datasets import load_training_data
from gmtool.errors import BackendError, CheckpointError, ConfigError, DataError, GmtoolError
from gmtool.nn.checkpoint import load_network
from gmtool.settings import Settings, build_config, load_config


def events(run_dir: Path, kind: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_run_leaves_everything_that_it_promises(toy_run: Path) -> None:
    names = {path.name for path in toy_run.iterdir()}
    assert names >= {"config.toml", "metrics.jsonl", "tensorboard", "checkpoints", "report.json", "report.md"}
    for picture in ("training.png", "pairs.png"):
        assert min(Image.open(toy_run / picture).size) > 300
    train_events, val_events = events(toy_run, "train"), events(toy_run, "val")
    assert [event["iteration"] for event in train_events] == [1, 10, 20, 30, 40, 50, 60]
    assert [event["iteration"] for event in val_events] == [30, 60]
    assert {"loss", "ce", "cla", "dec", "usup", "omega", "lr", "images_per_s"} <= set(train_events[0])
    report = json.loads((toy_run / "report.json").read_text())
    assert report["miou"] == pytest.approx(val_events[-1]["miou"])
    assert report["num_images"] == 4
    best = max(val_events, key=lambda event: event["miou"])
    assert report["best"] == {"miou": best["miou"], "iteration": best["iteration"], "images": None}
    labeled = load_training_data(load_config(toy_run / "config.toml").data).labeled
    assert report["provenance"]["labeled_sha256"] == labeled.sha256
    assert labeled.sha256 in (toy_run / "report.md").read_text()


def test_the_loss_falls(toy_run: Path) -> None:
    ce = [event["ce"] for event in events(toy_run, "train")]
    assert ce[-1] < 0.8 * ce[0]


def test_tensorboard_gets_the_same_figures(toy_run: Path) -> None:
    board = EventAccumulator(str(toy_run / "tensorboard"))
    board.Reload()
    for name in ("ce", "usup", "omega", "lr"):
        scalars = {scalar.step: scalar.value for scalar in board.Scalars(f"train/{name}")}
        expected = {event["iteration"]: event[name] for event in events(toy_run, "train")}
        assert scalars == pytest.approx(expected, rel=1e-5)
    worst = board.Images("worst validation images")
    assert [image.step for image in worst] == [events(toy_run, "val")[-1]["iteration"]]
    assert [image.step for image in board.Images("pseudo masks")] == [image.step for image in worst]
    assert "IoU/disc" in board.Tags()["scalars"]


def test_config_toml_repeats_the_run_bit_for_bit(toy_run: Path, tmp_path: Path) -> None:
    train(load_config(toy_run / "config.toml"), tmp_path / "again")
    first, second = load_network(toy_run, "last")[0], load_network(tmp_path / "again", "last")[0]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_the_learning_rate_follows_the_polynomial_and_heads_their_multiple(toy_run: Path) -> None:
    from gmtool_training.engine.optim import build_optimizer, set_learning_rates

    for event in events(toy_run, "train"):
        assert event["lr"] == pytest.approx(0.02 * (1 - event["iteration"] / 60) ** 0.9, abs=1e-9)
    network, _ = load_network(toy_run, "last")
    config = replace(load_config(toy_run / "config.toml").optim, head_lr_multiplier=10.0)
    optimizer = build_optimizer(network, config)
    encoder, heads = optimizer.param_groups
    assert len(encoder["params"]) == len(list(network.encoder.parameters()))
    assert len(encoder["params"]) + len(heads["params"]) == len(list(network.parameters()))
    set_learning_rates(optimizer, config, 10)
    assert heads["lr"] == pytest.approx(10 * encoder["lr"])


def test_supervised_training_never_reads_an_unlabeled_image(toy_settings: Settings, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(str(toy_settings["data.root"]), root)
    labeled = set((root / "splits/labeled.txt").read_text().split())
    val = set((root / "ImageSets/Segmentation/val.txt").read_text().split())
    for path in (root / "JPEGImages").iterdir():
        if path.stem not in labeled | val:
            path.write_bytes(b"not an image")
    changes = {"data.root": root, "method.name": "supervised", "optim.iterations": 4}
    config = build_config(toy_settings, changes)
    result = train(config, tmp_path / "run")
    assert events(result.run_dir, "train")[-1]["usup"] == 0
    with pytest.raises(DataError, match="not an image"):
        train(build_config(toy_settings, changes, {"method.name": "guidedmix"}), tmp_path / "guided")


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"data.root": "nowhere"}, DataError, "nowhere does not exist"),
        ({"data.classes": "vok"}, DataError, "did you mean voc"),
        ({"data.labeled": None}, ConfigError, "no unlabeled images"),
        ({"model.encoder_weights": "nowhere.pth"}, CheckpointError, "nowhere.pth: no such file"),
        ({"model.encoder_weights": "imagenet"}, CheckpointError, "toy has no ImageNet weights"),
        ({"run.device": "cuda"}, BackendError, "--device cpu"),
        (
            {"probe.encoders": ("toy", "timm:resnet19")},
            ConfigError,
            "timm has no resnet19; did you mean",
        ),
    ],
)
def test_what_is_wrong_before_the_first_step_leaves_nothing_behind(
    toy_settings: Settings, tmp_path: Path, changes: Settings, error: type[GmtoolError], expected: str
) -> None:
    if changes.get("run.device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(error, match=expected) as raised:
        train(build_config(toy_settings, changes), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_mask_out_of_range_stops_before_the_first_step(
    toy_config: TrainConfig, toy_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "classes.json").write_text('{"names": ["background", "disc", "square"]}')
    config = build_config(toy_settings, {"data.classes": str(tmp_path / "classes.json")})
    with pytest.raises(DataError, match=r"has labels? [345, ]+, but the data set has 3 classes.*more such files"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mask_of_another_size_than_its_image_is_named(toy_settings: Settings, tmp_path: Path) -> None:
    from PIL import Image

    root = tmp_path / "data"
    shutil.copytree(str(toy_settings["data.root"]), root)
    Image.new("L", (10, 10)).save(root / "SegmentationClass" / "toy_00002.png")
    with pytest.raises(DataError, match=r"toy_00002\.png is 10x10, but its image is 64x48"):
        train(build_config(toy_settings, {"data.root": root}), tmp_path / "run")


def test_a_used_run_folder_is_refused(toy_config: TrainConfig, toy_run: Path) -> None:
    with pytest.raises(ConfigError, match="exists already and is not empty"):
        train(toy_config, toy_run)


def test_a_loss_that_is_not_finite_stops_the_run(toy_settings: Settings, tmp_path: Path) -> None:
    changes = {"optim.lr": 1e20, "optim.iterations": 8, "run.log_every": 100, "run.validations": 4}
    with pytest.raises(GmtoolError, match="lower optim.lr"):
        train(build_config(toy_settings, changes), tmp_path / "run")
    # Nothing that is not finite was saved on the way
    if (tmp_path / "run/checkpoints/last.json").exists():
        load_network(tmp_path / "run", "last")


@pytest.mark.parametrize(("iterations", "validations"), [(40, 2), (7, 3), (3, 3), (1, 1), (100, 7)])
def test_validations_are_evenly_spaced_and_the_last_follows_the_last_step(
    iterations: int, validations: int
) -> None:
    schedule = FitSchedule(
        iterations=iterations,
        unlabeled_from=0,
        omega_at=lambda _: 0.0,
        seed=0,
        accumulation=1,
        ignore_index=255,
        log_every=10,
        validations=validations,
        save_every=500,
        patience=None,
        max_skipped=10,
        channels_last=False,
    )
    moments = [done for done in range(1, iterations + 1) if schedule.is_validated(done)]
    assert len(moments) == validations
    assert moments[-1] == iterations
    gaps = {after - before for before, after in zip([0, *moments], moments, strict=False)}
    assert max(gaps) - min(gaps) <= 1
