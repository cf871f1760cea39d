"""Deep check "speed" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_speed(on_card: Callable[[str], None]) -> None:
    on_card("speed")
