"""Training steps on the stand-in card: `python steps.py` prints what they did as JSON.

Tensors on `cuda:0` are fake: torch computes their shape, type, layout and device, and chooses its kernels as on a
card of compute capability 9.0. Whatever would wait for the card raises.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from gmtool_training.engine.machine import Machine
from gmtool_training.loop.figures import TERMS, LoggedMeans, StepSums
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gmtool.config import PrecisionName
from gmtool.doctor.deep.steps import step_config, take_steps
from gmtool.nn import model as network_module
from gmtool.nn.mitrans import NonLocal
from gmtool.settings import Settings

CARD = torch.device("cuda:0")
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "bincount")
"""Operators whose result, or whose size, the processor needs."""
STEP: Settings = {"optim.iterations": 1, "method.warmup_fraction": 0.0}
CASES: list[tuple[str, PrecisionName, Settings]] = [
    ("supervised", "bf16-mixed", {}),
    ("paper", "16-mixed", {"method.pairing": "random", "method.batch_norm": "joint"}),
    ("paper", "32-true", {"optim.accumulation": 2}),
    ("fixmatch", "bf16-mixed", {"method.cutmix": 1.0, "run.channels_last": True}),
    ("fixmatch", "16-mixed", {"method.pseudo": "decoupled"}),
]
"""Every recipe, precision, and switch of a step that computes otherwise."""


class WaitError(Exception):
    """An operator would wait for the card."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes convolutions and attention, and raises at whatever waits for the card."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention: set[str] = set()
        self.convolutions: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        name = name if name.startswith("_") else name.removesuffix("_")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_card = any(tensor.device == CARD for tensor in tensors)
        if on_card and name in WAITING:
            raise WaitError(name)
        if name == "lift_fresh" and on_card:
            raise WaitError("tensor of Python values")
        if name in ("index", "index_put", "_index_put_impl") and on_card:
            for index in args[1]:
                if index is not None and (index.device != CARD or index.dtype == torch.bool):
                    raise WaitError(f"{name} by a {'mask' if index.device == CARD else 'list'}")
        found = func(*args, **kwargs)
        if name in ("_to_copy", "copy") and not _is_asynchronous(name, args, kwargs):
            devices = {tensor.device.type for tensor in [*tensors, found]}
            if len(devices) > 1:
                raise WaitError(f"{name} between processor and card")
        if "scaled_dot_product" in name and not name.endswith("backward"):
            self.attention.add(name)
        if name == "convolution" and args[8] == 1:  # the blur of a strong view is a grouped one
            self.convolutions.add(str(args[0].dtype))
        return found


def _is_asynchronous(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking")) or (name == "copy" and len(args) > 2 and bool(args[2]))


def run_case(recipe: str, precision: PrecisionName, changes: Settings) -> dict[str, Any]:
    """Take steps of a recipe; return the kernels of the steps that are looked at, and the first wait."""
    watch = Watch()
    scaler = torch.amp.GradScaler("cuda") if precision == "16-mixed" else None
    config = step_config(recipe, {**STEP, **changes, "run.precision": precision})
    network_module._colors_on_card.cache_clear()
    wait = None
    with FakeTensorMode(allow_non_fake_inputs=True):
        network_module.normalize(torch.empty(1, 3, 2, 2, device=CARD))  # its constants are copied once
        try:
            take_steps(config, Machine(CARD, precision, scaler), within=lambda _: watch)
        except WaitError as error:
            wait = str(error)
    network_module._colors_on_card.cache_clear()
    return {
        "recipe": recipe,
        "precision": precision,
        "changes": changes,
        "wait": wait,
        "attention": sorted(watch.attention),
        "convolutions": sorted(watch.convolutions),
    }


def waits() -> dict[str, str | None]:
    """Return what `Watch` says of lines that are known to wait, and of two that do not."""
    lines: dict[str, Callable[[Tensor], object]] = {
        "item": lambda x: x.sum().item(),
        "if": lambda x: bool((x > 0).any()),
        "mask": lambda x: x[x > 0],
        "list": lambda x: x[:, [0, 2]],
        "nonzero": lambda x: x.nonzero(),
        "cpu": lambda x: x.cpu(),
        "to": lambda x: torch.zeros(3).to(x.device),
        "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
        "pinned": lambda x: torch.zeros(3).pin_memory().to(x.device, non_blocking=True),
        "computed": lambda x: torch.where(x > 0, x, 0.0)[:, 1:].sum(),
    }
    found: dict[str, str | None] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4, 4, device=CARD)
        for name, line in lines.items():
            try:
                with Watch():
                    line(x)
                found[name] = None
            except WaitError as error:
                found[name] = str(error)
    return found


def attention_of_the_paper() -> dict[str, list[str]]:
    """Return torch's kernels for the non-local block of the paper's network, by precision."""
    found = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with FakeTensorMode():
            block = NonLocal(512).to(CARD)
            x = torch.empty(1, 512, 16, 16, device=CARD, requires_grad=True)
            with Watch() as watch, torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                block(x)
        found[str(dtype)] = sorted(watch.attention)
    return found


def unread(self: StepSums) -> Callable[[], LoggedMeans]:
    """Stand for the figures of a log event: fake tensors hold no values."""
    self._counts.to("cpu", non_blocking=True)
    return lambda: LoggedMeans(dict.fromkeys(TERMS), 0, 0)


def moved(self: nn.Module, *args: Any, **how: Any) -> nn.Module:
    """Stand for `nn.Module.to`: with new parameters and buffers."""
    for module in self.modules():
        for tensors, make in ((module._parameters, nn.Parameter), (module._buffers, torch.Tensor.detach)):
            for name, tensor in tensors.items():
                if tensor is not None and (tensor.dim() == 4 or "memory_format" not in how):
                    tensors[name] = make(tensor.detach().to(*args, **how))  # type: ignore[assignment]
    return self


def main() -> None:
    """Print waits and cases."""
    # Fake tensors can neither be pinned nor copied, nor moved as parameters, and have no fused optimiser
    Tensor.pin_memory = lambda self: self  # type: ignore[method-assign, misc, assignment]
    Tensor.__deepcopy__ = lambda self, _: self.detach().clone()  # type: ignore[method-assign]
    nn.Parameter.__deepcopy__ = lambda self, _: nn.Parameter(self.detach().clone())  # type: ignore[method-assign]
    nn.Module.to = moved  # type: ignore[assignment, method-assign]
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("_fused_sgd_", lambda *_, **__: None, "Meta")  # type: ignore[no-untyped-call]
    StepSums.start_interval = unread  # type: ignore[method-assign]
    cases = [run_case(*case) for case in CASES]
    sys.stdout.write(
        "\n" + json.dumps({"waits": waits(), "attention": attention_of_the_paper(), "cases": cases}) + "\n"
    )


if __name__ == "__main__":
    main()
