"""Deep check "torch against the processor" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_numbers(on_card: Callable[[str], None]) -> None:
    on_card("torch against the processor")
