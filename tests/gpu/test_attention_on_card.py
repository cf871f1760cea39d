"""Deep check "efficient attention" on a card."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
def test_attention(on_card: Callable[[str], None]) -> None:
    on_card("efficient attention")
