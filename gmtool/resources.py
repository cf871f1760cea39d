"""Memory, processors, disk and open files available to this process, within its container."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gmtool.errors import TemporaryFolderError

SHARED_DIR = Path("/dev/shm")
"""Shared memory of Linux, which may be smaller than the memory of the machine."""
MEMINFO = Path("/proc/meminfo")
CGROUP_DIR = Path("/sys/fs/cgroup")
"""Control groups of Linux: files of cgroup 2, and one folder a controller of cgroup 1."""
OWN_CGROUPS = Path("/proc/self/cgroup")
"""Control groups of this process."""
MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Names of the files with limit and use, in cgroup 2 and 1."""
UNLIMITED_BYTES = 2**60
"""Limit from which cgroup 1 means no limit."""
MAX_DECODERS = 8
"""Largest default number of processes that decode images: more are seldom faster."""
DECODER_BYTES = 256 << 20
"""Memory of a process that decodes a photo of 12 megapixels, several copies of its pixels included."""

EXACT_INT8 = ("session.x64quantprecision", "1")
"""Setting of an ONNX Runtime session, name and value. Without it an x86 processor without VNNI (AMD before Zen 4,
Intel before Cascade Lake) adds products of 8 bits in 16, which overflow: an int8 model gives other masks there."""


@dataclass(frozen=True)
class Resources:
    """Resources of this process; None: unknown on this system."""

    memory_bytes: int | None
    available_bytes: int | None
    """Bytes that can be allocated before the machine swaps or the container is stopped."""
    container_bytes: int | None
    """Memory limit of the container; None: no limit."""
    cores: int
    """Logical processors that this process may use."""
    container_cores: float | None
    """Processor quota of the container, in cores; None: no limit."""
    shared_bytes: int | None
    """Size of `/dev/shm`."""
    shared_free_bytes: int | None
    disk_free_bytes: int
    """Free bytes on the disk of `folder`."""
    folder: Path
    writable: bool
    """Whether `folder` is writable."""
    open_files: int | None
    """Limit of open files of this process; -1: no limit."""


def read_resources(folder: Path) -> Resources:
    """Return the resources of this process, with the disk of an existing `folder`."""
    shared = shutil.disk_usage(SHARED_DIR) if SHARED_DIR.is_dir() else None
    available = available_memory()
    return Resources(
        memory_bytes=physical_memory(),
        available_bytes=None if available == sys.maxsize else available,
        container_bytes=container_memory(),
        cores=_allowed_cores(),
        container_cores=_container_cores(),
        shared_bytes=shared and shared.total,
        shared_free_bytes=shared and shared.free,
        disk_free_bytes=shutil.disk_usage(folder).free,
        folder=folder.resolve(),
        writable=os.access(folder, os.W_OK),
        open_files=_open_files(),
    )


def available_memory() -> int:
    """Return the bytes that can be allocated before the machine swaps or the container or process is stopped."""
    physical = physical_memory()
    if physical is None:
        return sys.maxsize
    available = physical
    if MEMINFO.is_file():  # Linux: reclaimable file cache counts as available
        available = _fields(MEMINFO)["MemAvailable:"] * 1024
    for limit, used, file_cache in _memory_limits():
        available = min(available, limit - used + file_cache)
    return max(0, min(available, _address_space()))


def memory_for_pixels(most: int) -> int:
    """Return `most` bytes, or an eighth of the available memory if that is less: what may be decoded ahead."""
    return min(most, available_memory() // 8)


def container_memory() -> int | None:
    """Return the memory limit of the container in bytes; None: no limit."""
    return min((limit for limit, _, _ in _memory_limits()), default=None)


def child_environment() -> dict[str, str]:
    """Return the environment of a child process that runs code of this program, without a pool of threads.

    Its modules are those of this process. It computes no linear algebra: threads for that would only take memory.
    """
    paths = os.pathsep.join(path for path in sys.path if path)
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def processors() -> int:
    """Return the number of processors: the smaller of the allowed cores and the quota of the container."""
    quota = _container_cores()
    return _allowed_cores() if quota is None else max(1, min(_allowed_cores(), int(quota)))


def decoding_processes() -> int:
    """Return the default number of processes that decode images: one a processor, as far as their memory goes."""
    return max(1, min(MAX_DECODERS, processors(), available_memory() // DECODER_BYTES))


def runtime_threads(asked: int) -> int:
    """Return the number of threads to set in a runtime; 0: its default.

    The default is one thread a core of the machine, which is wrong if this process may not use all cores.

    Args:
        asked: Number of threads set by the user; 0: not set.
    """
    return asked or (processors() if processors() < (os.cpu_count() or 1) else 0)


def physical_memory() -> int | None:
    """Return the memory of the machine in bytes; None if unknown."""
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def temporary_dir() -> Iterator[Path]:
    """Create a temporary folder for the block.

    Raises:
        TemporaryFolderError: No folder for temporary files can be written.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="gmtool-")
    except OSError as error:
        raise TemporaryFolderError(
            f"no folder for temporary files can be written ({error.strerror or error}): set TMPDIR to one that can"
        ) from error
    with folder as name:
        yield Path(name)


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _container_cores() -> float | None:
    """Return the smallest processor quota of this process's control groups, in cores."""
    shares = []
    for folder in _own_cgroups("cpu"):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        elif (folder / "cpu.cfs_quota_us").is_file():
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        else:
            continue
        if quota not in ("max", "-1"):
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def _memory_limits() -> Iterator[tuple[int, int, int]]:
    """Yield limit, use and reclaimable file cache, in bytes, of each control group with a limit."""
    for folder in _own_cgroups("memory"):
        for limit_name, used_name in MEMORY_FILES:
            limit = folder / limit_name
            if not limit.is_file() or (text := limit.read_text().strip()) == "max" or int(text) >= UNLIMITED_BYTES:
                continue
            # In cgroup 1, `inactive_file` excludes the groups below
            fields = _fields(folder / "memory.stat")
            file_cache = fields.get("total_inactive_file", fields.get("inactive_file", 0))
            yield int(text), int((folder / used_name).read_text()), file_cache


def _own_cgroups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from its own up to the root; all limits apply.

    In a container its own group is the root, but cgroup 1 reports the path on the host.
    """
    lines = OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP_DIR / controller if controllers else CGROUP_DIR
        names = [name for name in path.split("/") if name and name != ".."]
        for depth in range(len(names), -1, -1):
            yield root.joinpath(*names[:depth])


def _address_space() -> int:
    """Return the limit of this process's address space (`ulimit -v`)."""
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _open_files() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _fields(path: Path) -> dict[str, int]:
    """Read a file with one name and number a line."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
