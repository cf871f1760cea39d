"""The fake backend of other tests behaves as a real one does."""

import pytest
from backend_contract import BackendContract, random_images
from fakes import FakeBackend

from gmtool.artifact.spec import OutputName
from gmtool.errors import BackendError
from gmtool.images import UInt8Array


class TestFake(BackendContract):
    @pytest.fixture(params=[("mask",), ("mask", "confidence"), ("logits",)])
    def backend(self, request: pytest.FixtureRequest) -> FakeBackend:
        outputs: tuple[OutputName, ...] = request.param
        return FakeBackend(outputs=outputs, check=refuse_large)

    @pytest.fixture
    def refused(self) -> UInt8Array:
        return random_images(1, 96, 96)


def refuse_large(images: UInt8Array) -> None:
    if images.shape[1] > 64:
        raise BackendError("too large")
