"""Experiment trackers: what Weights & Biases and MLflow receive, offline and in a local store."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gmtool_training.loop import hooks as hooks_module
from gmtool_training.loop.checks import check_settings
from gmtool_training.loop.run import train
from gmtool_training.watch import open_tracker as tracker_module
from gmtool_training.watch.open_tracker import flat_settings, open_tracker, save_tracker_id
from gmtool_training.watch.tracker import scalars

from gmtool.config import TrainConfig
from gmtool.errors import ConfigError, MissingExtraError, TerminatedError
from gmtool.settings import Settings, build_config

BLOCK = 32768


def wandb_records(path: Path) -> Iterator[Any]:
    """The protocol buffers in an offline run's file, which is a LevelDB log behind 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    content, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            parts = b""
            yield record


def whole_records(path: Path) -> list[Any]:
    """All records of a run that was closed: Weights & Biases' own process may still be writing them."""
    deadline, records = time.monotonic() + 30, list[Any]()
    while time.monotonic() < deadline:
        records = list(wandb_records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            break
        time.sleep(0.05)
    return records


def test_wandb_offline_has_settings_curves_iou_of_classes_and_hashes(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(hooks_module, "_draw", lambda *_: None)
    config = build_config(
        toy_settings,
        {"optim.iterations": 2, "run.validations": 1, "run.log_every": 1, "run.tracker": "wandb"},
    )
    result = train(config, tmp_path / "runs/mine")
    (path,) = (tmp_path / "runs/wandb").glob("offline-run-*/run-*.wandb")
    assert f"wandb sync {path.parent}" in capfd.readouterr().err
    settings: dict[str, object] = {}
    points: dict[str, dict[int, float]] = {}
    summary: dict[str, object] = {}
    for record in whole_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            settings |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
            assert (record.run.project, record.run.display_name) == ("gmtool", "mine")
        elif kind == "history":
            for item in record.history.item:
                name = item.key or item.nested_key[0]
                points.setdefault(name, {})[record.history.step.num] = json.loads(item.value_json)
        elif kind == "summary":
            for item in record.summary.update:
                summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
    assert settings["optim.lr"] == config.optim.lr and settings["model.encoder"] == "toy"
    assert points["train/loss"].keys() == {1, 2}
    assert points["val/miou"][2] == pytest.approx(result.report.miou)
    last = json.loads((tmp_path / "runs/mine/checkpoints/last.json").read_text())
    assert summary["last_weights_sha256"] == last["sha256"]
    assert summary["final/miou"] == pytest.approx(result.report.miou)
    for row in result.report.to_dict()["classes"]:
        if row["iou"] is not None:
            assert summary[f"final/IoU/{row['name']}"] == pytest.approx(row["iou"])
            assert points[f"IoU/{row['name']}"][2] == pytest.approx(row["iou"])


@pytest.fixture
def mlflow_config(toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    return build_config(toy_settings, {"run.tracker": "mlflow"})


def test_mlflow_has_settings_curves_and_texts_and_goes_on_with_a_stopped_run(
    mlflow_config: TrainConfig, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    run_dir = tmp_path / "mine"
    run_dir.mkdir()
    with pytest.raises(TerminatedError), open_tracker(mlflow_config, run_dir, is_first=True) as tracker:
        save_tracker_id(run_dir, mlflow_config, tracker)
        tracker.log(10, scalars("val", {"miou": 0.25, "iou": [0.5, None], "best": None}, ["road (wet)", "car"]))
        raise TerminatedError("stopped by SIGTERM")
    client = MlflowClient()
    run = client.get_run(tracker.id)
    assert (run.info.status, run.info.run_name) == ("KILLED", "mine")
    assert run.data.params == {name: str(value) for name, value in flat_settings(mlflow_config).items()}
    with open_tracker(mlflow_config, run_dir, is_first=True) as again:
        assert again.id == tracker.id
        again.log(20, {"val/miou": 0.5})
        again.summarize({"final/miou": 0.5}, {"last_weights_sha256": "abc"})
    run = client.get_run(tracker.id)
    assert run.info.status == "FINISHED"
    assert [(each.step, each.value) for each in client.get_metric_history(tracker.id, "val/miou")] == [
        (10, 0.25),
        (20, 0.5),
    ]
    assert run.data.metrics == {"val/miou": 0.5, "IoU/road _wet_": 0.5, "final/miou": 0.5}
    assert run.data.tags["last_weights_sha256"] == "abc"


def test_training_goes_on_without_a_server_that_was_lost(
    mlflow_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def fails(*_: object, **__: object) -> None:
        raise MlflowException("no\nanswer")

    with open_tracker(mlflow_config, tmp_path / "mine", is_first=True) as tracker:
        monkeypatch.setattr(MlflowClient, "log_batch", fails)
        for step in range(3):
            tracker.log(step, {"val/miou": 0.5})
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "warning" in line] == ["warning: MLflow is left out from now on: no answer"]


def test_a_server_that_does_not_answer_is_one_line_before_the_run_folder_is_made(
    mlflow_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError) as error:
        train(mlflow_config, tmp_path / "mine")
    assert "run.tracker=mlflow: " in str(error.value) and "MLFLOW_TRACKING_URI" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_is_one_line(toy_settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "find_spec", lambda _: None)
    config = build_config(toy_settings, {"run.tracker": name})
    with pytest.raises(MissingExtraError) as error:
        check_settings(config, makes_data=False)
    expected = f'run.tracker={name} needs {name}, which is not installed: pip install "gmtool[{name}]"'
    assert str(error.value) == expected
    none = replace(config, run=replace(config.run, tracker="none"))
    check_settings(none, makes_data=False)
