"""Ray itself: started on this machine or joined, kept quiet, and how much of it a run takes."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gmtool.errors import BackendError, UsageError, needs_extra
from gmtool.resources import processors
from gmtool_serving.backends.base import DeviceName

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

IO_CPUS = 0.5
"""Processors that a reading or a writing task takes in Ray's books: mostly they wait for disk or network."""
IO_SHARE = 0.1
"""Share of a cluster's processors that is left to them, and at least one processor."""
OBJECT_STORE_BYTES = 1 << 30
"""Shared memory of a Ray that is started here; images between two stages lie in it."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent home
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # a run under uv does not send its folder to all workers
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that asks after the end does not start another Ray
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its native part writes no log to stderr
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what it says of workers that died does not go to stdout
}
"""Settings that Ray reads from the environment when it is imported; what is set there already stays."""

SETTINGS_OF_LOCAL = {
    "RAY_AUTH_MODE": "token",  # whoever reaches its ports could else run code here
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # it listens on 127.0.0.1, on Linux too
}
"""The same for a Ray that is started here; the token is a new one for each process."""
SESSION_PREFIX = "gmtool-ray-"
CLAIM_NAME = "gmtool.lock"
"""File in the temporary folder of a Ray that was started here, locked by its run for as long as it lives."""

_ADDRESS = re.compile(r"auto|local|\[?[\w.:-]+\]?:\d+")


@dataclass(frozen=True)
class Wanted:
    """What a person asked for; None for what suits the cluster."""

    actors: int | None = None
    """Workers that predict."""
    cpus: float | None = None
    """Processors of each."""
    gpus: float | None = None
    """GPUs of each; a half where two share one."""


@dataclass
class Cluster:
    """A Ray that this process is connected to."""

    actors: int
    cpus: float
    gpus: float
    first_actors: int
    """Actors that there is room for now."""
    io_tasks: int
    """Reading and writing tasks that run at once, about."""
    version: str
    folder: Path | None = None
    """Temporary folder of a Ray that was started here."""
    is_ours: bool = True
    """Whether `close` leaves it."""
    claim: int | None = None
    """Descriptor of the lock in `folder`."""

    def close(self) -> None:
        """Leave the cluster: what it still does for this process is ended there."""
        import ray

        if self.is_ours:
            self.is_ours = False
            ray.shutdown()
            _remove_session(self.folder, self.claim)

    def __enter__(self) -> Cluster:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave it."""
        self.close()


def check_address(address: str) -> None:
    """Refuse what is no address of a cluster.

    Raises:
        UsageError: It is not one.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address}: Ray's client protocol does not carry data pipelines: start the run on a machine of "
            "the cluster (ray job submit does that)"
        )
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"--ray {address}: expected auto, local or HOST:PORT")


def connect(address: str, wanted: Wanted, *, device: DeviceName) -> Cluster:
    """Start Ray on this machine (`local`) or join a cluster (`auto`: the one that runs here or RAY_ADDRESS names).

    A Ray that this process is connected to already is taken as it is, and left connected.

    Raises:
        BackendError: There is no such cluster, or what was asked for does not fit into it.
        MissingExtraError: Ray is not installed.
    """
    check_address(address)
    is_local = address == "local"
    # Ray read them when it was imported: it would know less than the processes that it starts. It asks for a token
    # then all the same
    of_local = SETTINGS_OF_LOCAL if is_local and not _is_imported() else {}
    for name, value in (SETTINGS | of_local).items():
        os.environ.setdefault(name, value)
    if is_local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with needs_extra("ray", "predicting on Ray"):
        import ray
        import ray.data
    if ray.is_initialized():
        return _share(_resources(), wanted, device, version=ray.__version__, is_ours=False)
    folder = claim = None
    if is_local:
        _sweep_sessions(Path(_short_folder()))
        folder = Path(tempfile.mkdtemp(prefix=SESSION_PREFIX, dir=_short_folder()))
        claim = _claim(folder)
    try:
        with _native_stderr_closed():
            if folder is not None:
                _start(folder, wanted, device)
            else:
                with _sigterm_handler_kept():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        cluster = _share(_resources(), wanted, device, version=ray.__version__, folder=folder)
        cluster.claim = claim
        return cluster
    except BaseException as error:
        ray.shutdown()
        _remove_session(folder, claim)
        if isinstance(error, ConnectionError) and address == "auto":
            raise BackendError(
                "--ray auto: there is no Ray cluster on this machine and RAY_ADDRESS names none: ray start --head "
                "starts one; --ray local needs none"
            ) from error
        if isinstance(error, ConnectionError | RuntimeError | ValueError | TimeoutError):
            raise BackendError(f"--ray {address}: {str(error).strip().splitlines()[0]}") from error
        raise


def _is_imported() -> bool:
    return "ray" in sys.modules


def _claim(folder: Path) -> int | None:
    """Lock a file in the folder of a new Ray until this process ends, however it ends; None on Windows."""
    if fcntl is None:
        return None
    new = folder / f"{CLAIM_NAME}.new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(folder / CLAIM_NAME)  # locked before it has the name that others look for
    return descriptor


def _sweep_sessions(parent: Path) -> None:
    """Delete the folders that Rays of this user's killed runs left; nothing that is a link or of somebody else."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{SESSION_PREFIX}*"):
        try:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            descriptor = os.open(folder / CLAIM_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # none of ours, or just deleted
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its run lives
            os.close(descriptor)
            continue
        _remove_session(folder, descriptor)


def _remove_session(folder: Path | None, claim: int | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    if claim is not None:
        os.close(claim)


def quieten() -> None:
    """Let Ray Data write its log into its files alone."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Drop what Ray's native part prints when it starts: it is about its own log, and failures are raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Keep Ray from replacing the handler of SIGTERM, which it has no setting for; its own exits with code 15."""
    from ray._private import utils

    replace = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = replace


def _resources() -> dict[str, float]:
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def _start(folder: Path, wanted: Wanted, device: DeviceName) -> None:
    import ray

    cores = processors()
    # Reading and writing get processors of their own in the books, beside what actors take
    asked = (wanted.actors or 0) * (wanted.cpus or 1.0)
    with _sigterm_handler_kept():
        ray.init(
            address="local",
            num_cpus=math.ceil(max(cores, asked) + 1),
            num_gpus=0 if device == "cpu" else None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
        )


def _share(
    resources: dict[str, float],
    wanted: Wanted,
    device: DeviceName,
    *,
    version: str,
    folder: Path | None = None,
    is_ours: bool = True,
) -> Cluster:
    """Divide a cluster between actors, and reading and writing."""
    all_cpus = resources.get("CPU", 0.0)
    all_gpus = 0.0 if device == "cpu" else resources.get("GPU", 0.0)
    gpus = wanted.gpus if wanted.gpus is not None else float(all_gpus > 0)
    if gpus == 0 and device == "cuda":
        raise BackendError("--device cuda: there is no GPU in the Ray cluster: take --device cpu")
    cpus = 1.0 if wanted.cpus is None else wanted.cpus
    io_cpus = max(1.0, IO_SHARE * all_cpus)
    fit = math.floor((all_cpus - io_cpus) / cpus + 1e-6) if cpus else 1 << 16
    if gpus:
        fit = min(fit, math.floor(all_gpus / gpus + 1e-6))
    if fit < 1:
        raise BackendError(
            f"the Ray cluster has {all_cpus:g} CPUs and {all_gpus:g} GPUs: no room for an actor of {cpus:g} CPUs "
            f"and {gpus:g} GPUs beside {io_cpus:g} CPUs for reading and writing: take smaller ones (--ray-cpus, "
            "--ray-gpus)"
        )
    actors = wanted.actors or fit
    left = max(io_cpus, all_cpus - min(actors, fit) * cpus)
    return Cluster(actors, cpus, gpus, min(actors, fit), int(left / IO_CPUS), version, folder, is_ours)


def _short_folder() -> str:
    """Return a folder with a short path: the sockets of Ray lie in it, whose paths have 107 bytes at most."""
    return "/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()
