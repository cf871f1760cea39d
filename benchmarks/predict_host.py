"""Part `host` of `predict.py`: a pipeline behind a model that answers at once, beside what processors could do."""

from __future__ import annotations

import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from predict import BOUNDS, compare, pictures, predict_timed, rate  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from gmtool.images import UInt8Array


def host(root: Path, *, count: int, size: tuple[int, int], rounds: int) -> None:
    """Compare predict with the processors' time for decoding and encoding, behind a model that takes none."""
    from gmtool_serving.backends.base import Prediction
    from gmtool_serving.backends.onnx_runtime import GPU_BATCH
    from gmtool_serving.outputs.formats import MaskItem, encode
    from gmtool_serving.pipeline.run import PredictOptions

    from gmtool.images import read_image

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from fakes import FakeBackend

    regions = np.random.default_rng(0).integers(0, 3, (size[1] // 40 + 1, size[0] // 40 + 1), dtype=np.uint8)
    mask = np.ascontiguousarray(regions.repeat(40, axis=0).repeat(40, axis=1)[: size[1], : size[0]])

    class Instant(FakeBackend):
        """Answers with the same regions at once, as an accelerator that is never what is waited for."""

        preferred_batch = GPU_BATCH

        def predict(self, images: UInt8Array) -> Prediction:
            return Prediction(np.broadcast_to(mask, images.shape[:3]))

    backend, cores = Instant(), os.cpu_count() or 1
    paths = pictures(root / "images-host", count, *size)
    item, classes = MaskItem(PurePosixPath("x"), mask), backend.spec.classes
    fsync, of_cores, of_bare, bare_of_cores, of_pillow, durable, shares = os.fsync, [], [], [], [], [], []
    for number in range(rounds):
        started = time.process_time()
        # Nothing is kept: memory for all images would take as long to get as an image to decode
        decode_s = 1 / rate(count, lambda: deque(map(read_image, paths), maxlen=0))
        encode_s = 1 / rate(count, lambda: deque((encode("voc", item, classes) for _ in paths), maxlen=0))
        alone_ms = 1000 * (time.process_time() - started) / count
        # Cores that share memory and caches, or are halves of one, do less together than each alone
        bare = bare_rate(cores, paths, lambda path: (read_image(path), encode("voc", item, classes)))
        pillow_s = 1 / rate(count, lambda: deque((with_pillow(path, mask) for path in paths), maxlen=0))
        rates, own_ms, decoders_ms = {}, 0.0, 0.0
        for synced in (True, False) if number % 2 else (False, True):
            os.fsync = fsync if synced else lambda _: None  # type: ignore[assignment]
            rates[synced], *times_ms = predict_timed(backend, root, paths, PredictOptions(workers=cores))
            own_ms, decoders_ms = times_ms if synced else (own_ms, decoders_ms)
        os.fsync = fsync
        of_cores.append(rates[True] * (decode_s + encode_s) / cores)
        of_bare.append(rates[True] / bare)
        bare_of_cores.append(bare * (decode_s + encode_s) / cores)
        of_pillow.append(rates[True] * pillow_s / cores)
        durable.append(rates[True] / rates[False])
        shares.append(alone_ms / (own_ms + decoders_ms))
        print(
            f"decode {1000 * decode_s:.2f} ms, encode {1000 * encode_s:.2f} ms on one core; {cores} cores could "
            f"{cores / (decode_s + encode_s):.0f} images/s, {cores} bare processes do {bare:.0f}; predict "
            f"{rates[True]:.0f}, without fsync {rates[False]:.0f}; processor time an image: {alone_ms:.2f} ms for "
            f"both alone, {own_ms:.2f} in the process that predicts, {decoders_ms:.2f} in the decoders"
        )
    compare(f"processors' time, {size[0]}x{size[1]}", of_cores, BOUNDS["host"])
    compare("bare processes at once", of_bare, BOUNDS["host"])
    print(f"these of the processors' time: {' '.join(f'{value:.2f}' for value in bare_of_cores)}")
    compare("the same, decoded and encoded by Pillow", of_pillow, BOUNDS["host pillow"])
    compare("decode and encode of all processor time", shares, BOUNDS["host"])
    compare("with fsync against without", durable, BOUNDS["host durable"])


def bare_rate(processes: int, paths: Sequence[Path], act: Callable[[Path], object]) -> float:
    """Return the rate of so many processes that only do `act`, each with every path, images/s of all together."""
    started = time.perf_counter()
    children = []
    for _ in range(processes):
        child = os.fork()
        if child == 0:
            deque(map(act, paths), maxlen=0)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    return processes * len(paths) / (time.perf_counter() - started)


def with_pillow(path: Path, mask: UInt8Array) -> bytes:
    """Decode an image and encode a palette PNG as Pillow does it by default."""
    np.asarray(Image.open(path).convert("RGB"))
    paletted, buffer = Image.fromarray(mask), io.BytesIO()
    paletted.putpalette(bytes(range(256)) * 3)
    paletted.save(buffer, "PNG")
    return buffer.getvalue()
