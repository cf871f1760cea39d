"""Stages of Ray workers, from table to table: read, predict, write."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from gmtool import __version__
from gmtool.classes import ClassSet
from gmtool.errors import GmtoolError
from gmtool.images import read_regular_file
from gmtool.resources import temporary_dir
from gmtool_serving.backends.base import Backend, InferenceDevice
from gmtool_serving.backends.opening import open_backend
from gmtool_serving.cluster.rows import Row, array_of, rows_of, to_table
from gmtool_serving.cluster.storage import StoredMasks, is_uri, join, read_file
from gmtool_serving.cluster.time_limit import limited_time
from gmtool_serving.inputs.decode import Failure, decode
from gmtool_serving.outputs.formats import MaskItem, needs_pixels
from gmtool_serving.outputs.manifest import Record
from gmtool_serving.outputs.write import MaskFolders, MaskStore, OutputFile, write_outputs
from gmtool_serving.pipeline.batching import Grouper, padded_size
from gmtool_serving.pipeline.compute import predict_batch

if TYPE_CHECKING:
    import pyarrow as pa

    from gmtool_serving.pipeline.run import PredictOptions

FETCHES = 8
"""Files that a reading worker fetches at once: mostly it waits for the store."""
WRITES = 4
"""Files that a writing worker writes at once."""
PATIENCE_S = 60
"""Processor time for decoding one image, seconds: above it the worker ends, and Ray starts another one."""

P = ParamSpec("P")


@dataclass(frozen=True)
class Job:
    """Description of a run for all workers."""

    options: PredictOptions
    classes: ClassSet
    out: str
    """Output folder, a path or a URI."""
    proof: str | None
    """File in a local output folder: a worker that cannot see it does not share the folder."""
    model: str
    """Path of the model, for messages and its suffix."""
    device: InferenceDevice
    threads: int
    """CPU threads of a predicting worker."""
    gmtool_version: str = __version__


def _guarded(
    stage: Callable[Concatenate[pa.Table, P], Iterator[pa.Table]],
) -> Callable[Concatenate[pa.Table, P], Iterator[pa.Table]]:
    """Decorate a stage to report exceptions in its rows: Ray drops the images of a task that raises."""

    def run(table: pa.Table, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[pa.Table]:
        try:
            yield from stage(table, *args, **kwargs)
        except Exception as error:
            place = f"{socket.gethostname()}, process {os.getpid()}"
            yield _fatal(rows_of(table), f"a worker ({place}) failed: {type(error).__name__}: {error}")

    functools.update_wrapper(run, stage)
    return run


def _fatal(rows: Sequence[Row], message: str) -> pa.Table:
    return to_table([replace(row, fatal=message) for row in rows])


@_guarded
def read_rows(table: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Read and decode images; yield a table for each, so that Ray can limit the size of blocks."""
    trouble = _mismatch(job)
    if trouble is not None:
        yield _fatal(rows_of(table), trouble)
        return
    rows = rows_of(table)
    with ThreadPoolExecutor(FETCHES) as pool:
        for row, content in zip(rows, pool.map(_fetch, rows), strict=True):
            yield _read_one(row, content, job)


def _mismatch(job: Job) -> str | None:
    """Return why this worker must not run the job (version, output folder), or None."""
    if job.gmtool_version != __version__:
        return (
            f"gmtool {__version__} on {socket.gethostname()}, but {job.gmtool_version} where the run was started: "
            "install one version on all machines"
        )
    if job.proof is not None and not Path(job.proof).exists():
        return (
            f"output folder {job.out}: not visible on {socket.gethostname()}: use a folder that all machines "
            "share, or s3://"
        )
    return None


def _fetch(row: Row) -> bytes | Failure:
    try:
        return read_file(row.source) if is_uri(row.source) else read_regular_file(row.path)
    except OSError as error:
        return Failure("unreadable", f"{row.location}: cannot be read: {error.strerror or error}")
    except GmtoolError as error:
        return Failure(error.code, row.renamed(str(error)))


def _read_one(row: Row, content: bytes | Failure, job: Job) -> pa.Table:
    if isinstance(content, Failure):
        return to_table([row.failed(content)])
    row = replace(row, sha256=hashlib.sha256(content).hexdigest())
    past = None if row.past is None else Record.from_line(row.past.encode("ascii"))
    if past is not None and past.sha256 == row.sha256 and all(_is_whole(file, job.out) for file in past.outputs):
        return to_table([replace(row, skipped=True, warning=past.warning, outputs=past.outputs, past=None)])
    started = time.perf_counter()
    with limited_time(PATIENCE_S):
        decoded = decode(row.path, None, job.options.decode, content)
    row = replace(row, past=None, seconds={"decode": time.perf_counter() - started})
    if isinstance(decoded, Failure):
        return to_table([row.failed(replace(decoded, message=row.renamed(decoded.message)))])
    warning = None if decoded.warning is None else row.renamed(decoded.warning)
    height, width = decoded.pixels.shape[:2]
    return to_table([replace(row, size=(height, width), warning=warning)], pixels=[decoded.pixels])


def _is_whole(file: OutputFile, out: str) -> bool:
    if not is_uri(out):
        return file.is_whole(Path(out))
    try:
        content = read_file(join(out, file.path))
    except OSError:
        return False
    return len(content) == file.bytes and hashlib.sha256(content).hexdigest() == file.sha256


class Predictor:
    """Predicting actor with the model; Ray restarts it if it dies.

    Args:
        job: Description of the run.
        model: Ray's reference to the content of the model file, or the content.
    """

    def __init__(self, job: Job, model: Any) -> None:
        import ray

        self._job = job
        self._backend: Backend | None = None
        self._trouble = _mismatch(job)
        if self._trouble is None:
            try:
                self._backend = _open(ray.get(model) if isinstance(model, ray.ObjectRef) else model, job)
            except GmtoolError as error:
                self._trouble = f"{error} (on {socket.gethostname()})"

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Predict a table of images; yield a table for each batch, and one of rows that need nothing."""
        if self._backend is None:
            yield _fatal(rows_of(table), str(self._trouble))
        else:
            yield from _predict_rows(table, self._job, self._backend)


def _open(content: bytes, job: Job) -> Backend:
    with temporary_dir() as folder:
        path = folder / f"model{Path(job.model).suffix}"
        path.write_bytes(content)
        return open_backend(path, device=job.device, threads=job.threads)


@_guarded
def _predict_rows(table: pa.Table, job: Job, backend: Backend) -> Iterator[pa.Table]:
    rows = rows_of(table)
    options, tiling = job.options.compute, job.options.compute.tiling

    def kind(place: int) -> Hashable | None:
        height, width = _size(rows[place])
        if tiling is not None and tiling.applies_to(height, width):
            return None
        return padded_size(height, width, options.pad_px)

    settled = [row for row in rows if row.is_settled]
    if settled:
        yield to_table(settled)
    batch = job.options.batch or backend.preferred_batch
    grouper = Grouper[int](batch, max_waiting=3 * batch, kind=kind)
    for place, row in enumerate(rows):
        for group in [] if row.is_settled else grouper.add(place):
            yield _predict_group(table, rows, group, job, backend)
    for group in grouper.flush():
        yield _predict_group(table, rows, group, job, backend)


def _predict_group(
    table: pa.Table, rows: Sequence[Row], group: Sequence[int], job: Job, backend: Backend
) -> pa.Table:
    images = [array_of(table, "pixels", place, (*_size(rows[place]), 3)) for place in group]
    pixels = [image for image in images if image is not None]
    assert len(pixels) == len(group)
    started = time.perf_counter()
    computed = predict_batch(backend, pixels, job.options.compute, names=[rows[place].location for place in group])
    each = (time.perf_counter() - started) / len(group)
    done = []
    for place, result in zip(group, computed.results, strict=True):
        row = replace(rows[place], backend=backend.description, seconds={**rows[place].seconds, "compute": each})
        done.append(row.failed(result) if isinstance(result, Failure) else row)
    labels = [None if isinstance(result, Failure) else result for result in computed.results]
    keep_pixels = any(map(needs_pixels, job.options.formats))
    return to_table(
        done,
        pixels=[image if keep_pixels else None for image in pixels],
        mask=[None if result is None else result.mask for result in labels],
        confidence=[None if result is None else result.confidence for result in labels],
    )


@_guarded
def write_rows(table: pa.Table, job: Job) -> Iterator[pa.Table]:
    """Encode and write the masks of a table; a repeated task writes them again."""
    rows = rows_of(table)
    store: MaskStore = StoredMasks(job.out) if is_uri(job.out) else MaskFolders(Path(job.out))
    with ThreadPoolExecutor(WRITES) as pool:
        done = pool.map(lambda place: _write_one(table, rows[place], place, job, store), range(len(rows)))
        yield to_table(list(done))


def _write_one(table: pa.Table, row: Row, place: int, job: Job, store: MaskStore) -> Row:
    if row.is_settled:
        return row
    size = _size(row)
    mask = array_of(table, "mask", place, size)
    assert mask is not None
    item = MaskItem(
        row.output_path,
        mask,
        array_of(table, "confidence", place, size),
        array_of(table, "pixels", place, (*size, 3)),
        row.coco_id,
        row.source,
        job.options.outlines,
    )
    started = time.perf_counter()
    (written,) = write_outputs([item], job.classes, job.options.formats, store)
    row = replace(row, seconds={**row.seconds, "encode": time.perf_counter() - started})
    return row.failed(written) if isinstance(written, Failure) else replace(row, outputs=written)


def _size(row: Row) -> tuple[int, int]:
    assert row.size is not None
    return row.size
