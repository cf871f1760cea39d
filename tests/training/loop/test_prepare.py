"""What a run takes from the machine unless its settings name it."""

import pytest
from gmtool_training.loop import prepare
from gmtool_training.loop.prepare import on_this_machine

from gmtool.settings import Settings, build_config


def test_images_are_decoded_in_as_many_processes_as_there_is_memory_for(
    toy_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "decoding_processes", lambda: 3)
    asked = build_config({**toy_settings, "data.workers": 5})
    assert on_this_machine(asked)[1].data.workers == 5
    left_open = build_config({name: value for name, value in toy_settings.items() if name != "data.workers"})
    assert left_open.data.workers is None and on_this_machine(left_open)[1].data.workers == 3
