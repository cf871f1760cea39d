"""Deep check "driver and card" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_driver_and_card(on_card: Callable[[str], None]) -> None:
    on_card("driver and card")
