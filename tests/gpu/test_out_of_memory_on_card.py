"""Deep check "out of memory" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_out_of_memory(on_card: Callable[[str], None]) -> None:
    on_card("out of memory")
