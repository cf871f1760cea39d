"""Commands on the stand-in card that computes: `python -m stand_in_cuda.commands '[["train", ...], ...]'`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import torch
from gmtool_training.probe.bank import Bank
from gmtool_training.probe.head import HiddenOptions, fit_hidden
from gmtool_training.probe.self_training import PseudoOptions, self_train
from stand_in_cuda.computing import CARD, Computing
from stand_in_cuda.graphs import Graph
from torch import Tensor

from gmtool.cli import app


def exit_code_of(arguments: list[str]) -> int | str | None:
    """Run a command of gmtool; return its exit code."""
    sys.argv = ["gmtool", *arguments]
    try:
        with Computing():
            app.run()
    except SystemExit as exit_:
        return exit_.code
    return None


def main() -> None:
    """Print the exit codes of all commands, and what the stand-in says of lines that mix devices."""
    torch.set_num_threads(1)
    # Kernels that the processor does not have
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Parameters are given other tensors on their way to the card, not other memory
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.cuda.CUDAGraph = Graph  # type: ignore[assignment, misc]
    codes, replays = [], []
    for arguments in json.loads(sys.argv[1]):
        Graph.replays = 0
        codes.append(exit_code_of(arguments))
        replays.append(Graph.replays)
    with Computing():
        cases = {"cuda": (CARD, True), "cpu": (torch.device("cpu"), True), "without": (torch.device("cpu"), False)}
        trained = {name: self_trained(*case).tolist() for name, case in cases.items()}
    found = {"codes": codes, "replays": replays, "mixed": mixed(), "self_trained": trained}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def self_trained(device: torch.device, propagation: bool) -> Tensor:
    """Return the class probabilities after two rounds of self-training, (N, K)."""
    random = torch.Generator().manual_seed(0)
    classes = torch.arange(120) % 3
    features = (4 * torch.eye(3, 8)[classes] + 0.5 * torch.randn(120, 8, generator=random)).half()
    images = torch.arange(120) // 10
    labeled = Bank((features[:60],), classes[:60], images[:60])
    unlabeled = Bank((features[60:],), torch.full((60,), 255), images[:60])
    torch.manual_seed(0)
    draws = np.random.default_rng(0)
    options = HiddenOptions(channels=16, steps=10, batch=32, lr=0.1)
    trained = self_train(
        lambda rows, start: fit_hidden(rows, options=options, random=draws, start=start, device=device),
        labeled,
        unlabeled,
        PseudoOptions(3, None, 0.5, 0.5),
        rounds=2,
        propagation=propagation,
    )
    return trained.heads[-1].probabilities(unlabeled.features)


def mixed() -> dict[str, bool]:
    """Return whether the stand-in refuses each of several lines, as a card does."""
    x, here = torch.ones(3, 3), torch.ones(3, 3)
    with Computing():
        card = x.to(CARD)
        lines: dict[str, Callable[[], object]] = {
            "sum": lambda: card + here,
            "product": lambda: card @ here,
            "parts": lambda: torch.cat([card, here]),
            "number among parts": lambda: torch.stack([card.sum(), here.sum()]),
            "index on the card": lambda: here[card[0].long()],
            "generator": lambda: torch.rand(3, device=CARD, generator=torch.Generator()),
            "numpy": card.numpy,
            "number": lambda: card + here.sum(),
            "index": lambda: card[here[0].long()],
            "copied": lambda: card.cpu() + here,
        }
        found = {}
        for name, line in lines.items():
            try:
                line()
                found[name] = False
            except RuntimeError:
                found[name] = True
    return found


if __name__ == "__main__":
    main()
