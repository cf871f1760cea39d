"""What `gmtool predict` begins before its options are parsed: opening its model takes longer than they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gmtool.errors import GmtoolError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from gmtool_serving.backend import Backend, DeviceName

    Key = tuple[Path, DeviceName, int, bool]

_DEVICES: dict[str, DeviceName] = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}
_begun: dict[Key, Future[Backend]] = {}
"""At most one. It is only a guess at what the options will say."""


def looks_like_prediction(arguments: Sequence[str]) -> bool:
    """Whether the arguments of the program are those of a prediction on this machine."""
    return arguments[:1] == ["predict"] and not any(word.startswith(("--help", "--ray")) for word in arguments)


def begin_early(arguments: Sequence[str]) -> None:
    """Begin to open the model if the arguments of the program look like a prediction on this machine."""
    if not looks_like_prediction(arguments):
        return
    from gmtool_serving.opening import open_ahead

    from gmtool.plan import PLAN_SUFFIX
    from gmtool.runs import newest_model

    model, threads = _value(arguments, "--model"), _value(arguments, "--threads") or "0"
    device = _DEVICES.get(_value(arguments, "--device") or "auto")
    if device is None or not threads.isdecimal() or "://" in (model or ""):
        return
    try:
        path = Path(model) if model is not None else newest_model()
    except GmtoolError:  # the command says it, after it has looked at its inputs
        return
    if path.suffix == PLAN_SUFFIX:  # TensorRT would be imported by a thread while others import too
        return
    _begun[path, device, int(threads), False] = open_ahead(path, device=device, threads=int(threads))


def open_or_await(path: Path, *, device: DeviceName, threads: int, trust: bool) -> Future[Backend]:
    """Return what was begun early, if it was this; else begin it."""
    from gmtool_serving.opening import open_ahead

    begun = _begun.pop((path, device, threads, trust), None)
    return begun or open_ahead(path, device=device, threads=threads, trust=trust)


def _value(arguments: Sequence[str], option: str) -> str | None:
    for place, argument in enumerate(arguments):
        if argument == option:
            return arguments[place + 1] if place + 1 < len(arguments) else None
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None
