"""Whole steps of every recipe on a stand-in card: no wait, no mix of devices, fused attention, half precision.

The stand-in is CUDA's runtime without a card (tests/stand_in_cuda), under which torch describes tensors on
`cuda:0` and chooses its kernels as on a card. A mix of devices is an error of torch itself.
"""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from stand_in_cuda.build import SOURCE, build

FUSED = {"_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention"}
CUDNN = "_scaled_dot_product_cudnn_attention"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program printed that takes the steps."""
    if torch.version.cuda is None:
        pytest.skip("needs torch for CUDA")
    places = build(tmp_path_factory.mktemp("stand-in"))
    program = subprocess.run(
        [sys.executable, SOURCE / "steps.py"], env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert program.returncode == 0, program.stderr[-3000:]
    value: dict[str, Any] = json.loads(program.stdout.splitlines()[-1])
    return value


def test_what_waits_is_seen_by_the_stand_in(done: dict[str, Any]) -> None:
    found = {name for name, reason in done["waits"].items() if reason is not None}
    assert found == set(done["waits"]) - {"pinned", "computed"}


def test_no_step_waits_for_the_card(done: dict[str, Any]) -> None:
    assert {case["recipe"] for case in done["cases"]} == {"supervised", "paper", "fixmatch"}
    assert [case for case in done["cases"] if case["wait"] is not None] == []


def test_every_convolution_is_in_the_precision_of_the_run(done: dict[str, Any]) -> None:
    """Those of an average teacher too."""
    types = {"bf16-mixed": "torch.bfloat16", "16-mixed": "torch.float16", "32-true": "torch.float32"}
    for case in done["cases"]:
        assert case["convolutions"] == [types[case["precision"]]], case


def test_attention_takes_a_fused_kernel(done: dict[str, Any]) -> None:
    for case in done["cases"]:
        assert case["attention"] and set(case["attention"]) <= {*FUSED, CUDNN}, case
    for precision, kernels in done["attention"].items():
        assert kernels and set(kernels) <= FUSED, precision
