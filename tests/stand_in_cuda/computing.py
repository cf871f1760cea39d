"""Tensors that say `cuda:0` and are computed by the processor: a whole command runs as on a card, with numbers.

As on a card, an operator whose tensors are on two devices is an error, and so is a generator of the processor that
draws on the card. Kernels are those of the processor, so that the numbers are those of a run on the processor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import torch
from stand_in_cuda.graphs import Graph
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CARD = torch.device("cuda:0")
COPIES = ("_to_copy", "copy", "copy_")
"""Operators from device to device."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
"""Operators on a card whose indices may be on the processor."""
FILLING = ("fill", "fill_", "masked_fill", "masked_fill_")
"""Operators that take a number from the processor without being computed point by point."""
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")
"""Operators whose result, or whose size, the processor needs."""
ON_THE_PROCESSOR = ("_pin_memory",)
"""Operators whose result is on the processor whatever device they are given."""


class MixedDevicesError(RuntimeError):
    """An operator was given tensors, or a generator, of two devices."""


class CardTensor(Tensor):
    """A tensor on `cuda:0` whose values are in the processor's memory."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> CardTensor:
        """Return a tensor on the card with the shape, strides and type of one on the processor."""
        card: CardTensor = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=CARD
        )
        card.held = held
        return card

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {})


class Computing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it `cuda:0` computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute an operator on the processor; its results are on the card if its tensors, or its device, are."""
    args = tuple(_each(_adopted, value) for value in args)
    kwargs = {name: _each(_adopted, value) for name, value in kwargs.items()}
    leaves = _leaves((*args, *kwargs.values()))
    name = func._schema.name.removeprefix("aten::")
    wanted = kwargs.get("device")
    has_card = any(isinstance(leaf, CardTensor) for leaf in leaves)
    on_card = has_card if wanted is None else torch.device(wanted).type == "cuda"
    if has_card and name not in COPIES:
        _check_devices(func, name, leaves)
    if on_card and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise MixedDevicesError(f"{name}: a generator of the processor draws on the card")
    held = [_each(_held, value) for value in args]
    named = {key: _each(_held, value) for key, value in kwargs.items()}
    if Graph.capturing is not None and (has_card or on_card):
        crosses = name in COPIES and not all(
            isinstance(leaf, CardTensor) for leaf in leaves if isinstance(leaf, Tensor)
        )
        if crosses or name in WAITING or not on_card or name == "lift_fresh":
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        found = Graph.capturing.compute(func, held, named)
    else:
        found = func(*held, **named)
    if not func._schema.returns:
        return None
    if name == "lift_fresh" or (func._schema.is_mutable and name.endswith("_")):
        return args[0]
    return _each(_on_card, found) if on_card and name not in ON_THE_PROCESSOR else found


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """Return an operand or result after `change`: of a list or tuple, each part."""
    return type(value)(map(change, value)) if isinstance(value, (list, tuple)) else change(value)


def _leaves(values: Iterable[Any]) -> list[Any]:
    """Return operands, of lists their parts."""
    return [part for value in values for part in (value if isinstance(value, (list, tuple)) else [value])]


def _check_devices(func: Any, name: str, leaves: list[Any]) -> None:
    """Refuse tensors of the processor, but for indices, and for single numbers beside others, point by point."""
    if name in INDEXED and isinstance(leaves[0], CardTensor):
        return
    takes_numbers = torch.Tag.pointwise in func.tags or name in FILLING
    for leaf in leaves:
        is_other = isinstance(leaf, Tensor) and not isinstance(leaf, CardTensor)
        if is_other and not (takes_numbers and leaf.dim() == 0):
            raise MixedDevicesError(f"{name}: {tuple(leaf.shape)} is on the processor, others are on the card")


def _held(value: Any) -> Any:
    """Return what the processor computes with instead of a tensor on the card, or of the card itself."""
    if isinstance(value, CardTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def _on_card(value: Any) -> Any:
    return CardTensor(value) if isinstance(value, Tensor) and not isinstance(value, CardTensor) else value


def _adopted(value: Any) -> Any:
    """Return a tensor that torch itself made on the stand-in, as `torch.tensor(..., device="cuda")` does, as ours.

    The memory of the stand-in is the host's.
    """
    if not isinstance(value, Tensor) or isinstance(value, CardTensor) or value.device.type != "cuda":
        return value
    storage = value.untyped_storage()
    if not storage.nbytes():
        return CardTensor(torch.empty(value.shape, dtype=value.dtype))
    memory = bytearray((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr()))
    held = torch.frombuffer(memory, dtype=value.dtype)
    return CardTensor(held.as_strided(value.shape, value.stride(), value.storage_offset()))
