"""Deep check "two ranks" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_ranks(on_card: Callable[[str], None]) -> None:
    on_card("two ranks")
