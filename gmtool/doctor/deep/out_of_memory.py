"""Deep check: a batch that does not fit into memory is halved until it fits, and the next ones stay that small."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from gmtool.doctor.deep.onnx_models import model_path, toy_images
from gmtool.doctor.deep.result import Checked, LeftOutError, Setting, require
from gmtool.images import UInt8Array

BATCH, SIDE = 16, 512
BATCHES = 3
ROOM_BYTES = {"cpu": 192 * 2**20, "cuda": 320 * 2**20}
"""Memory left to the model: on a processor beside what one image takes, on a card for a session of another shape,
with its weights and handles."""


def check(setting: Setting) -> Checked:
    """Predict three batches with room for a part of one, and look at the sizes that were tried."""
    from gmtool_serving.backends.base import Prediction
    from gmtool_serving.backends.onnx_runtime import OrtBackend
    from gmtool_serving.inputs.collect import InputImage
    from gmtool_serving.pipeline.run import PredictOptions, predict_images

    tried: list[int] = []

    class TightBackend(OrtBackend):
        """Backend that notes the sizes of its batches, and runs them in little memory."""

        def predict(self, images: UInt8Array) -> Prediction:
            tried.append(len(images))
            with _little_memory(setting):
                return super().predict(images)

    # Images of one size, and a model that has predicted one of them
    folder = setting.folder / "memory"
    folder.mkdir(exist_ok=True)
    picture = Image.fromarray(toy_images(setting)[0][0]).resize((SIDE, SIDE))
    count = BATCHES * BATCH
    images = [InputImage(folder / f"{index}.png", PurePosixPath(str(index))) for index in range(count)]
    for image in images:
        picture.save(image.path, compress_level=1)
    backend = TightBackend(model_path(setting, "fp32"), device=setting.place, threads=1)
    backend.lanes = 1  # two would take each other's room, and try the same sizes
    OrtBackend.predict(backend, np.asarray(picture)[None])
    # Every image gets its mask, and what did not fit once is not tried again
    options = PredictOptions(batch=BATCH, workers=0)
    outcomes = list(predict_images(backend, images, folder / "masks", options))
    failed = [str(outcome.error) for outcome in outcomes if outcome.failure is not None]
    require(not failed, f"{len(failed)} of {count} images failed: {failed[:1]}")
    require(tried[0] == BATCH and len(tried) > BATCHES, f"a batch of {BATCH} fitted: nothing was checked")
    require(tried.count(BATCH) == 1, f"a batch of {BATCH} was tried {tried.count(BATCH)} times: {tried}")
    text = f"on {setting.place}, {BATCH} images at once halved to {tried[-1]}, and so for the rest of {count}"
    return Checked(text, None if setting.place == "cuda" else "the memory of a card: no card", {"tried": tried})


@contextmanager
def _little_memory(setting: Setting) -> Iterator[None]:
    """Leave `ROOM_BYTES` of memory within the block, on the card or in this process."""
    if setting.place == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(max(0, free - ROOM_BYTES[setting.place]), dtype=torch.uint8, device="cuda")
        try:
            yield
        finally:
            del hog
            torch.cuda.empty_cache()
        return
    if sys.platform != "linux":
        raise LeftOutError("the memory of a process is limited on Linux alone")
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM_BYTES[setting.place], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
