"""`gmtool doctor --deep`: a check that crashes, hangs or fails is one line, and the checks can fail."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from fakes import FakeBackend
from gmtool_serving.backends import opening
from gmtool_serving.backends.base import Prediction
from torch import Tensor

from gmtool.doctor import facts as collecting
from gmtool.doctor.deep import child, numbers, onnx_models
from gmtool.doctor.deep import run as running
from gmtool.doctor.deep.child import make_check
from gmtool.doctor.deep.result import CheckFailedError, DeepFinding, LeftOutError, Setting
from gmtool.doctor.deep.run import CARD, CHECKS, MODEL, Check, run_check, run_checks
from gmtool.images import UInt8Array
from gmtool.nn import mitrans
from gmtool.nn.mitrans import NonLocal

ROOT = Path(__file__).parents[2]
OK = DeepFinding("speed", "ok", "decode 12, model 3; model limits", 1.5, "copy: no card", {"model": 3.0})
FAILED = DeepFinding("two ranks", "failed", "no answer within 180 s", 180.0, log=("rank 1", "waits"))


def test_every_check_is_a_test_on_a_card_too() -> None:
    files = "\n".join(path.read_text() for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    asked = {check.name for check in CHECKS if f'on_card("{check.name}")' in files}
    variants = {check.name for check in CHECKS if check.variant is not None}
    assert asked | variants == {check.name for check in CHECKS}
    assert all(f'"{check.variant}"' in files for check in CHECKS if check.variant is not None)


def test_a_check_left_out_says_why(tmp_path: Path) -> None:
    (found,) = run_checks(tmp_path, [check for check in CHECKS if check.module == "waits"])
    assert (found.state, found.text) == ("left out", "no card: on a processor nothing waits")


def test_a_check_that_hangs_ends_with_its_children_at_the_limit(tmp_path: Path) -> None:
    found = run_check(replace(CARD, limit_s=0.05), Setting(tmp_path, "cpu"))
    assert (found.state, found.text) == ("failed", "no answer within 0.05 s")


def test_a_check_that_crashes_is_a_failed_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(command: list[str], **how: object) -> object:
        program = "import os, sys; print('loading', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"
        return popen([command[0], "-c", program], **how)

    popen: Any = subprocess.Popen
    monkeypatch.setattr(running, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": crash}))
    found = run_check(CARD, Setting(tmp_path, "cpu"))
    assert (found.state, found.text, found.log) == ("failed", "crashed (SIGSEGV): loading", ("loading",))


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (CheckFailedError("labels differ"), "failed", "labels differ"),
        (RuntimeError("CUDA error:\n an illegal access"), "failed", "RuntimeError: CUDA error: an illegal access"),
        (LeftOutError("no card"), "left out", "no card"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "left out", "torch is not installed"),
    ],
)
def test_how_a_check_ends(
    error: Exception, state: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(setting: Setting) -> None:
        raise error

    monkeypatch.setattr(child, "import_module", lambda _: SimpleNamespace(check=check))
    found = make_check(CARD, Setting(tmp_path, "cpu"))
    assert (found["state"], found["text"]) == (state, text)


def test_the_first_check_tells_the_device_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    def take(check: Check, setting: Setting, stopped: Event, threads: int | None) -> DeepFinding:
        places.append((check.name, setting.place, setting.cards))
        state = "failed" if check is MODEL else "ok"
        return DeepFinding(check.name, state, "", 0.0, figures={"cards": 2} if check is CARD else {})  # type: ignore[arg-type]

    monkeypatch.setattr(running, "run_check", take)
    found = {each.check: each for each in run_checks(tmp_path, lanes=1)}
    assert places[:2] == [("driver and card", "cpu", 0), ("toy model", "cuda", 2)]
    assert len(found) == len(CHECKS)
    assert found["speed"].state == "left out", "without the toy model"
    assert "needs the toy model" in found["speed"].text


def test_checks_run_beside_each_other_but_not_beside_those_that_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running_now: set[Check] = set()
    beside: dict[str, set[str]] = {}
    two = Barrier(2)

    def take(check: Check, setting: Setting, stopped: Event, threads: int | None) -> DeepFinding:
        running_now.add(check)
        if check is MODEL or check.module == "attention":
            two.wait(timeout=20)  # neither ends before the other has begun
        if check.needs_model:
            assert MODEL not in running_now, "the model is made before"
        beside[check.name] = {other.name for other in list(running_now) if other is not check}
        running_now.remove(check)
        return DeepFinding(check.name, "ok", "", 0.0)

    monkeypatch.setattr(running, "run_check", take)
    assert len(list(run_checks(tmp_path, lanes=4))) == len(CHECKS)
    assert all(not beside[check.name] for check in CHECKS if check.alone)
    assert [check.name for check in CHECKS if check.alone] == ["out of memory", "speed"]


@pytest.mark.parametrize(("card", "at_once"), [({}, 4), ({"exclusive": True}, 1), ({"memory_bytes": 8 << 30}, 2)])
def test_a_card_takes_as_many_checks_as_it_can(
    card: dict[str, object], at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = []

    def take(checks: list[Check], setting: Setting, together: int) -> Iterator[tuple[Check, DeepFinding]]:
        lanes.append((setting.place, together))
        figures = {"cards": 1, "gpus": [{"memory_bytes": 80 << 30, **card}]}
        for check in checks:
            yield check, DeepFinding(check.name, "ok", "", 0.0, figures=figures if check is CARD else {})

    monkeypatch.setattr(running, "_run_together", take)
    assert len(list(run_checks(tmp_path, lanes=4))) == len(CHECKS)
    assert max(together for place, together in lanes if place == "cuda") == at_once


def test_a_run_that_is_stopped_ends_its_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C closes the iterator while others still run; their processes end, and those that wait never start."""
    started: list[Any] = []

    def sleep(command: list[str], **how: object) -> object:
        seconds = 0 if command[3] == "efficient attention" else 60
        started.append(popen([command[0], "-c", f"import time; time.sleep({seconds})"], **how))
        return started[-1]

    popen: Any = subprocess.Popen
    monkeypatch.setattr(running, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": sleep}))
    checks = [check for check in CHECKS if check.module in ("attention", "numbers", "ranks", "toy_model")]
    found = run_checks(tmp_path, checks, lanes=3)
    assert next(found).check == "efficient attention"
    found.close()
    assert 3 <= len(started) <= len(checks)
    assert all(process.poll() is not None for process in started)


@pytest.mark.parametrize(("last", "code"), [(OK, 0), (FAILED, 1)])
def test_a_failed_check_ends_with_1_and_shows_its_log(
    last: DeepFinding, code: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks(folder: Path) -> Iterator[DeepFinding]:
        assert folder.is_dir()
        yield from (OK, last)

    monkeypatch.setattr(collecting, "collect_facts", SimpleNamespace)
    from gmtool.doctor import diagnosis

    monkeypatch.setattr(diagnosis, "diagnose", lambda _: [])
    monkeypatch.setattr(running, "run_checks", checks)
    found, out, err = cli(["doctor", "--deep"])
    assert found == code
    assert "left out: copy: no card" in out
    counts = f"{2 - code} ok, {2 - code} of them in part, {code} failed, 0 left out"
    assert out.rstrip().endswith(f"{counts}; 0 s"), "seconds of the whole: checks run at the same time"
    assert ("rank 1" in err) == bool(code)


def test_numbers_of_other_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seeds = numbers._network, iter(range(9))

    def other(encoder: str) -> object:
        network = whole(encoder)
        with torch.no_grad():
            network.classifier.weight.mul_(1 + 0.01 * next(seeds))
        return network

    monkeypatch.setattr(numbers, "_network", other)
    with pytest.raises(CheckFailedError, match="scores differ by"):
        numbers.check(Setting(tmp_path, "cpu"))


def test_attention_with_its_matrix_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gmtool.doctor.deep import attention

    def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        matrix = torch.softmax(query @ key.transpose(1, 2) * query.shape[-1] ** -0.5, dim=-1)
        sizes.append(matrix.nbytes)
        return matrix @ value

    sizes: list[int] = []
    monkeypatch.setattr(mitrans, "_attend", written_out)
    monkeypatch.setattr(attention, "SIDE", 32)
    monkeypatch.setattr(attention, "CHANNELS", 16)
    monkeypatch.setattr(attention, "LIMIT_BYTES", 32**4 * 2)
    monkeypatch.setattr(attention, "_memory", lambda device, start=False: 0 if start else max(sizes))
    with pytest.raises(CheckFailedError, match="forward_bytes: 4 MiB: the matrix of 1024 positions"):
        attention.check(Setting(tmp_path, "cpu"))
    assert NonLocal(16).materialize is False


def test_labels_of_another_model_are_found(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(toy_data)
    opened: list[Path] = []

    class Other(FakeBackend):
        def predict(self, images: UInt8Array) -> Prediction:
            return super().predict(255 - images)

    def open_fake(path: Path, *, device: str) -> FakeBackend:
        opened.append(path)
        return Other() if len(opened) == 3 else FakeBackend()

    monkeypatch.setattr(opening, "open_backend", open_fake)
    with pytest.raises(CheckFailedError, match=r"fp16 on cpu: .*% of the labels of fp32 on the processor"):
        onnx_models.check(Setting(tmp_path, "cpu"))
    assert [path.name for path in opened] == ["model_fp32.onnx", "model_fp32.onnx", "model_fp16.onnx"]


def test_convolutions_on_the_processor_are_found(toy_model: Path, tmp_path: Path) -> None:
    """Without a card ONNX Runtime falls back to the processor for all of them."""
    images = np.zeros((1, 32, 32, 3), np.uint8)
    with pytest.raises(CheckFailedError, match=r"fp32: (\d+) of \1 convolutions ran on the processor"):
        onnx_models._refuse_convolutions_on_the_processor(toy_model, "fp32", images, tmp_path)


def test_json_has_every_check(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_doctor import NO_GPU  # type: ignore[import-not-found]

    monkeypatch.setattr(collecting, "collect_facts", lambda: NO_GPU)
    monkeypatch.setattr(running, "run_checks", lambda folder: iter([OK, FAILED]))
    code, out, err = cli(["doctor", "--deep", "--json"])
    assert code == 1
    assert [check["state"] for check in json.loads(out)["deep"]] == ["ok", "failed"]
    assert "2/15 two ranks: failed" in err
