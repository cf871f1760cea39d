"""How much memory, processor, disk and open files this machine, or its container, lets a process have."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

SHARED_DIR = Path("/dev/shm")
"""Where Linux keeps the memory that processes share; it may be smaller than the machine's."""
MEMINFO = Path("/proc/meminfo")
CONTAINER_FILES = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where a container's limit and use are told (cgroup 2 and 1)."""
QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
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
        memory_bytes=_physical_memory(),
        available_bytes=None if available == sys.maxsize else available,
        container_bytes=container_memory(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
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
    physical = _physical_memory()
    if physical is None:
        return sys.maxsize
    available = physical
    if MEMINFO.is_file():  # Linux: what its file cache would give back counts as available
        available = _fields(MEMINFO)["MemAvailable:"] * 1024
    for folder, limit_name, used_name in CONTAINER_FILES:
        limit = folder / limit_name
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            file_cache = _fields(folder / "memory.stat")["inactive_file"]
            available = min(available, int(text) - int((folder / used_name).read_text()) + file_cache)
    return min(available, _address_space())


def container_memory() -> int | None:
    """Return the limit that this process's container has, in bytes; None if there is none."""
    limits = [
        int(text)
        for folder, limit_name, _ in CONTAINER_FILES
        if (folder / limit_name).is_file() and (text := (folder / limit_name).read_text().strip()) != "max"
    ]
    return min((limit for limit in limits if limit < UNLIMITED_BYTES), default=None)


def _physical_memory() -> int | None:
    if not hasattr(os, "sysconf"):  # Windows does not tell its memory this way
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_cores() -> float | None:
    if not QUOTA_FILE.is_file():
        return None
    quota, period = QUOTA_FILE.read_text().split()
    return None if quota == "max" else int(quota) / int(period)


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
