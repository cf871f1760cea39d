"""A selection: measure a pool, choose images, write list, table, contact sheet and masks to correct."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gmtool.data.splits import format_split
from gmtool.errors import DataError
from gmtool.files import write_atomically
from gmtool.labels.outlines import OutlineOptions
from gmtool.report.contact_sheet import SheetEntry, contact_sheet_html, make_entry
from gmtool.resources import decoding_processes
from gmtool_serving.backends.base import Backend
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import DecodeOptions, Failure, decode
from gmtool_serving.outputs.formats import FormatName, check_formats, check_names
from gmtool_serving.pipeline.compute import ComputeOptions, predict_batch
from gmtool_serving.pipeline.decoder_pool import Decoders
from gmtool_serving.pipeline.job import Observer, PredictionSummary, predict_job
from gmtool_serving.pipeline.run import DECODING_THREADS, FEW, PredictOptions
from gmtool_serving.select.certainty import CertaintyBackend, Strategy, certainty_kind, default_strategy
from gmtool_serving.select.choose import Choice, choose
from gmtool_serving.select.labeled import places_of_labeled
from gmtool_serving.select.measure import Measures, measure
from gmtool_serving.select.reasons import reasons_of_chosen, table_of_all
from gmtool_serving.select.saved import Saved, require_unused

LIST_NAME, TABLE_NAME, SHEET_NAME, PRELABEL_NAME = "selected.txt", "scores.csv", "selected.html", "prelabel"

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Takes a number of images; its context gives a function that is called with the number that are done."""


@dataclass(frozen=True)
class SelectOptions:
    """Options of a selection."""

    count: int = 30
    """Images to choose."""
    strategy: Strategy | None = None
    """None: chosen by `default_strategy`."""
    seed: int = 0
    duplicate_levels: float = 8.0
    """Images whose thumbnails differ by less are near-duplicates: root mean square, levels of 0 to 255."""
    labeled: Path | None = None
    """Split list of the labeled images of the pool."""
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    batch: int | None = None
    """Images of one size computed at once; None for the default of the model's device."""
    workers: int | None = None
    """Decoding processes; 0 decodes in threads. None: one a core, or threads for up to `FEW` images."""
    formats: tuple[FormatName, ...] = ()
    """Formats of the masks to correct; none for no masks."""
    outlines: OutlineOptions = field(default_factory=OutlineOptions)
    """Detail of the shapes of labeling tools."""


@dataclass(frozen=True)
class Selection:
    """Result of a selection."""

    out: Path
    strategy: Strategy
    chosen: tuple[InputImage, ...]
    """Chosen images, the most wanted first."""
    reasons: tuple[str, ...]
    """Why each was chosen."""
    pool: int
    """Images of the pool, labeled ones included."""
    labeled: int
    """Labeled images in the pool."""
    not_in_pool: int
    """Names of the labeled list that are not in the pool."""
    duplicates: int
    """Images left out as near-duplicates of labeled or chosen ones."""
    failures: tuple[str, ...]
    """Messages of the images that could not be used."""
    prelabel: PredictionSummary | None
    """Result of writing the masks to correct."""


def select_job(
    images: Sequence[InputImage],
    out: Path,
    options: SelectOptions,
    backend: Backend,
    *,
    progress: Progress,
    observer: Observer | None = None,
) -> Selection:
    """Choose images and write the files; `selected.txt` is written last.

    Raises:
        ConfigError: The model lacks the output that the strategy or a format needs, or `out` is not empty.
        DataError: No image can be used, the list of labeled images does not fit the pool, or `out` cannot be
            written.
    """
    # Refuse before anything is computed
    require_unused(out)
    classes = backend.spec.classes
    strategy = options.strategy or default_strategy(backend.spec.outputs)
    options = replace(options, strategy=strategy)
    kind = certainty_kind(strategy, backend)
    check_names(options.formats, images)
    check_formats(options.formats, classes, backend.spec.outputs, options.outlines)
    labeled, not_in_pool = ([], 0) if options.labeled is None else places_of_labeled(options.labeled, images)
    if len(labeled) == len(images):
        raise DataError(f"all {len(images)} images of the pool are labeled: give more images")
    # Measure and choose
    saved = Saved(out, _origin(images, backend, kind, options))
    measures = _measured(images, CertaintyBackend(backend, kind), options, labeled, progress, saved)
    if not measures.is_measured.any():
        raise DataError(
            f"none of {len(images)} images can be used; the first: {next(iter(measures.failures.values()))}"
        )
    choice = choose(
        measures,
        options.count,
        strategy=strategy,
        labeled=labeled,
        seed=options.seed,
        duplicate_levels=options.duplicate_levels,
    )
    if not choice.chosen:
        raise DataError("no image is left: all are labeled, near-duplicates of labeled ones, or failed")
    # Write: the list last, so that it is never without the other files
    reasons = reasons_of_chosen(measures, choice, classes, strategy)
    chosen = [images[place] for place in choice.chosen]
    out.mkdir(exist_ok=True)
    table = table_of_all(measures, choice, classes, labeled=labeled, reasons=reasons)
    write_atomically(out / TABLE_NAME, table)
    _write_sheet(measures, choice, reasons, backend, out, options, strategy)
    prelabel = None
    if options.formats:
        how = PredictOptions(options.formats, options.decode, workers=0, outlines=options.outlines)
        prelabel = predict_job(chosen, out / PRELABEL_NAME, how, lambda: backend, observer=observer)
    write_atomically(out / LIST_NAME, format_split(str(image.output) for image in chosen))
    saved.remove()
    return Selection(
        out,
        strategy,
        tuple(chosen),
        tuple(reasons[place] for place in choice.chosen),
        len(images),
        len(labeled),
        not_in_pool,
        len(choice.duplicate_of),
        tuple(measures.failures.values()),
        prelabel,
    )


def _measured(
    images: Sequence[InputImage],
    backend: Backend,
    options: SelectOptions,
    labeled: Sequence[int],
    progress: Progress,
    saved: Saved,
) -> Measures:
    """Return the measurements of the pool; for `random`, of so many images in a seeded order as are wanted.

    Those of the whole pool are saved from time to time, and when the process is interrupted.
    """
    order = list(range(len(images)))
    batch, wanted = options.batch or backend.preferred_batch, None
    if options.strategy == "random":
        free = np.setdiff1d(order, labeled)
        order = np.random.default_rng(options.seed).permutation(free).tolist()
        batch, wanted = 1, options.count  # larger batches would prefer images of the most frequent size
    few = len(order) <= FEW or (wanted or FEW + 1) <= FEW
    workers = options.workers if options.workers is not None else 0 if few else decoding_processes()
    decoders = Decoders(workers or DECODING_THREADS, options.decode, isolated=workers > 0)
    try:
        with _counting(progress, min(wanted or len(order), len(order))) as note:
            if wanted is not None:
                drawn = [images[place] for place in order]
                found = measure(drawn, backend, decoders, batch=batch, wanted=wanted, note=note)
                return _at_places(found, order, images)
            return measure(images, backend, decoders, batch=batch, note=note, load=saved.load, save=saved.save)
    except BaseException:  # Ctrl-C and SIGTERM too
        saved.save_interrupted()
        raise
    finally:
        decoders.close()


def _origin(images: Sequence[InputImage], backend: Backend, kind: str, options: SelectOptions) -> list[str]:
    """Return what measurements depend on."""
    return [backend.model_sha256, kind, str(options.decode), *(f"{image}\t{image.output}" for image in images)]


def _at_places(found: Measures, order: Sequence[int], images: Sequence[InputImage]) -> Measures:
    """Return measurements of some images of a pool as measurements of the pool."""

    def spread(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        whole = np.zeros((len(images), *values.shape[1:]), dtype=values.dtype)
        whole[list(order)] = values
        return whole

    return replace(
        found,
        images=images,
        is_measured=spread(found.is_measured),
        shares=spread(found.shares),
        doubt=spread(found.doubt),
        appearance=spread(found.appearance),
        thumbnails=spread(found.thumbnails),
        failures={order[place]: message for place, message in found.failures.items()},
        embedding=None if found.embedding is None else spread(found.embedding),
    )


@contextmanager
def _counting(progress: Progress, total: int) -> Iterator[Callable[[], None]]:
    done = 0
    with progress(total) as update:

        def note() -> None:
            nonlocal done
            done += 1
            update(done)

        yield note


def _write_sheet(
    measures: Measures,
    choice: Choice,
    reasons: dict[int, str],
    backend: Backend,
    out: Path,
    options: SelectOptions,
    strategy: Strategy,
) -> None:
    """Write the page of the chosen images; they are predicted again, since no mask was kept."""
    entries = [_entry(measures.images[place], backend, reasons[place], options.decode) for place in choice.chosen]
    page = contact_sheet_html(
        entries, backend.spec.classes, model=backend.model, strategy=strategy, pool=len(measures.images)
    )
    write_atomically(out / SHEET_NAME, page)


def _entry(image: InputImage, backend: Backend, reason: str, how: DecodeOptions) -> SheetEntry:
    decoded = decode(image.path, image.frame, how)
    if isinstance(decoded, Failure):  # it could be read a moment ago
        raise DataError(decoded.message)
    (labels,) = predict_batch(backend, [decoded.pixels], ComputeOptions(), names=[str(image)]).results
    if isinstance(labels, Failure):
        raise DataError(labels.message)
    return make_entry(str(image.output), reason, decoded.pixels, labels.mask, backend.spec.classes)
