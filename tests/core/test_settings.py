from pathlib import Path

import pytest

from gmtool.config import TrainConfig
from gmtool.errors import ConfigError
from gmtool.settings import build_config, dump_config, load_config, load_toml, parse_assignments


def config(*assignments: str) -> TrainConfig:
    return build_config({"data.root": "data"}, parse_assignments(assignments))


def test_defaults_are_the_papers_voc_recipe() -> None:
    made = config()
    assert (made.data.crop_px, made.data.labeled_batch, made.data.unlabeled_batch) == (321, 6, 6)
    assert (made.optim.iterations, made.optim.lr, made.optim.momentum) == (40_000, 1e-3, 0.9)
    assert (made.optim.weight_decay, made.optim.poly_power) == (1e-4, 0.9)
    assert (made.method.lambda_bound, made.method.pairing, made.method.decoupling) == (0.5, "similar", "soft")


def test_later_layers_win_and_text_is_read_as_toml() -> None:
    made = build_config(
        {"data.root": "data", "optim.lr": 0.5},
        parse_assignments(["optim.lr=1e-3", "method.normalize=true", "model.encoder=resnet18", "data.val=a.txt"]),
        {"optim.iterations": 7},
    )
    assert made.optim.lr == 1e-3
    assert made.method.normalize is True
    assert made.model.encoder == "resnet18"
    assert made.data.val == Path("a.txt")
    assert made.optim.iterations == 7


def test_a_configuration_round_trips_through_its_file(tmp_path: Path) -> None:
    made = config("data.labeled=list.txt", "optim.lr=0.003", "data.flip=false", "model.output_stride=16")
    (tmp_path / "config.toml").write_text(dump_config(made))
    assert load_config(tmp_path / "config.toml") == made


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("optm.lr=1", "unknown setting optm.lr; did you mean optim.lr?"),
        ("lr=1", "unknown setting lr; did you mean optim.lr?"),
        ("optim.speed=1", "unknown setting optim.speed; known: name, iterations, lr, "),
        ("optim.lr", "--set optim.lr: expected name=value"),
        ("optim.lr=fast", "setting optim.lr: got 'fast'"),
        ("optim.lr=-1", "setting optim.lr: got -1"),
        ("model.encoder=resnet19", "setting model.encoder: got 'resnet19'; did you mean resnet18?"),
        ("model.output_stride=4", "setting model.output_stride: got 4; expected 8, 16 or 32"),
        ("method.lambda_bound=0.7", "setting method.lambda_bound: got 0.7"),
        ("data.labeled_batch=1", "setting data.labeled_batch: got 1"),
        ("method.paste=0.5", "setting method.paste is gone, since it did not help"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(assignment)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_removed_setting_is_passed_over_where_a_file_says_what_every_run_does_now(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(dump_config(config()).replace("[method]\n", "[method]\nhardest = 1.0\npaste = 0.0\n"))
    assert load_config(path) == config()
    path.write_text(path.read_text().replace("paste = 0.0", "paste = 0.5"))
    with pytest.raises(ConfigError, match=r"config\.toml: setting method\.paste is gone"):
        load_config(path)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="only applies to method.decoupling=soft"):
        config("method.normalize=true", "method.decoupling=hard")
    with pytest.raises(ConfigError, match="scale_min"):
        config("data.scale_min=3.0")
    with pytest.raises(ConfigError, match="give --data DIR"):
        build_config({})


def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot be read"):
        load_toml(path)
    path.write_text("[optim\n")
    with pytest.raises(ConfigError, match=r"mine\.toml: not TOML"):
        load_toml(path)
    path.write_text("lr = 1\n")
    with pytest.raises(ConfigError, match="must be in a table"):
        load_toml(path)
