"""How much memory, processor, disk and open files this machine, or its container, lets a process have."""

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
"""Where Linux keeps the memory that processes share; it may be smaller than the machine's."""
MEMINFO = Path("/proc/meminfo")
CGROUP_DIR = Path("/sys/fs/cgroup")
"""Limits of a container on Linux: those of cgroup 2, and a folder for each controller of cgroup 1."""
OWN_CGROUPS = Path("/proc/self/cgroup")
"""Which control groups this process is in."""
MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Limit and use, in cgroup 2 and 1."""
UNLIMITED_BYTES = 2**60
"""cgroup 1 tells a number this large for no limit."""


@dataclass(frozen=True)
class Resources:
    """What there is. None: not told on this system."""

    memory_bytes: int | None
    available_bytes: int | None
    """What can be taken before the machine swaps or its container is stopped."""
    container_bytes: int | None
    """The container's limit; None if there is none."""
    cores: int
    """Processor threads that this process may run on."""
    container_cores: float | None
    """The container's share of processor time, in cores; None if it is not limited."""
    shared_bytes: int | None
    """Size of `/dev/shm`."""
    shared_free_bytes: int | None
    disk_free_bytes: int
    """Of the disk of `folder`."""
    folder: Path
    writable: bool
    """Whether files can be made in `folder`."""
    open_files: int | None
    """Limit of this process."""


def read_resources(folder: Path) -> Resources:
    """Return what this machine has; the disk is that of an existing `folder`."""
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
    """Return how many bytes can be taken before the machine swaps or its container or process is stopped."""
    physical = physical_memory()
    if physical is None:
        return sys.maxsize
    available = physical
    if MEMINFO.is_file():  # Linux: what its file cache would give back counts as available
        available = _fields(MEMINFO)["MemAvailable:"] * 1024
    for limit, used, file_cache in _memory_limits():
        available = min(available, limit - used + file_cache)
    return max(0, min(available, _address_space()))


def container_memory() -> int | None:
    """Return the limit that this process's container has, in bytes; None if there is none."""
    return min((limit for limit, _, _ in _memory_limits()), default=None)


def processors() -> int:
    """Return the smaller of the cores that this process may run on and the processor time of its container."""
    quota = _container_cores()
    return _allowed_cores() if quota is None else max(1, min(_allowed_cores(), int(quota)))


def runtime_threads(asked: int) -> int:
    """Return how many threads a runtime is told to take, 0 for its own choice.

    A runtime by itself takes one for each core of the machine, which is right only if this process may use all.

    Args:
        asked: What a person asked for; 0 for nothing.
    """
    return asked or (processors() if processors() < (os.cpu_count() or 1) else 0)


def physical_memory() -> int | None:
    """Return the machine's memory in bytes; None where the system does not tell."""
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def temporary_dir() -> Iterator[Path]:
    """Make a folder for the time of the block.

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
    """Return the smallest share of processor time of this process's control groups, in cores."""
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
    """Yield limit, use, and file cache that would be given back, in bytes, of each control group with a limit."""
    for folder in _own_cgroups("memory"):
        for limit_name, used_name in MEMORY_FILES:
            limit = folder / limit_name
            if not limit.is_file() or (text := limit.read_text().strip()) == "max" or int(text) >= UNLIMITED_BYTES:
                continue
            # In cgroup 1, `inactive_file` alone leaves out the groups below
            fields = _fields(folder / "memory.stat")
            file_cache = fields.get("total_inactive_file", fields.get("inactive_file", 0))
            yield int(text), int((folder / used_name).read_text()), file_cache


def _own_cgroups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from its own up to the root: the limits of all hold.

    A container sees its own group as the root, but with cgroup 1 is told the path that its host sees.
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
    import resource  # not on Windows, which has no physical memory to tell either

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _open_files() -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number a line."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
