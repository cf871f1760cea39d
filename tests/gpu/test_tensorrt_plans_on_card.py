"""Deep check "TensorRT plans" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_tensorrt_plans(on_card: Callable[[str], None]) -> None:
    on_card("TensorRT plans")
