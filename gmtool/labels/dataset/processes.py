"""Child processes of an import of thousands of labelme files; the result does not depend on their number."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from gmtool.errors import GmtoolError
from gmtool.labels.dataset.images import ImageWriter, Outcome, Placed
from gmtool.labels.dataset.worker import THREADS, file_of, outcome_of, placed_of, settings_of
from gmtool.labels.readers.labelme import LabelmeFile, read_files, shapes_of
from gmtool.labels.shapes import Labels, ShapeList
from gmtool.resources import child_environment, processors

FEW = 500
"""Files that one process reads and writes as fast: others take 0.3 s to start."""
MAX_PROCESSES = 8
TOGETHER = 8
"""Files of a request, and images whose masks are written together."""
CLOSE_S = 1.0
"""Seconds that children have to finish the masks that they are writing."""

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class KeptShapes:
    """Shapes of a file that a child has read and keeps; here they are read again."""

    path: Path
    request: int
    """Number of the request that read it, by which its child is found."""

    def __call__(self, size: tuple[int, int]) -> ShapeList:
        return shapes_of(self.path, size)


class Processes:
    """Children that read files of labelme, and then write their images.

    Args:
        number: Children; None: by the number of files and processors. Fewer than two: this process does the work.
    """

    def __init__(self, number: int | None = None) -> None:
        self._number = number
        self.children: list[_Child] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            child.close()
        for child in self.children:
            child.join()

    @property
    def started_ahead(self) -> int:
        """Return the number of requests that keep all children, or the threads of this process, at work."""
        return max(1, len(self.children)) * (THREADS + 2)

    def read(self, files: Sequence[Path]) -> Iterator[tuple[LabelmeFile, Labels]]:
        """Yield the content of files in order; see `read_files`."""
        number = self._number
        if number is None:
            number = min(MAX_PROCESSES, processors()) if len(files) >= FEW else 1
        if number < 2:
            yield from read_files(files)
            return
        self.children = [_Child() for _ in range(number)]
        groups = [files[start : start + TOGETHER] for start in range(0, len(files), TOGETHER)]

        def start(place: int) -> Future[Any]:
            return self._child_of(place).ask("read", [str(path) for path in groups[place]])

        answers: Iterable[list[Any]]
        for place, answers in enumerate(in_order(start, range(len(groups)), self.started_ahead)):
            for path, file in zip(groups[place], answers, strict=True):
                yield file_of(path, file), KeptShapes(path, place)

    def prepare(self, writer: ImageWriter) -> None:
        """Give the children the settings of the data set."""
        for asked in [child.ask("prepare", settings_of(writer)) for child in self.children]:
            asked.result()

    def write(self, images: Sequence[Placed]) -> Future[list[Outcome]]:
        """Let the child that has read the files of some images write them."""
        kept = images[0].image.labels
        assert isinstance(kept, KeptShapes)
        argument = [placed_of(each) for each in images]
        return self._child_of(kept.request).ask("write", argument, lambda value: [*map(outcome_of, value)])

    def _child_of(self, request: int) -> _Child:
        return self.children[request % len(self.children)]


def in_order(start: Callable[[S], Future[T]], items: Iterable[S], most: int) -> Iterator[T]:
    """Yield the results of tasks in the order of their items, with at most `most` tasks started ahead."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        if len(waiting) >= most:
            yield waiting.popleft().result()
        waiting.append(start(item))
    while waiting:
        yield waiting.popleft().result()


class _Child:
    """One child, and a thread that takes its answers.

    Neither fork nor multiprocessing's spawn: the first copies locks of other threads, the second imports the
    caller's main module.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from gmtool.labels.dataset.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            process_group=0,  # Ctrl-C reaches the group of the terminal; this process ends its children itself
        )
        self._numbers = count()
        self._waiting: dict[int, tuple[Future[Any], Callable[[Any], Any]]] = {}
        self._thread = threading.Thread(target=self._receive, name="import-answers", daemon=True)
        self._thread.start()

    def ask(self, kind: str, argument: Any, convert: Callable[[Any], Any] = lambda value: value) -> Future[Any]:
        """Send a request; return its answer, converted."""
        future: Future[Any] = Future()
        number = next(self._numbers)
        self._waiting[number] = future, convert
        content = json.dumps({"kind": kind, "number": number, "argument": argument}).encode("ascii") + b"\n"
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(content)
            self.process.stdin.flush()
        except BrokenPipeError:
            self._fail_all()
        return future

    def close(self) -> None:
        """Let the child end: it finishes the masks that it is writing."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def join(self) -> None:
        """Wait until the child has ended."""
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _receive(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.endswith(b"\n"):  # killed while it was writing
                break
            answer = json.loads(line)
            future, convert = self._waiting.pop(answer["number"])
            if "os_error" in answer:
                future.set_exception(OSError(*answer["os_error"]))
            elif "bug" in answer:
                future.set_exception(RuntimeError(answer["bug"]))
            else:
                future.set_result(convert(answer["value"]))
        self._fail_all()

    def _fail_all(self) -> None:
        """Fail what the child, which has ended, did not answer."""
        code = self.process.wait()
        ended = {int(number): number.name for number in signal.Signals}.get(-code, f"exit code {code}")
        error = GmtoolError(f"a process of the import ended ({ended}): run it again, it goes on")
        while self._waiting:
            with contextlib.suppress(KeyError):  # the other thread was faster
                self._waiting.popitem()[1][0].set_exception(error)
