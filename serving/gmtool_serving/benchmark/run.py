"""Benchmark exported models on the same images: speed, size, mIoU, agreement, memory."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gmtool import __version__
from gmtool.artifact.openvino_ir import IR_SUFFIX, weights_path
from gmtool.errors import DataError, GmtoolError
from gmtool.images import UInt8Array
from gmtool.report.metrics import Int64Array, confusion_matrix, mean_iou
from gmtool.resources import read_resources
from gmtool_serving.backends.base import Backend, InferenceDevice
from gmtool_serving.backends.opening import open_backend
from gmtool_serving.benchmark.images import ImageBatch
from gmtool_serving.benchmark.memory import measure_peak

LOADS = 3
"""Timed loads of each model; the median counts."""

RoundProgress = Callable[[Iterable[int]], Iterator[int]]
"""Passes the numbers of the rounds on, and shows a progress bar."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """Options of a benchmark."""

    device: InferenceDevice
    threads: int
    """CPU threads; 0 for one a core."""
    rounds: int
    """Timed runs of every batch."""
    memory: bool
    """Measure the peak memory of each model, in a process of its own."""
    trust: bool = False
    """Load TensorRT plans without a sidecar."""


@dataclass(frozen=True)
class BenchmarkRow:
    """Measurements of one model. None: not measured, or it failed."""

    model: str
    size_bytes: int
    """Size of the file."""
    error: str | None = None
    """Error of a model that could not be run, else None."""
    backend: str | None = None
    precision: str | None = None
    load_s: float | None = None
    """Median time to load the model, seconds, without the import of the runtime."""
    p50_ms: float | None = None
    """Median time of a batch."""
    p95_ms: float | None = None
    images_per_s: float | None = None
    """From the mean of the middle half of each batch's times."""
    speed: float | None = None
    """Speed relative to the first model: ratio of images/s."""
    miou: float | None = None
    """In [0, 1]; None without ground truth."""
    agreement: float | None = None
    """Share of the pixels, in [0, 1], with the first model's label."""
    peak_bytes: int | None = None
    """Peak memory of loading it and of the largest batch, without that of the runtime alone; see `peak_of`."""
    peak_of: Literal["cpu", "cuda"] | None = None
    """Memory that `peak_bytes` is of: the process's or the card's."""


@dataclass
class _Contestant:
    """Measurements of a model so far."""

    path: Path
    loads: list[float] = field(default_factory=list)
    backend: Backend | None = None
    error: str | None = None
    times: list[list[float]] = field(default_factory=list)
    """Seconds by batch, then by round."""
    confusion: Int64Array | None = None
    same_pixels: int = 0
    pixels: int = 0

    @property
    def runs(self) -> bool:
        return self.error is None


def figures(
    rows: Sequence[BenchmarkRow], batches: Sequence[ImageBatch], batch: int, settings: BenchmarkSettings
) -> dict[str, Any]:
    """Return measurements as JSON values, with what they depend on.

    Args:
        rows: Measurements of the models.
        batches: What they were measured on.
        batch: Images in a batch.
        settings: The options.
    """
    sizes = sorted({each.images.shape[1:3] for each in batches})
    return {
        "gmtool_version": __version__,
        "platform": platform.platform(),
        "cores": read_resources(Path.cwd()).cores,
        "images": sum(each.count for each in batches),
        "sizes": [list(size) for size in sizes],
        "batch": batch,
        **asdict(settings),
        "models": [asdict(row) for row in rows],
    }


def run_benchmark(
    models: Sequence[Path], batches: Sequence[ImageBatch], settings: BenchmarkSettings, *, progress: RoundProgress
) -> list[BenchmarkRow]:
    """Measure models on the same batches, one right after another on each batch.

    Other load on the machine thus slows all models alike, and ratios hold where absolute times do not. The first
    pass, in which runtimes allocate and choose kernels, is not timed: its masks are compared.

    Args:
        models: Model files of `gmtool export`; the first is the reference.
        batches: Decoded images.
        settings: Options.
        progress: Progress bar over the rounds.

    Raises:
        DataError: There is ground truth, and the models have different classes.
        GmtoolError: The reference cannot be run.
    """
    contestants = [_Contestant(path) for path in models]
    _load(contestants, settings)
    _refuse_different_classes(contestants, batches)
    _compare(contestants, batches)
    for round_index in progress(range(settings.rounds)):
        _time_round(contestants, batches, round_index)
    peaks = {
        one.path: measure_peak(
            one.path,
            max((batch.images.shape for batch in batches), key=np.prod),
            device=settings.device,
            threads=settings.threads,
            trust=settings.trust,
        )
        for one in contestants
        if settings.memory and one.runs
    }
    count = sum(len(batch.images) for batch in batches)
    return [_row(one, contestants[0], count, peaks.get(one.path)) for one in contestants]


def _load(contestants: Sequence[_Contestant], settings: BenchmarkSettings) -> None:
    """Load each model several times; the first load, which imports the runtime, is not timed."""
    for turn in range(LOADS + 1):
        for one in contestants:
            if not one.runs:
                continue
            one.backend = None  # two at once may not fit into memory
            started = time.perf_counter()
            try:
                one.backend = open_backend(
                    one.path, device=settings.device, threads=settings.threads, trust=settings.trust
                )
            except GmtoolError as error:
                if one is contestants[0]:
                    raise
                one.error = str(error)
            if turn:
                one.loads.append(time.perf_counter() - started)


def _refuse_different_classes(contestants: Sequence[_Contestant], batches: Sequence[ImageBatch]) -> None:
    backends = [(one.path, one.backend) for one in contestants if one.backend is not None]
    reference, first = backends[0]
    for path, backend in backends[1:]:
        if any(batch.truths for batch in batches) and backend.spec.classes.names != first.spec.classes.names:
            raise DataError(f"{path} and {reference} have different classes: one ground truth cannot score both")


def _compare(contestants: Sequence[_Contestant], batches: Sequence[ImageBatch]) -> None:
    """Run every batch once, untimed; score the masks, and compare them with those of the first model."""
    for batch in batches:
        expected: UInt8Array | None = None
        for one in contestants:
            if not one.runs:
                continue
            masks = _predict(one, batch)
            if masks is None:
                if one is contestants[0]:
                    raise DataError(f"{one.path}, the reference, cannot be run: {one.error}")
                continue
            masks = masks[: batch.count]
            expected = masks if expected is None else expected
            one.same_pixels += int((masks == expected).sum())
            one.pixels += masks.size
            _score(one, masks, batch)


def _predict(one: _Contestant, batch: ImageBatch) -> UInt8Array | None:
    """Return masks, (N, H, W) uint8; None if the model fails, which excludes it."""
    assert one.backend is not None
    try:
        return one.backend.predict(batch.images).mask
    except GmtoolError as error:
        _, height, width, _ = batch.images.shape
        one.error = f"{len(batch.images)}x{height}x{width}: {error}"
        return None


def _score(one: _Contestant, masks: UInt8Array, batch: ImageBatch) -> None:
    assert one.backend is not None
    classes = one.backend.spec.classes
    for truth, mask in zip(batch.truths, masks[: len(batch.truths)], strict=True):
        matrix = confusion_matrix(truth, mask, num_classes=len(classes), ignore_index=classes.ignore_index)
        one.confusion = matrix if one.confusion is None else one.confusion + matrix


def _time_round(contestants: Sequence[_Contestant], batches: Sequence[ImageBatch], round_index: int) -> None:
    """Time every batch on every model; the order of the models rotates."""
    for batch_index, batch in enumerate(batches):
        shift = (round_index + batch_index) % len(contestants)
        for one in [*contestants[shift:], *contestants[:shift]]:
            if not one.runs:
                continue
            started = time.perf_counter()
            masks = _predict(one, batch)
            seconds = time.perf_counter() - started
            if masks is not None:
                if round_index == 0:
                    one.times.append([])
                one.times[batch_index].append(seconds)


def _row(one: _Contestant, reference: _Contestant, count: int, peak_bytes: int | None) -> BenchmarkRow:
    files = [one.path, weights_path(one.path)] if one.path.suffix == IR_SUFFIX else [one.path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if not one.runs or one.backend is None:
        return BenchmarkRow(str(one.path), size, error=one.error)
    times = np.array(one.times)
    return BenchmarkRow(
        model=str(one.path),
        size_bytes=size,
        backend=one.backend.description,
        precision=one.backend.spec.precision,
        load_s=statistics.median(one.loads),
        p50_ms=float(np.percentile(times, 50) * 1e3),
        p95_ms=float(np.percentile(times, 95) * 1e3),
        images_per_s=count / _typical(one),
        # Not the median of paired ratios: the first model of a pair is slower, so there are two kinds of pairs
        speed=_typical(reference) / _typical(one) if reference.runs else None,
        miou=None if one.confusion is None else mean_iou(one.confusion),
        agreement=one.same_pixels / one.pixels,
        peak_bytes=peak_bytes,
        peak_of=None if peak_bytes is None else one.backend.device,
    )


def _typical(one: _Contestant) -> float:
    """Return the seconds for all batches, each the mean of the middle half of its rounds.

    Robust against disturbed rounds like the median, which jumps where a machine has two speeds.
    """
    times = np.sort(one.times, axis=1)
    rounds = times.shape[1]
    cut = max(1, rounds // 4) if rounds > 2 else 0
    return float(times[:, cut : rounds - cut].mean(axis=1).sum())
