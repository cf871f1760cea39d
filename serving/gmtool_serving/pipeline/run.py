"""Prediction run: images through the pipeline into an output folder with a manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gmtool import __version__
from gmtool.classes import ClassSet
from gmtool.errors import DataError
from gmtool.labels.outlines import OutlineOptions
from gmtool.resources import decoding_processes
from gmtool_serving.backends.base import Backend
from gmtool_serving.backends.tiles import require_logits
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import DecodeOptions
from gmtool_serving.inputs.shards import Shard
from gmtool_serving.outputs.folder import OutputFolder
from gmtool_serving.outputs.formats import FormatName, check_formats, format_dirs, paths
from gmtool_serving.outputs.manifest import Conditions, Record
from gmtool_serving.outputs.tool_formats import is_tool_format
from gmtool_serving.outputs.write import MaskFolders
from gmtool_serving.pipeline.compute import ComputeOptions, require_confidence
from gmtool_serving.pipeline.decoder_pool import Decoders
from gmtool_serving.pipeline.pipeline import Clocks, Outcome, Pipeline

WRITERS = 4
"""Threads that encode and write. Syncing a file takes milliseconds of waiting, not of computing."""
DECODING_THREADS = 2
"""Decoding threads where no decoding processes are used."""
FEW = 4
"""Up to this many images no decoding processes are started: they would be ready too late."""
FULL_DISK_PATIENCE = 5
"""Consecutive masks that fail on a full disk before the run is stopped."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction run."""

    formats: tuple[FormatName, ...] = ("voc",)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    batch: int | None = None
    """Images of one size in a batch; None for the default of the model's device."""
    workers: int | None = None
    """Decoding processes; 0 decodes in threads of this process, which a crashing decoder would end. None: one a
    core, or threads for up to `FEW` images."""
    resume: bool = False
    """Skip inputs that an earlier run completed with the same input, model, options and files."""
    shard: Shard | None = None
    outlines: OutlineOptions = field(default_factory=OutlineOptions)
    """Detail of the shapes of labeling tools."""

    def conditions(self, model_sha256: str) -> Conditions:
        """Return model, formats and options: all that masks depend on beside their images."""
        options = {"exif": self.decode.exif, "bits": self.decode.bits, **asdict(self.compute)}
        if self.compute.min_confidence is None:  # as in the records of runs before there was this option
            del options["min_confidence"]
        if any(map(is_tool_format, self.formats)):
            options = asdict(self.outlines) | options
        return Conditions(model_sha256, self.formats, options)


@dataclass
class PredictionTally:
    """Counts of a run's inputs by outcome, and its duration."""

    inputs: int
    ok: int = 0
    failed: int = 0
    skipped: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Number of failed inputs by error code."""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def not_reached(self) -> int:
        """Inputs without an outcome yet."""
        return self.inputs - self.ok - self.failed - self.skipped

    @property
    def seconds(self) -> float:
        """Duration of the run, seconds; so far if it has not ended."""
        return (self.ended or time.monotonic()) - self.started

    def count(self, outcome: Outcome) -> None:
        """Count an outcome."""
        if outcome.failure is not None:
            self.failed += 1
            self.failures[outcome.failure.code] = self.failures.get(outcome.failure.code, 0) + 1
        elif outcome.skipped:
            self.skipped += 1
        else:
            self.ok += 1


class Stages(Protocol):
    """Interface of a prediction pipeline: `Pipeline` in this process, `RayPipeline` on a cluster."""

    clocks: Clocks

    def run(self, images: Sequence[InputImage]) -> Generator[Sequence[Outcome]]:
        """Yield the outcomes of all images, in groups as soon as they are known."""
        ...

    def stop(self) -> None:
        """End `run` after the outcomes that are known by now. Safe in a signal handler."""
        ...


class PredictionRun:
    """Prediction run into an output folder; to be closed.

    Create it before the model is loaded: an output folder that cannot be used is refused at once, and decoding
    processes start meanwhile.

    Args:
        images: All inputs of the job; images of other shards are dropped here.
        out: Output folder; created if its parent exists.
        options: Options of the run.
        folder: Replacement for a local output folder.
        make_stages: Makes a replacement for the local `Pipeline`.

    Raises:
        DataError: The folder cannot be created or written, or another run holds it.
    """

    def __init__(
        self,
        images: Sequence[InputImage],
        out: Path,
        options: PredictOptions,
        *,
        folder: OutputFolder | None = None,
        make_stages: Callable[[OutputFolder, Backend, Conditions], Stages] | None = None,
    ) -> None:
        self.options = options
        shard = options.shard
        self.images = images if shard is None else [image for image in images if shard.holds(image)]
        self.tally = PredictionTally(len(self.images))
        self.interrupted = False
        self.pipeline: Stages | None = None
        self.folders = format_dirs(out, options.formats)
        self.folder = folder or OutputFolder(out, shard=shard, resume=options.resume)
        self._make_stages = make_stages or self._make_pipeline
        self._decoders: Decoders | None = None
        if make_stages is not None:
            return
        processes = _default_workers(len(self.images)) if options.workers is None else options.workers
        workers = max(1, min(processes or DECODING_THREADS, len(self.images)))
        self._decoders = Decoders(workers, options.decode, isolated=processes > 0)
        self._decoders.start(len(self.images))

    def outcomes(self, backend: Backend) -> Iterator[Outcome]:
        """Predict all images; record and yield the outcome of each.

        Raises:
            ConfigError: The model lacks an output or the classes that the options need.
            DataError: The disk is full.
        """
        # Refuse options that the model does not support
        check_formats(self.options.formats, backend.spec.classes, backend.spec.outputs)
        require_confidence(backend.spec, self.options.compute)
        outlines = self.options.outlines
        check_formats(self.options.formats, backend.spec.classes, backend.spec.outputs, outlines)
        if self.options.compute.tiling is not None:
            require_logits(backend)
        # Start the pipeline
        if self.folder.needs_sweep:
            self.sweep()
        conditions = self.options.conditions(backend.model_sha256)
        self.pipeline = self._make_stages(self.folder, backend, conditions)
        if self.interrupted:
            self.pipeline.stop()
        self.tally.started = time.monotonic()
        groups = self.pipeline.run(self.images)
        # Record outcomes; stop on a full disk
        full_in_a_row = 0
        try:
            for outcomes in groups:
                self._record(outcomes, conditions)
                for outcome in outcomes:
                    yield outcome
                    is_full = outcome.failure is not None and outcome.failure.code == "disk_full"
                    full_in_a_row = full_in_a_row + 1 if is_full else 0
                    if full_in_a_row == FULL_DISK_PATIENCE:
                        raise DataError(f"{outcome.error}: {self._what_to_do()}")
        finally:
            groups.close()
            self.tally.ended = time.monotonic()
            self._finish(backend)

    def _make_pipeline(self, folder: OutputFolder, backend: Backend, conditions: Conditions) -> Pipeline:
        assert self._decoders is not None
        return Pipeline(
            self._decoders,
            backend,
            batch=self.options.batch or backend.preferred_batch,
            compute=self.options.compute,
            out=folder.out,
            formats=self.options.formats,
            outlines=self.options.outlines,
            writers=WRITERS,
            find_done=lambda image: folder.find_done(image, conditions),
        )

    def make_files_of_the_whole(self, images: Sequence[InputImage], classes: ClassSet | None = None) -> None:
        """Write `results.tar`, `results.json` and the like of the formats that have them, from the masks on disk.

        Several shards may do this at the same time; the last one to end finds all masks.

        Args:
            images: All inputs of the job, those of all shards.
            classes: Classes of the masks, for the formats of labeling tools.

        Raises:
            DataError: A file cannot be written.
        """
        from gmtool_serving.outputs.whole_run_files import RESULT_NAMES, finish

        outputs, folders = [image.output for image in images], MaskFolders(self.folder.out)
        for name, folder in self.folders.items():
            if name not in RESULT_NAMES:
                continue
            try:
                folders.make(folder)
            except OSError as error:
                raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
            finish(name, folder, outputs, classes)

    def sweep(self) -> None:
        """Delete temporary files of killed runs."""
        self.folder.sweep(self._target_folders())

    def interrupt(self) -> bool:
        """Stop the run; return False if no image has been started. Safe in a signal handler."""
        self.interrupted = True
        if self.pipeline is None:
            return False
        self.pipeline.stop()
        return True

    def close(self) -> None:
        """End decoding processes and release the output folder."""
        if self._decoders is not None:
            self._decoders.close()
        self.folder.close()

    def __enter__(self) -> PredictionRun:
        """Return the run."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def summary(self, backend: Backend) -> dict[str, Any]:
        """Return the JSON summary of the run: counts, timings, model, options."""
        assert self.pipeline is not None
        tally, shard = self.tally, self.options.shard
        return {
            "inputs": tally.inputs,
            "ok": tally.ok,
            "failed": tally.failed,
            "skipped": tally.skipped,
            "not_reached": tally.not_reached,
            "failures": dict(sorted(tally.failures.items())),
            "seconds": round(tally.seconds, 3),
            "ms_per_image": {name: round(ms, 3) for name, ms in self.pipeline.clocks.ms_per_image().items()},
            "model": backend.model,
            "backend": backend.description,
            **asdict(self.options.conditions(backend.model_sha256)),
            "shard": None if shard is None else str(shard),
            "gmtool_version": __version__,
        }

    def _record(self, outcomes: Sequence[Outcome], conditions: Conditions) -> None:
        try:
            self.folder.add(*(_record_of(outcome, conditions) for outcome in outcomes))
        except OSError as error:
            raise DataError(
                f"{self.folder.manifest_name}: cannot be written: {error.strerror}: {self._what_to_do()}"
            ) from error
        for outcome in outcomes:
            self.tally.count(outcome)

    def _finish(self, backend: Backend) -> None:
        try:
            self.folder.finish(self.summary(backend), None if self.tally.not_reached else self.images)
        except OSError as error:
            raise DataError(
                f"{self.folder.manifest_name}: cannot be written: {error.strerror}: {self._what_to_do()}"
            ) from error

    def _what_to_do(self) -> str:
        missing = self.tally.inputs - self.tally.ok - self.tally.skipped
        return f"{missing} of {self.tally.inputs} images have no mask: free disk space and continue with --resume"

    def _target_folders(self) -> set[Path]:
        """Return all folders that masks are written to."""
        return {
            (folder / path).parent
            for name, folder in self.folders.items()
            for image in self.images
            for path in paths(name, image.output)
        }


def _record_of(outcome: Outcome, conditions: Conditions) -> Record:
    image, failure = outcome.image, outcome.failure
    return Record(
        path=image.location,
        frame=image.frame,
        output=str(image.output),
        sha256=outcome.sha256,
        status="failed" if failure is not None else "skipped" if outcome.skipped else "ok",
        code=None if failure is None else failure.code,
        error=outcome.error,
        warning=outcome.warning,
        outputs=outcome.outputs,
        conditions=conditions,
    )


def _default_workers(images: int) -> int:
    return 0 if images <= FEW else decoding_processes()


def predict_images(
    backend: Backend, images: Sequence[InputImage], out: Path, options: PredictOptions | None = None
) -> Iterator[Outcome]:
    """Write the masks of images; yield the outcome of each once its files are complete on disk.

    Raises:
        DataError: The output folder cannot be used, or the disk is full.
    """
    with PredictionRun(images, out, options or PredictOptions(workers=0)) as run:
        yield from run.outcomes(backend)
