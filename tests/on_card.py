"""The deep checks of `gmtool doctor` as tests on a card: `pytest -n 0 -m gpu tests/gpu`."""

from collections.abc import Callable

import pytest

from gmtool.doctor.deep.result import DeepFinding, Setting
from gmtool.doctor.deep.run import CARD, CHECKS, MODEL, run_check


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The card of this machine; tests are skipped without one."""
    folder = tmp_path_factory.mktemp("deep")
    found = run_check(CARD, Setting(folder, "cpu"))
    if found.state == "left out":
        pytest.skip(found.text)
    assert found.state == "ok", (found.text, found.log)
    return Setting(folder, "cuda", int(found.figures["cards"]))


@pytest.fixture(scope="session")
def toy_model_on_card(card: Setting) -> DeepFinding:
    """The models that some checks need."""
    return run_check(MODEL, card)


@pytest.fixture
def on_card(card: Setting, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Make a check of a name on the card; skip the test where the check is left out there."""

    def make(name: str) -> None:
        (check,) = (each for each in CHECKS if each.name == name)
        if check.needs_model:
            model: DeepFinding = request.getfixturevalue("toy_model_on_card")
            assert model.state == "ok", (model.text, model.log)
        found = run_check(check, card)
        if found.state == "left out":
            pytest.skip(found.text)
        assert found.state == "ok", (found.text, found.log)

    return make
