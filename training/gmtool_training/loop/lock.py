"""Lock on a run folder: only one `gmtool train` writes into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from gmtool.errors import ConfigError

if TYPE_CHECKING:
    from gmtool_training.engine.machine import Machine

LOCK_NAME = ".gmtool-train.lock"


@contextmanager
def locked(run_dir: Path, machine: Machine) -> Iterator[None]:
    """Lock an existing run folder within the block; of several processes of a run, the first one locks.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        ConfigError: Another run has locked the folder.
    """
    if not machine.is_first:
        yield
        return
    lock = FileLock(run_dir / LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"{run_dir}: another gmtool train writes into this run folder: wait until it ends, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()
