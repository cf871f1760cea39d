"""Start or join a Ray cluster, silence it, and divide its resources."""

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
from gmtool_serving.backends.base import InferenceDevice

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

IO_CPUS = 0.5
"""CPUs of a reading or writing task in Ray's accounting: mostly they wait for disk or network."""
IO_SHARE = 0.1
"""Share of a cluster's CPUs for reading and writing, at least one CPU."""
OBJECT_STORE_BYTES = 1 << 30
"""Shared memory of a local Ray, for images between stages."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no usage statistics
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # do not send the working folder of a run under uv to workers
    "RAY_ENABLE_AUTO_CONNECT": "0",  # do not start another Ray from a thread that calls it after the end
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # no native log on stderr
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # no messages about dead workers on stdout
}
"""Environment variables that Ray reads on import; existing values are kept."""

SETTINGS_OF_LOCAL = {
    "RAY_AUTH_MODE": "token",  # without it, anyone who reaches its ports can run code
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on 127.0.0.1, on Linux too
}
"""Environment variables of a local Ray; each process has a new token."""
SESSION_PREFIX = "gmtool-ray-"
CLAIM_NAME = "gmtool.lock"
"""File in the temporary folder of a local Ray, locked by its run."""

_ADDRESS = re.compile(r"auto|local|\[?[\w.:-]+\]?:\d+")


@dataclass(frozen=True)
class Wanted:
    """Requested actors and their resources; None for the cluster's default."""

    actors: int | None = None
    """Number of predicting actors."""
    cpus: float | None = None
    """CPUs of each actor."""
    gpus: float | None = None
    """GPUs of each actor; 0.5 if two share one."""


@dataclass
class Cluster:
    """Ray cluster that this process is connected to, and its division."""

    actors: int
    cpus: float
    gpus: float
    first_actors: int
    """Actors that fit into the cluster now."""
    io_tasks: int
    """Approximate number of reading and writing tasks at once."""
    version: str
    folder: Path | None = None
    """Temporary folder of a local Ray."""
    is_ours: bool = True
    """True if this object opened the connection, and `close` ends it."""
    claim: int | None = None
    """Descriptor of the lock in `folder`."""

    def close(self) -> None:
        """Disconnect from the cluster, which ends the tasks of this process."""
        import ray

        if self.is_ours:
            self.is_ours = False
            ray.shutdown()
            _remove_session(self.folder, self.claim)

    def __enter__(self) -> Cluster:
        """Return the cluster."""
        return self

    def __exit__(self, *_: object) -> None:
        """Disconnect."""
        self.close()


def check_address(address: str) -> None:
    """Check the address of a cluster.

    Raises:
        UsageError: Not `auto`, `local` or HOST:PORT.
    """
    if address.startswith("ray://"):
        raise UsageError(
            f"--ray {address}: Ray's client protocol does not carry data pipelines: start the run on a machine of "
            "the cluster (ray job submit does that)"
        )
    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"--ray {address}: expected auto, local or HOST:PORT")


def connect(address: str, wanted: Wanted, *, device: InferenceDevice) -> Cluster:
    """Start Ray on this machine (`local`) or join a cluster (`auto`: on this machine or at RAY_ADDRESS).

    An existing connection of this process is used and stays open.

    Raises:
        BackendError: Cluster unavailable, or too small for the requested actors.
        MissingExtraError: Ray is not installed.
    """
    # Environment variables, which Ray reads on import
    check_address(address)
    is_local = address == "local"
    # Too late for a Ray that is imported already: it would differ from the processes that it starts. It asks for a
    # token all the same
    of_local = SETTINGS_OF_LOCAL if is_local and not _is_imported() else {}
    for name, value in (SETTINGS | of_local).items():
        os.environ.setdefault(name, value)
    if is_local and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with needs_extra("ray", "predicting on Ray"):
        import ray
        import ray.data
    # An existing connection
    if ray.is_initialized():
        return _share(_resources(), wanted, device, version=ray.__version__, is_ours=False)
    # Start or join
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
                "--ray auto: no Ray cluster on this machine, and RAY_ADDRESS is not set: start one with ray start "
                "--head, or use --ray local"
            ) from error
        if isinstance(error, ConnectionError | RuntimeError | ValueError | TimeoutError):
            raise BackendError(f"--ray {address}: {str(error).strip().splitlines()[0]}") from error
        raise


def _is_imported() -> bool:
    return "ray" in sys.modules


def _claim(folder: Path) -> int | None:
    """Lock a file in the folder of a new Ray until this process ends; None on Windows."""
    if fcntl is None:
        return None
    new = folder / f"{CLAIM_NAME}.new"
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    new.rename(folder / CLAIM_NAME)  # locked before other processes can find it
    return descriptor


def _sweep_sessions(parent: Path) -> None:
    """Delete the Ray folders of this user's killed runs; no links, and no folders of other users."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{SESSION_PREFIX}*"):
        try:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            descriptor = os.open(folder / CLAIM_NAME, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # not a folder of gmtool, or just deleted
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its run is alive
            os.close(descriptor)
            continue
        _remove_session(folder, descriptor)


def _remove_session(folder: Path | None, claim: int | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    if claim is not None:
        os.close(claim)


def quieten() -> None:
    """Restrict Ray Data's log to its files."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Drop the output of Ray's native part when it starts: it is about its own log; failures are raised."""
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
    """Keep Ray from replacing the SIGTERM handler (there is no setting); its own exits with code 15."""
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


def _start(folder: Path, wanted: Wanted, device: InferenceDevice) -> None:
    import ray

    cores = processors()
    # Reading and writing get CPUs of their own in Ray's accounting, beside those of the actors
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
    device: InferenceDevice,
    *,
    version: str,
    folder: Path | None = None,
    is_ours: bool = True,
) -> Cluster:
    """Divide the resources of a cluster between actors and reading and writing tasks."""
    # Requested resources of an actor
    all_cpus = resources.get("CPU", 0.0)
    all_gpus = 0.0 if device == "cpu" else resources.get("GPU", 0.0)
    gpus = wanted.gpus if wanted.gpus is not None else float(all_gpus > 0)
    if gpus == 0 and device == "cuda":
        raise BackendError("--device cuda: the Ray cluster has no GPU: use --device cpu")
    cpus = 1.0 if wanted.cpus is None else wanted.cpus
    # Number of actors that fit
    io_cpus = max(1.0, IO_SHARE * all_cpus)
    fit = math.floor((all_cpus - io_cpus) / cpus + 1e-6) if cpus else 1 << 16
    if gpus:
        fit = min(fit, math.floor(all_gpus / gpus + 1e-6))
    if fit < 1:
        raise BackendError(
            f"the Ray cluster has {all_cpus:g} CPUs and {all_gpus:g} GPUs: too few for an actor of {cpus:g} CPUs "
            f"and {gpus:g} GPUs beside {io_cpus:g} CPUs for reading and writing: lower --ray-cpus or --ray-gpus"
        )
    actors = wanted.actors or fit
    left = max(io_cpus, all_cpus - min(actors, fit) * cpus)
    return Cluster(
        actors=actors,
        cpus=cpus,
        gpus=gpus,
        first_actors=min(actors, fit),
        io_tasks=int(left / IO_CPUS),
        version=version,
        folder=folder,
        is_ours=is_ours,
    )


def _short_folder() -> str:
    """Return a folder with a short path: it contains Ray's sockets, whose paths have at most 107 bytes."""
    return "/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()
