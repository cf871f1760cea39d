"""What a run takes from the machine unless its settings name it."""

import pytest
import torch
from gmtool_training.engine.machine import Machine
from gmtool_training.loop import prepare
from gmtool_training.loop.prepare import checked_data, on_this_machine

from gmtool.classes import load_classes
from gmtool.config import DeviceName, PrecisionName
from gmtool.settings import Settings, build_config


def test_images_are_decoded_in_as_many_processes_as_there_is_memory_for(
    toy_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "decoding_processes", lambda: 3)
    asked = build_config({**toy_settings, "data.workers": 5})
    assert on_this_machine(asked)[1].data.workers == 5
    left_open = build_config({name: value for name, value in toy_settings.items() if name != "data.workers"})
    assert left_open.data.workers is None and on_this_machine(left_open)[1].data.workers == 3


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        (("cuda", "bf16-mixed"), None, True),
        (("cuda", "32-true"), None, False),
        (("cpu", "bf16-mixed"), None, False),
        (("cuda", "bf16-mixed"), False, False),
        (("cpu", "32-true"), True, True),
    ],
)
def test_memory_format_follows_the_device(
    found: tuple[DeviceName, PrecisionName],
    asked: bool | None,
    expected: bool,
    toy_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensor cores read channels last; its value is saved, so that a resumed run has it too."""
    machine = Machine(torch.device("cpu"), found[1])
    monkeypatch.setattr(prepare, "open_machine", lambda device, precision: (machine, *found))
    config = build_config(toy_settings, {"run.channels_last": asked})
    assert on_this_machine(config)[1].run.channels_last is expected


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"method.omega_max": 30.0}, True),
        ({"method.omega_max": 3.0}, False),
        ({"method.omega_max": 30.0, "method.name": "supervised"}, False),
    ],
)
def test_the_papers_unlabeled_weight_on_few_labels_is_warned_of(
    changes: Settings, warned: bool, toy_settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 44 labels 8000 steps ended at 10.7 %, after 35.9 % at 2000."""
    config = build_config(toy_settings, changes)
    checked_data(config, load_classes(config.data.classes), check=False)
    assert ("warning: an unlabeled weight of 30" in capsys.readouterr().err) is warned
