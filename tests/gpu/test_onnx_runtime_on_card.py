"""Deep check "ONNX Runtime" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_onnx_runtime(on_card: Callable[[str], None]) -> None:
    on_card("ONNX Runtime")
