"""Measurements of an unfinished selection, saved in its folder so that the same command goes on with them."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np

from gmtool.artifact.runs import require_empty
from gmtool.errors import ConfigError
from gmtool.files import sha256_of_lines, write_atomically
from gmtool_serving.select.measure import Measures

NAME = "unfinished.npz"
EVERY_S = 60.0
"""Seconds between two savings."""
LARGEST_SHARE = 0.02
"""Share of the time that saving may take; it is saved less often then."""
OTHERS = ("scores.csv", "selected.html")
"""Files that are written before a selection is finished."""
ARRAYS = ("is_measured", "shares", "doubt", "appearance", "thumbnails")


def require_unused(out: Path) -> None:
    """Check that a folder has nothing but, perhaps, what an unfinished selection left.

    Raises:
        ConfigError: It has other files.
    """
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if NAME not in names or names - {NAME, *OTHERS}:
        require_empty(out)


class Saved:
    """Saves measurements from time to time.

    Args:
        out: Folder of the selection.
        origin: What the measurements depend on: model, images, options; others are refused.
    """

    def __init__(self, out: Path, origin: list[str]) -> None:
        self.path = out / NAME
        self._key = sha256_of_lines(origin)
        self._last, self._cost = time.monotonic(), 0.0
        self._measures: Measures | None = None

    def load(self, measures: Measures) -> None:
        """Fill measurements with those that were saved, if there are some.

        Raises:
            ConfigError: They are of another model, pool or other options, or damaged.
        """
        self._measures = measures
        if not self.path.is_file():
            return
        remedy = "delete it, or give another folder with --out"
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                if str(saved["key"]) != self._key:
                    raise ConfigError(
                        f"{self.path} is of a selection with another model, pool or options: {remedy}"
                    )
                for name in ARRAYS:
                    getattr(measures, name)[...] = saved[name]
                failures = json.loads(str(saved["failures"]))
                measures.failures.update({int(place): line for place, line in failures.items()})
                measures.embedding = saved.get("embedding")
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{self.path} is damaged: {remedy}") from error

    def save(self, measures: Measures) -> None:
        """Save measurements if it is time."""
        if time.monotonic() - self._last >= max(EVERY_S, self._cost / LARGEST_SHARE):
            self._write(measures)

    def save_interrupted(self) -> None:
        """Save the measurements that `load` was given, if there are some."""
        if self._measures is not None and self._measures.is_measured.any():
            self._write(self._measures)

    def _write(self, measures: Measures) -> None:
        started = time.monotonic()
        arrays = {name: getattr(measures, name) for name in ARRAYS}
        if measures.embedding is not None:
            arrays["embedding"] = measures.embedding
        buffer = io.BytesIO()
        np.savez(buffer, key=np.array(self._key), failures=np.array(json.dumps(measures.failures)), **arrays)
        self.path.parent.mkdir(exist_ok=True)
        write_atomically(self.path, buffer.getbuffer().tobytes())
        self._last = time.monotonic()
        self._cost = self._last - started

    def remove(self) -> None:
        """Delete the file: the selection is finished."""
        self.path.unlink(missing_ok=True)
