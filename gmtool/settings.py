"""Merge presets, TOML files, `--set` and options into one checked `TrainConfig`; write it as TOML."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w
from pydantic import TypeAdapter, ValidationError

from gmtool.config import TrainConfig
from gmtool.errors import ConfigError, UsageError, did_you_mean
from gmtool.json_toml import parse_toml, read_toml, shown

Settings = Mapping[str, Any]
"""Settings by dotted name: `{"optim.lr": 0.001}`."""
REMOVED: Settings = {
    "method.hardest": 1.0,
    "method.colors": 1.0,
    "method.paste": 0.0,
    "method.renormalize": False,
    "method.confidence_weighting": False,
}
"""Settings that earlier versions wrote, with the value that every run has now."""


def build_config(*layers: Settings) -> TrainConfig:
    """Return the configuration of several layers of settings; later layers override earlier ones.

    Raises:
        ConfigError: Unknown name, wrong type or range of a value, or contradicting settings.
        UsageError: No data set folder.
    """
    tree: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            section, key = _known_name(name)
            _refuse_no_number(name, value)
            tree.setdefault(section, {})[key] = value
    if "root" not in tree.get("data", {}):
        raise UsageError("no data set folder: give --data DIR")
    try:
        config = _validator().validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error
    _check_combinations(config)
    return config


def parse_assignments(assignments: Sequence[str]) -> Settings:
    """Parse `--set` arguments such as `optim.lr=1e-3`; values are TOML or plain text.

    Raises:
        ConfigError: A number beyond 64 bits.
        UsageError: An argument without `=`.
    """
    settings = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: expected name=value, for example optim.lr=1e-3")
        settings[name.strip()] = _toml_value(value.strip(), where=f"--set {name.strip()}")
    return settings


def as_settings(given: Settings | Sequence[str]) -> Settings:
    """Return settings by dotted name; assignments are read as `--set` reads them."""
    return given if isinstance(given, Mapping) else parse_assignments(given)


def load_toml(path: Path) -> Settings:
    """Read settings from a TOML file with one table a section, without those of `REMOVED` that say what there is.

    Raises:
        ConfigError: The file is missing, not TOML, or has a value outside a table.
    """
    settings = {}
    for section, table in read_toml(path, error=ConfigError).items():
        if not isinstance(table, dict):
            raise ConfigError(f"configuration {path}: {section} must be in a table, such as [optim]")
        settings.update({f"{section}.{key}": value for key, value in table.items()})
    kept = {name: value for name, value in settings.items() if name not in REMOVED or value != REMOVED[name]}
    if gone := next((name for name in kept if name in REMOVED), None):
        raise ConfigError(f"configuration {path}: {_gone(gone)}")
    return kept


def load_config(path: Path) -> TrainConfig:
    """Read the `config.toml` of a run folder."""
    return build_config(load_toml(path))


def dump_config(config: TrainConfig) -> str:
    """Return the configuration as TOML, without settings that are None."""
    tree = {
        section: {
            key: str(value) if isinstance(value, Path) else value
            for key, value in table.items()
            if value is not None
        }
        for section, table in asdict(config).items()
    }
    return tomli_w.dumps(tree)


@cache
def _validator() -> TypeAdapter[TrainConfig]:
    return TypeAdapter(TrainConfig)


@cache
def _types() -> Mapping[str, Any]:
    """Return the type of each setting by dotted name."""
    sections = {name: hint for name, hint in get_type_hints(TrainConfig).items() if is_dataclass(hint)}
    hints = {name: get_type_hints(section) for name, section in sections.items()}
    return {
        f"{name}.{item.name}": hints[name][item.name]
        for name, section in sections.items()
        for item in fields(section)
    }


def _known_name(name: str) -> tuple[str, str]:
    if name in REMOVED:
        raise ConfigError(_gone(name))
    known = list(_types())
    section, _, key = name.partition(".")
    if name not in known:
        same_key = [other for other in known if other.endswith(f".{key or name}")]
        keys = [other.partition(".")[2] for other in known if other.startswith(f"{section}.")]
        close = same_key or [f"{section}.{other}" for other in get_close_matches(key, keys, n=1, cutoff=0.5)]
        hint = f"; did you mean {close[0]}?" if close else did_you_mean(key or name, keys or known)
        raise ConfigError(f"unknown setting {name}{hint}")
    return section, key


def _gone(name: str) -> str:
    return f"setting {name} is gone, since it did not help (docs/results-history.md): leave it out"


def _refuse_no_number(name: str, value: Any) -> None:
    """Raise `ConfigError` for `true` and infinity, which pydantic accepts as numbers."""
    is_flag = _types()[name] in (bool, bool | None)
    if (isinstance(value, bool) and not is_flag) or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"setting {name}: got {shown(value)}; expected a finite number or text")


def _toml_value(text: str, *, where: str) -> Any:
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError):
        pass  # parse_toml raises the error
    return parse_toml(f"value = {text}", where=where, error=ConfigError)["value"]


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part != "function-after")
    message = first["msg"].replace("Input should be", "expected")
    return f"setting {name}: got {shown(first['input'])}; {message[0].lower()}{message[1:]}"


def _check_combinations(config: TrainConfig) -> None:
    if config.method.normalize and config.method.decoupling == "hard":
        raise ConfigError(
            "method.normalize=true only applies to method.decoupling=soft: the hard mask does not sum to 1-lambda"
        )
    method = config.method
    if method.teacher == "average" and method.teacher_run is None and not config.optim.ema_decay:
        raise ConfigError("method.teacher=average needs an average of the weights: --set optim.ema_decay=0.996")
    if method.view == "strong" and (method.batch_norm == "joint" or method.detach != "pseudo"):
        raise ConfigError(
            "method.view=strong needs a separate forward pass and a detached pseudo mask: "
            "method.batch_norm=separate, method.detach=pseudo"
        )
    own_teacher = method.teacher == "student" and method.teacher_run is None
    if method.pseudo == "direct" and method.view == "weak" and own_teacher:
        raise ConfigError(
            "method.pseudo=direct would compare a prediction with itself: take method.view=strong or "
            "method.teacher=average"
        )
    if config.data.scale_min > config.data.scale_max:
        raise ConfigError(
            f"data.scale_min {config.data.scale_min} is above data.scale_max {config.data.scale_max}"
        )
