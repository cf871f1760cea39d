"""Deep check "toy model" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_toy_model(on_card: Callable[[str], None]) -> None:
    on_card("toy model")
