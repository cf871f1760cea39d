"""Sessions on a card: one for each shape of images, and what happens when its memory runs out."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest
from gmtool_serving.backends.onnx_runtime import CPU, OrtBackend, make_session
from gmtool_serving.backends.session_shapes import MAX_BORROWED, MAX_SESSIONS, SessionShapes, SharedLock

from gmtool.errors import BackendMemoryError
from gmtool.images import UInt8Array


def batch(count: int, height: int = 24, width: int = 32) -> UInt8Array:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def some_sessions() -> tuple[SessionShapes, list[Any]]:
    """Return sessions that are numbers, and the list of those that were made."""
    made: list[Any] = [0]

    def make(count: int) -> Any:
        del count
        made.append(len(made))
        return made[-1]

    return SessionShapes(cast(Any, 0), make), made


def test_each_shape_has_its_session_and_comes_back_to_it() -> None:
    """A session that goes from one shape to another takes seconds for that, and again for the way back."""
    sessions, made = some_sessions()
    shapes = [batch(1), batch(2), batch(2, 32, 24)]
    assert [cast(int, sessions.session_for(each)) for each in [*shapes, *shapes]] == [0, 1, 2, 0, 1, 2]
    assert len(sessions) == len(made) == 3


def test_a_first_batch_is_computed_by_a_session_that_was_made_for_it() -> None:
    sessions, made = some_sessions()
    assert cast(int, sessions.session_for(batch(8))) == 1 and len(made) == 2


def test_the_session_that_was_not_used_for_longest_is_given_up() -> None:
    sessions, made = some_sessions()
    for height in range(1, MAX_SESSIONS + 1):
        sessions.session_for(batch(1, height))
    sessions.session_for(batch(1, 1))  # used again
    sessions.session_for(batch(1, MAX_SESSIONS + 1))
    assert len(sessions) == MAX_SESSIONS and len(made) == MAX_SESSIONS + 1
    sessions.session_for(batch(1, 1))
    assert len(made) == MAX_SESSIONS + 1, "the first one was kept"
    sessions.session_for(batch(1, 2))
    assert len(made) == MAX_SESSIONS + 2


def test_a_batch_that_is_not_full_is_filled_up() -> None:
    sessions, _ = some_sessions()
    sessions.session_for(sessions.filled(batch(8)))
    images = batch(5)
    filled = sessions.filled(images)
    assert len(filled) == 8 and np.array_equal(filled[:5], images) and (filled[5:] == images[-1]).all()
    rows = [len(sessions.filled(batch(n, 32, 24))) for n in (1, 2, 6)]
    assert rows == [1, 8, 8], "a single image of a size that has no session stays alone"


def test_single_images_that_come_again_and_again_get_their_own_session() -> None:
    """A server whose first batch was large does not compute 8 images for every single one after it."""
    sessions, _ = some_sessions()
    sessions.session_for(sessions.filled(batch(8)))
    rows = []
    for _ in range(MAX_BORROWED + 2):
        filled = sessions.filled(batch(1))
        sessions.session_for(filled)
        rows.append(len(filled))
    assert rows == [8] * MAX_BORROWED + [1, 1]


def test_images_that_were_too_many_of_one_size_are_not_too_many_of_another() -> None:
    sessions, _ = some_sessions()
    sessions.filled(batch(8))
    sessions.note_too_many(batch(8, 100, 100))
    assert len(sessions.filled(batch(3, 100, 100))) == 3
    assert len(sessions.filled(batch(3))) == 8


class Card:
    """Stand-in for a card with room for so many sessions, and for so many images in one batch.

    Args:
        refuses_to_make: Whether a session that finds no room cannot be made; else its first batch finds none.
    """

    def __init__(self, model: Path, *, sessions: int, images: int, refuses_to_make: bool = False) -> None:
        self._content, self._room, self._images = model.read_bytes(), sessions, images
        self._refuses_to_make = refuses_to_make
        self._alive: weakref.WeakSet[CardSession] = weakref.WeakSet()
        self.made = 0

    def make(self, count: int) -> Any:
        del count
        if self._refuses_to_make and len(self._alive) >= self._room:
            raise RuntimeError("CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED")
        self.made += 1
        session = CardSession(self, make_session(self._content, "fp32", ort.SessionOptions(), CPU))
        self._alive.add(session)
        return session

    def check(self, images: UInt8Array) -> None:
        """Refuse a batch for which there is no room."""
        if len(images) > self._images or len(self._alive) > self._room:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")

    def backend(self, model: Path) -> OrtBackend:
        """Return a backend that runs as on this card."""
        backend = OrtBackend(model, device="cpu", threads=1)
        backend._sessions = SessionShapes(self.make(1), self.make)
        return backend


class CardSession:
    """A session that takes room on the card as long as anything refers to it."""

    def __init__(self, card: Card, session: ort.InferenceSession) -> None:
        self._card, self._session = card, session

    def io_binding(self) -> Any:
        return CardBinding(self._card, self, self._session.io_binding())

    def run_with_iobinding(self, binding: CardBinding) -> None:
        self._session.run_with_iobinding(binding.real)


class CardBinding:
    """A binding that finds room on the card or not; it refers to its session, as the real one does."""

    def __init__(self, card: Card, session: CardSession, real: Any) -> None:
        self._card, self._session, self.real = card, session, real

    def bind_cpu_input(self, name: str, images: UInt8Array) -> None:
        time.sleep(0.001)  # another lane comes in between
        self._card.check(images)
        self.real.bind_cpu_input(name, images)

    def bind_output(self, name: str, device: str) -> None:
        self.real.bind_output(name, device)

    def copy_outputs_to_cpu(self) -> Any:
        return self.real.copy_outputs_to_cpu()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Memory must be free as soon as it is given up, not when the garbage collector comes by."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("refuses_to_make", [False, True])
def test_sessions_of_other_shapes_make_room_before_a_batch_is_halved(
    toy_model: Path, no_collector: None, refuses_to_make: bool
) -> None:
    plain = OrtBackend(toy_model, device="cpu", threads=1)
    card = Card(toy_model, sessions=2, images=4, refuses_to_make=refuses_to_make)
    backend = card.backend(toy_model)
    for images in (batch(1), batch(1, 32, 24), batch(1, 16, 16)):  # the third one finds no room
        np.testing.assert_array_equal(backend._run_on_card(images)[0], plain.predict(images).mask)
    assert len(backend._sessions) == 1
    np.testing.assert_array_equal(backend._run_on_card(batch(1))[0], plain.predict(batch(1)).mask)
    assert len(backend._sessions) == 2
    # Too many for the card alone: the error reaches the caller, who halves; halves are not filled up again
    with pytest.raises(RuntimeError, match="out of memory"):
        backend._run_on_card(batch(8))
    assert len(backend._run_on_card(batch(4))[0]) == 4


def test_two_lanes_with_room_for_one_session_lose_no_image(toy_model: Path, no_collector: None) -> None:
    """A lane that is out of memory waits for the other one, whose session takes the room."""
    plain = OrtBackend(toy_model, device="cpu", threads=1)
    backend = Card(toy_model, sessions=1, images=4).backend(toy_model)
    images = [batch(1), batch(1, 32, 24)] * 10
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda each: backend._run_on_card(each)[0], images))
    for mask, each in zip(found, images, strict=True):
        np.testing.assert_array_equal(mask, plain.predict(each).mask)


def test_a_model_that_cannot_be_loaded_again_says_why(toy_model: Path) -> None:
    backend = Card(toy_model, sessions=0, images=4, refuses_to_make=False).backend(toy_model)
    backend.device = "cuda"
    with pytest.raises(BackendMemoryError, match="out of memory"):
        backend.predict(batch(1))


def test_the_lock_is_held_together_or_alone() -> None:
    lock, inside, most, clashes = SharedLock(), set[int](), [0], [0]

    def together(number: int) -> None:
        with lock.together():
            inside.add(number)
            most[0] = max(most[0], len(inside))
            time.sleep(0.002)
            inside.remove(number)

    def alone(number: int) -> None:
        with lock.alone():
            clashes[0] += bool(inside)
            inside.add(-1 - number)
            time.sleep(0.002)
            clashes[0] += len(inside) > 1
            inside.remove(-1 - number)

    with ThreadPoolExecutor(8) as pool:
        for number in range(60):
            pool.submit(alone if number % 5 == 0 else together, number)
    assert most[0] > 1 and clashes[0] == 0 and not inside
