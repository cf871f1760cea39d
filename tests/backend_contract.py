"""Contract of every backend: inherit `BackendContract` and give it a backend."""

import re
from pathlib import Path

import numpy as np
import pytest
from gmtool_serving.backends.base import Backend

from gmtool.artifact.spec import ArtifactSpec
from gmtool.errors import BackendError
from gmtool.images import UInt8Array


def random_images(*shape: int, seed: int = 0) -> UInt8Array:
    """Return images (N, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


class BackendContract:
    """What holds for every loaded model. It takes one or two images of 32 to 64 pixels a side."""

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise NotImplementedError

    @pytest.fixture
    def refused(self) -> UInt8Array:
        """Images that the backend cannot take."""
        raise NotImplementedError

    def test_it_describes_itself_and_its_model(self, backend: Backend) -> None:
        assert isinstance(backend.spec, ArtifactSpec)
        assert backend.description and "\n" not in backend.description
        assert Path(backend.model).suffix in (".onnx", ".plan")
        assert re.fullmatch("[0-9a-f]{64}", backend.model_sha256)
        assert backend.preferred_batch >= 1
        assert backend.device in ("cpu", "cuda")

    @pytest.mark.parametrize("shape", [(1, 32, 32), (2, 64, 48), (1, 33, 41), (1, 32, 32)])
    def test_outputs_are_those_of_the_spec_in_the_images_shape(
        self, backend: Backend, shape: tuple[int, int, int]
    ) -> None:
        prediction, classes = backend.predict(random_images(*shape)), len(backend.spec.classes)
        assert prediction.mask.shape == shape and prediction.mask.dtype == np.uint8
        assert prediction.mask.max() < classes
        assert (prediction.logits is not None) == ("logits" in backend.spec.outputs)
        assert (prediction.confidence is not None) == bool({"confidence", "logits"} & set(backend.spec.outputs))
        if prediction.confidence is not None:
            assert prediction.confidence.shape == shape and prediction.confidence.dtype == np.uint8
        if prediction.logits is not None:
            count, height, width = shape
            assert prediction.logits.shape == (count, classes, height, width)
            assert prediction.logits.dtype == np.float32
            np.testing.assert_array_equal(prediction.logits.argmax(axis=1), prediction.mask)

    def test_masks_do_not_depend_on_the_batch(self, backend: Backend) -> None:
        images = random_images(2, 40, 48)
        alone = [backend.predict(images[index : index + 1]).mask[0] for index in range(2)]
        assert (np.stack(alone) == backend.predict(images).mask).mean() >= 0.999

    def test_the_next_batch_changes_neither_images_nor_earlier_masks(self, backend: Backend) -> None:
        images = random_images(1, 32, 32)
        first = backend.predict(images).mask
        kept = first.copy()
        backend.predict(255 - images)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(images, random_images(1, 32, 32))

    def test_a_refusal_is_one_line_and_the_next_batch_is_predicted(
        self, backend: Backend, refused: UInt8Array
    ) -> None:
        expected = backend.predict(random_images(1, 32, 32)).mask
        with pytest.raises(BackendError) as error:
            backend.predict(refused)
        assert str(error.value) and "\n" not in str(error.value)
        np.testing.assert_array_equal(backend.predict(random_images(1, 32, 32)).mask, expected)
