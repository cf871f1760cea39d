"""Deep checks of training on a card, in each precision and memory format."""

from collections.abc import Callable

import pytest


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["bf16-mixed", "16-mixed", "32-true", "channels_last", "compiled"])
def test_training(on_card: Callable[[str], None], variant: str) -> None:
    on_card(f"training, {variant}")
