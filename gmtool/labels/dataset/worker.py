"""Child process of an import: reads labelme files and writes their images, as its parent asks line by line.

Requests and answers are JSON: no byte of a broken child is executed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from gmtool.classes import ClassSet
from gmtool.labels.dataset.images import ImageWriter, Outcome, Placed, store
from gmtool.labels.dataset.manifest import Imported
from gmtool.labels.dataset.painting import Painted
from gmtool.labels.dataset.placing import Place
from gmtool.labels.readers.labelme import LabelmeFile, read_file, same_shapes, shapes_of
from gmtool.labels.shapes import LabeledImage, Problem, ShapeList

THREADS = 8
"""Threads that store masks: each waits for its files to reach the disk, which is faster if others wait too."""
GARBAGE = 50_000
"""New objects from which Python looks for cycles among them: the lists of each file set it off, and have none."""
MAX_KEPT_BYTES = 1 << 28
"""JSON text, in bytes, whose shapes stay in memory between reading and writing; further files are read twice."""


class Worker:
    """State of a child: shapes of the files that it has read, and the settings of the data set."""

    def __init__(self) -> None:
        self._kept: dict[str, ShapeList] = {}
        self._kept_bytes = 0
        self._writer: ImageWriter | None = None

    def read(self, names: list[str]) -> list[Any]:
        """Return the content of files, see `file_of`, and keep their shapes."""
        answer = []
        for name in names:
            path = Path(name)
            file, shapes = read_file(path, of_many=True)
            if not file.error and self._kept_bytes < MAX_KEPT_BYTES:
                self._kept_bytes += path.stat().st_size
                self._kept[name] = shapes
            answer.append([file.image_name, file.labels, file.is_drawn, file.error])
        return answer

    def prepare(self, settings: dict[str, Any]) -> None:
        """Take the settings of the data set, see `settings_of`."""
        settings["out"] = Path(settings["out"])
        settings["classes"] = ClassSet.from_dict(settings["classes"], where="settings of an import")
        self._writer = ImageWriter(**settings)

    def write(self, images: list[list[Any]]) -> Callable[[], list[Any]]:
        """Paint images, see `placed_of`; return what stores their masks and returns outcomes, see `outcome_of`."""
        assert self._writer is not None
        outcomes, masks = self._writer.prepare([self._placed(*each) for each in images])

        def finish() -> list[Any]:
            store(masks)
            return [_outcome_as_json(outcome) for outcome in outcomes]

        return finish

    def _placed(self, name: str, image: str, where: str, place: list[Any], before: list[Any] | None) -> Placed:
        kept = self._kept.pop(where, None)
        shapes = partial(shapes_of, Path(where)) if kept is None else partial(same_shapes, kept)
        labeled = LabeledImage(name, Path(image), shapes, where=where)
        return Placed(labeled, Place(*place), Imported(*before) if before else None)


def serve() -> None:
    """Answer requests on stdin until it is closed: main function of the child.

    One thread computes, so that its memory stays in the processor's cache; others wait for the disk.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which closes stdin
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    gc.set_threshold(GARBAGE)
    worker, lock = Worker(), threading.Lock()

    def send(number: int, result: dict[str, Any]) -> None:
        content = json.dumps({"number": number, **result}).encode("ascii") + b"\n"
        with lock, contextlib.suppress(BrokenPipeError):  # the parent is gone
            answers.write(content)
            answers.flush()

    def finish(number: int, work: Callable[[], Any]) -> None:
        send(number, _result_of(work))

    with ThreadPoolExecutor(THREADS) as pool:
        for line in sys.stdin.buffer:
            request = json.loads(line)
            number, work = request["number"], getattr(worker, request["kind"])
            result = _result_of(partial(work, request["argument"]))
            if callable(result.get("value")):
                pool.submit(finish, number, result["value"])
            else:
                send(number, result)
        pool.shutdown(cancel_futures=True)
    with contextlib.suppress(BrokenPipeError):
        answers.close()


def _result_of(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": work()}
    except OSError as error:
        return {"os_error": [error.errno, error.strerror, error.filename]}
    except Exception:
        return {"bug": traceback.format_exc()}


def settings_of(writer: ImageWriter) -> dict[str, Any]:
    """Return the argument of `Worker.prepare`."""
    return vars(writer) | {
        "out": str(writer.out),
        "classes": writer.classes.to_dict(),
        "index_of": dict(writer.index_of),
    }


def placed_of(each: Placed) -> list[Any]:
    """Return an image in the argument of `Worker.write`."""
    image, place, before = each
    return [
        image.name,
        str(image.image),
        image.where,
        [place.part, place.name],
        before and list(vars(before).values()),
    ]


def file_of(path: Path, answer: list[Any]) -> LabelmeFile:
    """Return a file in the answer of `Worker.read`."""
    image_name, labels, is_drawn, error = answer
    return LabelmeFile(path, image_name, tuple(labels), is_drawn, error)


def outcome_of(answer: list[Any]) -> Outcome:
    """Return an outcome in the answer of `Worker.write`."""
    record, (objects, size_px, covered_px, overlap_px), problems, change = answer
    listed = tuple(Problem(*each) for each in problems)
    painted = Painted(None, objects, size_px, covered_px, overlap_px, listed)
    return Outcome(Imported(*record) if record else None, painted, change)


def _outcome_as_json(outcome: Outcome) -> list[Any]:
    record, painted, change = outcome
    counts = [dict(painted.objects), painted.size_px, painted.covered_px, painted.overlap_px]
    problems = [list(vars(problem).values()) for problem in painted.problems]
    return [record and list(vars(record).values()), counts, problems, change]
