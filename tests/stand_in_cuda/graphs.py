"""CUDA graphs of the stand-in card that computes: operators are noted in a capture, and computed at each replay.

As on a card, a capture changes nothing, Python's numbers are as they were when it was made, and whatever waits for
the card ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

WRITTEN = {"native_batch_norm": ("running_mean", "running_var")}
"""What operators change although their schemas do not say so."""


class Graph:
    """Stands for `torch.cuda.CUDAGraph`."""

    capturing: Graph | None = None
    """The graph that is being captured; operators on the card are to be computed through it."""
    replays = 0
    """Of all graphs."""

    def __init__(self) -> None:
        self._operators: list[tuple[Any, list[Any], dict[str, Any], list[Tensor]]] = []
        self._before: list[tuple[Tensor, Tensor]] = []
        self._random = torch.empty(0)

    def capture_begin(self, *_: object, **__: object) -> None:
        """Note what is computed from now on."""
        self._random = torch.get_rng_state()
        Graph.capturing = self

    def capture_end(self) -> None:
        """Undo what was computed: a capture runs nothing."""
        Graph.capturing = None
        for tensor, value in reversed(self._before):
            tensor.copy_(value)
        self._before.clear()
        torch.set_rng_state(self._random)

    def compute(self, func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Compute an operator of the processor, and note it."""
        self._before += [(tensor, tensor.clone()) for tensor in _written_by(func, args, kwargs)]
        found = func(*args, **kwargs)
        parts = found if isinstance(found, (list, tuple)) else [found]
        self._operators.append((func, args, kwargs, [part for part in parts if isinstance(part, Tensor)]))
        return found

    def replay(self) -> None:
        """Compute all operators again, into the tensors of the capture."""
        Graph.replays += 1
        for func, args, kwargs, results in self._operators:
            if func.is_view:
                continue
            again = func(*args, **kwargs)
            parts = again if isinstance(again, (list, tuple)) else [again]
            for result, part in zip(results, [part for part in parts if isinstance(part, Tensor)], strict=True):
                if result.data_ptr() != part.data_ptr():
                    result.copy_(part)


def _written_by(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operator changes."""
    names = [argument.name for argument in func._schema.arguments]
    values = dict(zip(names, args, strict=False)) | kwargs
    hidden = WRITTEN.get(func._schema.name.removeprefix("aten::"), ())
    for argument in func._schema.arguments:
        if argument.name in hidden or (argument.alias_info is not None and argument.alias_info.is_write):
            value = values.get(argument.name)
            yield from (each for each in (value if isinstance(value, list) else [value]) if each is not None)
