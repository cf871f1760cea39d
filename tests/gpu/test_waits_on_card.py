"""Deep check "waits for the device" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_waits(on_card: Callable[[str], None]) -> None:
    on_card("waits for the device")
