"""Choose the images to label next."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gmtool.api.arguments import Device, ModelLike, PathLike, as_path, refuse_idle
from gmtool.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from gmtool_serving.pipeline.job import Observer
    from gmtool_serving.select.job import Selection


def _silent(total: int) -> AbstractContextManager[Callable[[int], None]]:
    del total
    return nullcontext(lambda done: None)


def select(
    pool: PathLike | Sequence[PathLike],
    *,
    out: PathLike,
    model: ModelLike = None,
    count: int = 30,
    labeled: PathLike | None = None,
    strategy: Literal["mixed", "entropy", "margin", "bald", "coreset", "kmeans++", "random"] | None = None,
    seed: int = 0,
    duplicates: float = 8.0,
    prelabel: str | Sequence[str] | None = None,
    tolerance: float | None = None,
    min_area: int | None = None,
    min_confidence: float | None = None,
    batch: int | None = None,
    exif: Literal["apply", "ignore"] = "apply",
    bits: int = 16,
    max_pixels: int | None = None,
    workers: int | None = None,
    device: Device = "auto",
    threads: int = 0,
    trust: bool = False,
    progress: Callable[[int], AbstractContextManager[Callable[[int], None]]] = _silent,
    observer: Observer | None = None,
) -> Selection:
    """Choose the images of a pool that are worth labeling next, and write a list, a table and a contact sheet.

    A selection that was interrupted goes on where it was, at most a minute before, if it is started again.

    Args:
        pool: Files, folders, globs, `@FILE` lists, videos, as for `predict`.
        out: Folder for `selected.txt`, `scores.csv`, `selected.html` and `prelabel/`; new or empty.
        model: Exported model, with confidence or logits for the uncertainty.
        count: Images to choose.
        labeled: Split list of the images of the pool that are labeled.
        strategy: `mixed`: uncertain pixels of rare classes, unlike labeled and chosen images. `entropy`,
            `margin`: mean uncertainty; `bald`: disagreement with the mirror image; these need logits. `coreset`:
            k-centre greedy. `kmeans++`: drawn by squared distance. `random`. None: `coreset` if the model has the
            output `embedding`, else `mixed`.
        seed: Seed of random orders.
        duplicates: Images whose thumbnails differ by less are taken once: root mean square, 0 to 255; 0: never.
        prelabel: Formats of `predict` in which the masks of the chosen images are written.
        tolerance: See `predict`.
        min_area: See `predict`.
        min_confidence: See `predict`.
        batch: See `predict`.
        exif: See `predict`.
        bits: See `predict`.
        max_pixels: See `predict`.
        workers: See `predict`.
        device: See `load`.
        threads: See `load`.
        trust: See `load`.
        progress: Shows the number of images that are done.
        observer: Follows the job that writes the masks.

    Raises:
        ArtifactError: The model is missing, damaged or foreign.
        ConfigError: The model cannot give what was asked for, or `out` is not empty.
        DataError: No image can be used, or a folder or list that cannot be used.
        UsageError: A bad value, or keywords that contradict each other.
    """
    from gmtool.api.prediction import formats_of, load, outlines_of

    with needs_extra("serve", "predicting"):
        from gmtool_serving.inputs.collect import collect_images
        from gmtool_serving.inputs.decode import DecodeOptions
        from gmtool_serving.pipeline.job import refuse_uris
        from gmtool_serving.pipeline.model import Model
        from gmtool_serving.select.job import SelectOptions, select_job
        from gmtool_serving.select.saved import require_unused
    # What is asked for
    if count < 1:
        raise UsageError(f"--count {count}: expected at least 1")
    shapes = {
        "--tolerance": tolerance is not None,
        "--min-area": min_area is not None,
        "--min-confidence": min_confidence is not None,
    }
    refuse_idle(shapes, used=prelabel is not None, needs="--prelabel FORMAT")
    formats = () if prelabel is None else formats_of(prelabel)
    pixels = DecodeOptions.max_pixels if max_pixels is None else max_pixels
    options = SelectOptions(
        count=count,
        strategy=strategy,
        seed=seed,
        duplicate_levels=duplicates,
        labeled=as_path(labeled),
        decode=DecodeOptions(exif == "apply", pixels, bits),
        batch=batch,
        workers=workers,
        formats=formats,
        outlines=replace(outlines_of(formats, tolerance, min_area), min_confidence=min_confidence or 0.0),
    )
    # Images before the model, which takes longer
    names = [os.fspath(one) for one in ([pool] if isinstance(pool, str | os.PathLike) else pool)]
    refuse_uris([*names, os.fspath(out)])
    require_unused(Path(out))
    images = collect_images(names, Path(out))
    loaded = model if isinstance(model, Model) else load(model, device=device, threads=threads, trust=trust)
    return select_job(images, Path(out), options, loaded.backend, progress=progress, observer=observer)
