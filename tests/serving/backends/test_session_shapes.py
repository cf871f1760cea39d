"""Sessions on a card: one for each shape of images, and what happens when its memory runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pytest
from gmtool_serving.backends.onnx_runtime import CPU, OrtBackend, make_session
from gmtool_serving.backends.session_shapes import MOST, OFTEN, SessionShapes

from gmtool.images import UInt8Array


def batch(count: int, height: int = 24, width: int = 32) -> UInt8Array:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def some_sessions() -> tuple[SessionShapes, list[Any]]:
    """Return sessions that are numbers, and the list of those that were made."""
    made: list[Any] = [0]

    def make() -> Any:
        made.append(len(made))
        return made[-1]

    return SessionShapes(cast(Any, 0), make), made


def test_each_shape_has_its_session_and_comes_back_to_it() -> None:
    """A session that goes from one shape to another takes seconds for that, and again for the way back."""
    sessions, made = some_sessions()
    shapes = [batch(2), batch(2, 32, 24), batch(1)]
    assert [cast(int, sessions.of(each)) for each in [*shapes, *shapes]] == [0, 1, 2, 0, 1, 2]
    assert len(sessions) == len(made) == 3


def test_the_session_that_was_not_used_for_longest_is_given_up() -> None:
    sessions, made = some_sessions()
    for height in range(1, MOST + 1):
        sessions.of(batch(1, height))
    sessions.of(batch(1, 1))  # used again
    sessions.of(batch(1, MOST + 1))
    assert len(sessions) == MOST and len(made) == MOST + 1
    sessions.of(batch(1, 1))
    assert len(made) == MOST + 1, "the first one was kept"
    sessions.of(batch(1, 2))
    assert len(made) == MOST + 2


def test_a_batch_that_is_not_full_joins_a_session_that_is_there() -> None:
    sessions, _ = some_sessions()
    sessions.of(sessions.filled(batch(8)))
    images = batch(5)
    filled = sessions.filled(images)
    assert len(filled) == 8 and np.array_equal(filled[:5], images) and (filled[5:] == images[-1]).all()
    assert [len(sessions.filled(batch(n, 32, 24))) for n in (1, 3, 6)] == [1, 4, 8], "none of that size yet"


def test_batches_that_come_again_and_again_get_their_own_session() -> None:
    """A server whose first batch was large does not compute 8 images for every single one after it."""
    sessions, _ = some_sessions()
    sessions.of(sessions.filled(batch(8)))
    rows = [len(sessions.filled(batch(1))) for _ in range(OFTEN + 2)]
    assert rows == [8] * OFTEN + [1, 1]


class TightSession:
    """A session on a card that has memory for so many images, as long as no other session has any."""

    def __init__(self, session: ort.InferenceSession, room: int, alive: list[object]) -> None:
        self._session, self._room, self._alive = session, room, alive
        alive.append(self)

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        bind = binding.bind_cpu_input

        def bind_cpu_input(name: str, images: UInt8Array) -> None:
            if len(images) > self._room or len(self._alive) > 2:
                raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
            bind(name, images)

        binding.bind_cpu_input = bind_cpu_input
        return binding

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)


def test_sessions_of_other_shapes_make_room_before_a_batch_is_halved(toy_model: Path) -> None:
    plain, backend = (OrtBackend(toy_model, device="cpu", threads=1) for _ in range(2))
    alive: list[object] = []
    made = 0

    def make() -> Any:
        nonlocal made
        made += 1
        options = ort.SessionOptions()
        return TightSession(make_session(toy_model.read_bytes(), "fp32", options, CPU), 4, alive)

    class Sessions(SessionShapes):
        def ran_out(self, images: UInt8Array) -> bool:
            alive.clear()
            return super().ran_out(images)

    backend._sessions = Sessions(make(), make)
    for images in (batch(2), batch(2, 32, 24), batch(2, 16, 16)):  # the third one finds no room
        np.testing.assert_array_equal(backend._run_on_card(images)[0], plain.predict(images).mask)
    assert made == 4 and len(backend._sessions) == 1
    # Too many for the card alone: the error reaches the caller, who halves; halves are not filled up again
    with pytest.raises(RuntimeError, match="out of memory"):
        backend._run_on_card(batch(8))
    assert len(backend._run_on_card(batch(4))[0]) == 4
