"""Prediction pipeline on Ray Data: reading tasks, predicting actors, writing tasks."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Generator, Iterable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from gmtool.errors import BackendError, DataError
from gmtool_serving.backends.base import Backend
from gmtool_serving.cluster.ray import IO_CPUS, Cluster, quieten
from gmtool_serving.cluster.rows import Row, rows_of, to_table
from gmtool_serving.cluster.workers import Job, Predictor, read_rows, write_rows
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.outputs.manifest import Record
from gmtool_serving.pipeline.channel import Clock
from gmtool_serving.pipeline.pipeline import LAST_WORDS_S, Clocks, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray.data import Dataset

BLOCK = 32
"""Images of a task; when a worker dies, that many are repeated."""
RETRIES = 2
"""Times that Ray repeats the work of a dead worker."""
MAX_LOST_BLOCKS = 100
"""Lost blocks that are repeated image by image; beyond that the run fails."""


class RayPipeline:
    """Prediction pipeline on a Ray cluster, in place of `Pipeline`.

    Args:
        cluster: Ray cluster. A stopped run leaves it, which ends its tasks.
        job: Description of the run for workers.
        model: Content of the model file.
        backend: The model as opened on this machine; its description becomes that of the workers.
        find_past: Returns an earlier run's record of an input, which the reading worker verifies, or None.
    """

    def __init__(
        self,
        cluster: Cluster,
        job: Job,
        model: bytes,
        backend: Backend,
        *,
        find_past: Callable[[InputImage], Record | None],
    ) -> None:
        io = max(1, cluster.io_tasks // 2)
        self.clocks = Clocks(Clock(io), Clock(cluster.actors), Clock(io))
        self._cluster, self._job, self._model, self._backend = cluster, job, model, backend
        self._find_past = find_past
        self._arrived: SimpleQueue[Row | BaseException | None] = SimpleQueue()
        self._stopped = False

    def run(self, images: Sequence[InputImage]) -> Generator[Sequence[Outcome]]:
        """Yield the outcomes of all images as soon as they are known.

        Raises:
            BackendError: The cluster is lost, or Ray failed.
            DataError: A worker cannot run the job.
        """
        # Run Ray in a thread: a signal can wake this one
        pending = dict(enumerate(images))
        thread = threading.Thread(target=self._consume, args=(images,), name="ray", daemon=True)
        thread.start()
        # Pass outcomes on as they arrive
        try:
            while True:
                row = self._arrived.get()
                if row is None:
                    break
                if isinstance(row, BaseException):
                    raise BackendError(f"the run on Ray ended: {_first_line(row)}") from row
                if row.fatal is not None:
                    raise DataError(row.fatal)
                image = pending.pop(row.index, None)
                if image is not None:  # else a repetition
                    self._count(row)
                    yield [row.outcome(image)]
            # Images that never arrived were lost with their workers
            if not self._stopped:
                thread.join()
                for image in pending.values():
                    message = f"{image}: every worker that processed it died"
                    yield [Outcome(image, failure=Failure("worker_died", message))]
        finally:
            if thread.is_alive():
                self._stopped = True
                self._cluster.close()
            thread.join(timeout=LAST_WORDS_S)

    def stop(self) -> None:
        """End `run` after the outcomes that are known by now. Safe in a signal handler."""
        self._stopped = True
        self._arrived.put(None)

    def _consume(self, images: Sequence[InputImage]) -> None:
        """Put rows into the queue as they arrive; then repeat lost blocks image by image."""
        import ray

        try:
            quieten()
            model = ray.put(self._model)
            seen: set[int] = set()
            self._pass(images, range(len(images)), model, seen, block=BLOCK)
            lost = [index for index in range(len(images)) if index not in seen]
            if lost and not self._stopped:
                # A dying worker loses its whole block: repeated one by one, only the failing image is lost
                self._pass(images, lost, model, seen, block=1)
            self._arrived.put(None)
        except BaseException as error:
            self._arrived.put(None if self._stopped else error)

    def _pass(
        self, images: Sequence[InputImage], wanted: Sequence[int], model: Any, seen: set[int], *, block: int
    ) -> None:
        for batch in self._dataset(images, wanted, model, block).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for row in rows_of(batch):
                seen.add(row.index)
                self._arrived.put(row)
            if self._stopped:
                return

    def _dataset(self, images: Sequence[InputImage], wanted: Sequence[int], model: Any, block: int) -> Dataset:
        from ray.data import ActorPoolStrategy, DataContext, from_arrow
        from ray.util.annotations import RayDeprecationWarning

        # Limits of losses and actors
        context = DataContext.get_current()
        context.max_errored_blocks = MAX_LOST_BLOCKS if block > 1 else -1
        cluster = self._cluster
        pool = ActorPoolStrategy(
            min_size=1,
            max_size=cluster.actors,
            initial_size=cluster.first_actors,
            max_tasks_in_flight_per_actor=2 if block > 1 else 1,
        )
        common: dict[str, Any] = {"batch_size": block, "batch_format": "pyarrow", "zero_copy_batch": True}
        with warnings.catch_warnings():
            # Without these limits Ray retries forever; from 2.64 on it will have other names for them
            warnings.simplefilter("ignore", RayDeprecationWarning)
            # Read, predict, write
            rows = from_arrow([to_table(rows) for rows in self._blocks(images, wanted, block)])
            read = rows.map_batches(
                _untyped(read_rows), fn_kwargs={"job": self._job}, num_cpus=IO_CPUS, max_retries=RETRIES, **common
            )
            predicted = read.map_batches(
                Predictor,
                fn_constructor_kwargs={"job": self._job, "model": model},
                compute=pool,
                num_cpus=cluster.cpus,
                num_gpus=cluster.gpus or None,
                max_task_retries=RETRIES,
                **common,
            )
            return predicted.map_batches(
                _untyped(write_rows), fn_kwargs={"job": self._job}, num_cpus=IO_CPUS, max_retries=RETRIES, **common
            )

    def _blocks(self, images: Sequence[InputImage], wanted: Sequence[int], block: int) -> Iterable[list[Row]]:
        for start in range(0, len(wanted), block):
            yield [self._row(index, images[index]) for index in wanted[start : start + block]]

    def _row(self, index: int, image: InputImage) -> Row:
        past = self._find_past(image)
        return Row.of(index, image, None if past is None else past.to_line().decode("ascii"))

    def _count(self, row: Row) -> None:
        for name, seconds in row.seconds.items():
            clock: Clock = getattr(self.clocks, name)
            clock.busy_s += seconds
        if row.backend is not None:
            self._backend.description = f"{row.backend} on Ray {self._cluster.version}"
        if row.outputs and not row.skipped:
            self.clocks.images += 1


def _untyped(stage: Any) -> Any:
    """Return a stage without its type: Ray's types allow no arguments beside the table."""
    return stage


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
