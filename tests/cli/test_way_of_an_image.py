"""The way of one image through `gmtool predict`: rooms call on to the next ones, and hardly ever back."""

from __future__ import annotations

import inspect
import sys
import threading
from functools import cache
from pathlib import Path
from types import FrameType

from conftest import Cli

ROOT = Path(__file__).parents[2]
MOST = 8
"""Calls from a room into one that the walk came through before; 21 when serving was flat, modules being rooms."""


class Walk:
    """Calls between functions of the command line and of serving, in the order in which they come first."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str, str, str], None] = {}
        self.rooms: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call; see `sys.setprofile`."""
        del argument
        name = frame.f_code.co_qualname
        room = room_of(frame)
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED  # bodies of modules and classes are none
        if event != "call" or room is None or not is_function:
            return
        caller = frame.f_back
        while caller is not None and room_of(caller, everywhere=True) is None:
            caller = caller.f_back
        self.rooms.setdefault(room)
        origin = None if caller is None else room_of(caller)
        if caller is not None and origin is not None and origin != room:
            self.calls.setdefault((origin, caller.f_code.co_qualname, room, name))

    def back(self) -> list[str]:
        """Return the calls into a room that the walk came through earlier."""
        order = list(self.rooms)
        return [
            f"{origin}: {caller} -> {room}: {name}"
            for origin, caller, room, name in self.calls
            if order.index(room) < order.index(origin)
        ]


def room_of(frame: FrameType, *, everywhere: bool = False) -> str | None:
    """Return the room of a function: `cli`, or a folder of serving; with `everywhere` of any part of gmtool."""
    room, is_counted = room_of_file(frame.f_code.co_filename)
    return room if is_counted or everywhere else None


@cache
def room_of_file(name: str) -> tuple[str | None, bool]:
    """Return the room of a file of gmtool, and whether it is one of those that are walked through."""
    path = Path(name)
    if not path.is_relative_to(ROOT) or {".venv", "tests"} & set(path.parts):
        return None, False
    parts = path.relative_to(ROOT).parts
    return (parts[2], True) if parts[0] == "serving" else (parts[1], parts[1] == "cli")


def test_a_walk_of_one_image_through_predict_hardly_turns_back(
    cli: Cli, toy_model: Path, toy_data: Path, tmp_path: Path
) -> None:
    image = min((toy_data / "JPEGImages").iterdir())
    walk = Walk()
    before = sys.getprofile()
    threading.setprofile(walk)
    sys.setprofile(walk)
    try:
        code, _, err = cli(["predict", image, "--out", tmp_path, "--model", toy_model, "--workers", 0])
    finally:
        sys.setprofile(before)
        threading.setprofile(None)
    assert code == 0, err
    assert (tmp_path / f"{image.stem}.png").is_file()
    assert set(walk.rooms) == {"cli", "inputs", "backends", "pipeline", "outputs"}
    assert len(walk.calls) > 20 and len(walk.back()) <= MOST, "\n".join(walk.back())
