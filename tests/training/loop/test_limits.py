"""What a run does where an image, a decoding process or memory fails it."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from gmtool_training.data.batches import unlabeled_batches
from gmtool_training.data.cache import open_readers
from gmtool_training.data.workers import explained_worker_failures
from gmtool_training.engine import validation_memory
from gmtool_training.engine.validation_memory import attention_bytes
from gmtool_training.loop.fit import fit as real_fit
from gmtool_training.loop.run import train
from PIL import Image

from gmtool.classes import load_classes
from gmtool.config import DataConfig, ModelConfig, TrainConfig
from gmtool.data.datasets import load_training_data
from gmtool.errors import DataError, GmtoolError
from gmtool.nn.mitrans import NonLocal
from gmtool.nn.model import GuidedMixNet
from gmtool.resources import available_memory
from gmtool.settings import Settings, build_config, dump_config

SHORT: Settings = {"optim.iterations": 4, "run.validations": 1, "method.warmup_fraction": 0.0}


@pytest.fixture
def own_data(toy_settings: Settings, tmp_path: Path) -> TrainConfig:
    """A short run on a data set that may be changed."""
    root = tmp_path / "data"
    shutil.copytree(str(toy_settings["data.root"]), root)
    own = {"data.root": root, "data.labeled": root / "splits/labeled.txt"}
    return build_config(toy_settings, SHORT, own, {"data.classes": str(root / "classes.json")})


def cut_short(config: TrainConfig, count: int = 1) -> list[str]:
    """Cut unlabeled images short and return their ids."""
    broken = load_training_data(config.data).unlabeled.samples[3 : 3 + count]
    for sample in broken:
        sample.image_path.write_bytes(sample.image_path.read_bytes()[:200])
    return [sample.id for sample in broken]


def batches(config: DataConfig, *, start: int = 0, cached: bool = False) -> list[torch.Tensor]:
    data = load_training_data(config)
    read = None
    if cached:
        settings = build_config(
            {f"data.{name}": value for name, value in vars(config).items()}, {"data.cache": "ram"}
        )
        read = open_readers(data, load_classes(config.classes), settings.data).unlabeled
    loaded = unlabeled_batches(data.unlabeled.samples, config, seed=0, pin_memory=False, start=start, read=read)
    return [batch.images for batch in islice(loaded, 8 - start)]


def test_an_unreadable_unlabeled_image_is_skipped_named_and_counted(
    own_data: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = cut_short(own_data, count=5)
    train(own_data, tmp_path / "run")
    err = capsys.readouterr().err
    named = [line for line in err.splitlines() if line.startswith("warning: unlabeled image skipped: ")]
    assert len(named) == 3
    assert all(any(f"{id_}.jpg: damaged image" in line for id_ in broken) for line in named)
    total = [line for line in err.splitlines() if "unlabeled images could not be read and were skipped" in line]
    assert total == [
        "warning: 5 of 12 unlabeled images could not be read and were skipped: "
        f"{', '.join(broken[:3])}, ...: gmtool data check names all"
    ]


def test_what_comes_in_its_place_is_the_same_for_any_reader_and_after_a_resume(own_data: TrainConfig) -> None:
    whole = batches(own_data.data)
    cut_short(own_data)
    first = batches(own_data.data)
    assert any(not torch.equal(before, after) for before, after in zip(whole, first, strict=True))
    for again in (batches(own_data.data), [*first[:3], *batches(own_data.data, start=3)]):
        assert all(torch.equal(before, after) for before, after in zip(first, again, strict=True))
    cached = batches(own_data.data, cached=True)
    assert all(torch.equal(before, after) for before, after in zip(first, cached, strict=True))


def test_unlabeled_images_of_which_none_can_be_read_end_the_run(own_data: TrainConfig, tmp_path: Path) -> None:
    cut_short(own_data, count=9)
    for sample in load_training_data(own_data.data).unlabeled.samples:
        sample.image_path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 12 unlabeled images can be read: [^\n]*$"):
        train(own_data, tmp_path / "run")


def test_an_unreadable_labeled_image_still_ends_the_run(own_data: TrainConfig, tmp_path: Path) -> None:
    labeled = load_training_data(own_data.data).labeled.samples[0].image_path
    labeled.write_bytes(labeled.read_bytes()[:-300])
    with pytest.raises(DataError, match=labeled.name):
        train(own_data, tmp_path / "run")


KILLING = """
import os, signal, sys
import torch
from gmtool_training.loop import run as run_module
from gmtool.cli import app

real = run_module.unlabeled_batches

def killing(*arguments, **keywords):
    loaded = real(*arguments, **keywords)
    yield next(loaded)
    for child in torch.multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    yield from loaded

run_module.unlabeled_batches = killing
app.run()
"""
"""A program of its own: torch's handler of SIGCHLD raises in whatever the main thread does next."""


def test_a_killed_decoding_process_is_one_line(own_data: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(dump_config(own_data))
    arguments = ["--config", tmp_path / "config.toml", "--set", "data.workers=1", "--iterations", "60"]
    done = subprocess.run(
        [sys.executable, "-c", KILLING, "train", "voc", *map(str, arguments), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: a process that decodes images was killed or crashed, most often for lack of memory: take fewer "
        "(--set data.workers=2), or decode in the training process (--set data.workers=0)"
    ), "it is killed at its first batch: nothing was saved that could be resumed"


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that workers are out",
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: unable to write to file </torch_7_1_0>: No space left on device (28)",
    ],
)
def test_full_shared_memory_is_one_line_with_its_remedy(message: str, tmp_path: Path) -> None:
    line = r"^[^\n]*shared memory [^\n]*--shm-size[^\n]*workers=0\)"
    with pytest.raises(GmtoolError, match=f"{line}$"), explained_worker_failures(tmp_path):
        raise RuntimeError(message)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.json").touch()
    resume = f"; gmtool train --resume {tmp_path} goes on from the last checkpoint"
    with pytest.raises(GmtoolError, match=f"{line}{resume}"), explained_worker_failures(tmp_path):
        raise RuntimeError(message)


def test_a_bug_is_not_taken_for_a_failed_process(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape") as raised, explained_worker_failures(tmp_path):
        raise RuntimeError("mat1 and mat2: shape")
    assert type(raised.value) is RuntimeError


def test_a_validation_image_that_does_not_fit_is_refused_before_the_first_step(
    own_data: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 megapixels, as a phone takes them, are 93 750 positions."""
    image = load_training_data(own_data.data).val.samples[2].image_path
    Image.new("RGB", (3000, 2000)).save(image)
    Image.new("L", (3000, 2000)).save(own_data.data.root / f"SegmentationClass/{image.stem}.png")
    monkeypatch.setattr(validation_memory, "available_memory", lambda: 16 * 2**30)
    expected = rf"{image.name} is 3000x2000: attention over it needs 65\.5 GiB of memory, 16 GiB are free: .*tiles"
    with pytest.raises(DataError, match=expected) as raised:
        train(own_data, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_what_attention_needs_is_what_it_takes() -> None:
    def needed(**changes: Any) -> int:
        model = ModelConfig(encoder="toy", decoder_channels=16, **changes)
        attention = GuidedMixNet(model, num_classes=2, num_foreground=1).attention
        return attention_bytes(160, 240, attention, half=False)

    scores = torch.zeros(1, 20 * 30, 20 * 30)
    assert needed() == 2 * scores.numel() * scores.element_size()
    assert needed(output_stride=16) * 16 == needed()
    assert needed(non_local_1=False) == 0
    assert needed(non_local_2=True) > 15 * needed()


def test_memory_that_runs_out_in_validation_is_one_line(
    own_data: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = NonLocal.forward

    def forward(self: NonLocal, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 35156250000 bytes")
        return real(self, x)

    monkeypatch.setattr(NonLocal, "forward", forward)
    with pytest.raises(DataError, match=r"^a validation image of 64x48 does not fit into memory: [^\n]*$"):
        train(own_data, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert events


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_available_memory_heeds_the_limit_of_the_process() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (2**33, hard))
        assert available_memory() <= 2**33
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_processes_that_decode_end_with_the_training(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something holds its parts in a cycle: the collector would wait 5 s for each process."""
    kept: list[object] = []
    before = {*multiprocessing.active_children()}

    def fit(*arguments: Any, **keywords: Any) -> Any:
        kept.append(keywords)
        return real_fit(*arguments, **keywords)

    monkeypatch.setattr("gmtool_training.loop.run.fit", fit)
    train(build_config(toy_settings, {"data.workers": 1, "optim.iterations": 2}), tmp_path / "run")
    assert kept and {*multiprocessing.active_children()} <= before
