"""Peak memory of models on a card, with a stand-in for NVIDIA's driver (tests/stand_in_cuda/memory.c)."""

import ctypes
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeBackend
from gmtool_serving.benchmark import card_memory
from gmtool_serving.benchmark import memory as process_memory
from gmtool_serving.benchmark.card_memory import CardMemory

from gmtool.images import UInt8Array

GIB = 1 << 30
SOURCE = Path(__file__).parents[2] / "stand_in_cuda" / "memory.c"


class Card:
    """The card of the stand-in."""

    def __init__(self, driver: ctypes.CDLL) -> None:
        self.driver = driver
        self._free = ctypes.c_size_t.in_dll(driver, "stand_in_free")

    def take(self, size: int) -> None:
        """Take memory of it, or give it back."""
        self._free.value -= size


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled driver."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler (cc) on Linux")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, SOURCE], check=True)
    return path


@pytest.fixture
def card(library: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card(ctypes.CDLL(str(library)))
    card._free.value = 80 * GIB
    monkeypatch.setattr(card_memory, "load_driver", lambda: card.driver)
    return card


def soon(holds: Callable[[], bool]) -> bool:
    """Wait until the watching thread has looked."""
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.001)
    return holds()


def test_the_largest_growth_counts_though_it_was_given_back(card: Card) -> None:
    card.take(3 * GIB)  # of other processes, before
    watch = CardMemory.open()
    assert watch is not None
    with watch:
        card.take(GIB)
        assert watch.peak_bytes == GIB
        card.take(4 * GIB)
        assert soon(lambda: watch._smallest_free == 72 * GIB)  # seen by the thread
        card.take(-5 * GIB)
    assert watch.peak_bytes == 5 * GIB
    card.take(-GIB)  # another process ended
    assert watch.peak_bytes == 5 * GIB


def test_a_machine_without_a_card_that_works_has_no_watch(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """A driver without a card."""

        def cuInit(self, flags: ctypes.c_uint) -> int:  # noqa: N802
            return 100

    monkeypatch.setattr(card_memory, "load_driver", Broken)
    assert CardMemory.open() is None
    monkeypatch.setattr(card_memory, "load_driver", lambda: None)
    assert CardMemory.open() is None


@pytest.mark.parametrize(("device", "expected"), [("cuda", 2 * GIB), ("cpu", None)])
def test_the_memory_is_that_of_the_device_the_model_computes_on(
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
    expected: int | None,
) -> None:
    taken: list[int] = []

    def allocate(images: UInt8Array) -> None:
        if not taken:
            card.take(2 * GIB)
            taken.append(1)

    class OnCard(FakeBackend):
        pass

    OnCard.device = device  # type: ignore[assignment]
    monkeypatch.setattr(process_memory, "open_backend", lambda path, **_: OnCard(check=allocate))
    process_memory.main(Path("model.plan"), (1, 8, 8), "auto", 1, trust=False)
    printed = int(capsys.readouterr().out)
    if expected is None:
        assert printed < GIB  # the process's, not that which somebody else takes on the card
    else:
        assert printed == expected
