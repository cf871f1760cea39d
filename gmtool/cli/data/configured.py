"""Configuration of a data set that a command names by its folder or kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.api.arguments import given
from gmtool.api.data_set import find_data_set

if TYPE_CHECKING:
    from gmtool.api.data_set import DataSet
    from gmtool.config import TrainConfig


def configured(
    kind: str | None,
    data: Path | None,
    classes: str | None,
    lists: Mapping[str, Path | None],
    assignments: Sequence[str] | None,
    *,
    command: str,
) -> tuple[DataSet, TrainConfig]:
    """Return a data set and its configuration, with the files of a recognised folder that training takes."""
    from gmtool_training.recipes.configure import configure

    data_set = find_data_set(kind, data, command=command)
    named = {"data.root": data_set.root, "data.classes": classes, **lists}
    return data_set, configure(data_set.kind, {**data_set.own_files(), **given(named)}, settings=assignments or [])
