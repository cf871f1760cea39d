"""Peak of the memory in use on a card, from NVIDIA's driver."""

from __future__ import annotations

import ctypes
import threading
from types import TracebackType

from gmtool.artifact.nvidia import load_driver

SAMPLE_S = 0.002
"""Seconds between two looks at the card: an allocation that is freed sooner may be missed."""


class CardMemory:
    """Largest growth of the memory in use on the first card, while the block runs.

    What CUDA itself takes on a card for a process is in use before. What other processes take meanwhile is counted
    too: the driver tells the memory of a process only outside of containers.
    """

    def __init__(self, driver: ctypes.CDLL) -> None:
        self._driver = driver
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        # The context that runtimes use too
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._call("cuCtxSetCurrent", self._context)
        self._free_before = self._smallest_free = self._free()
        self._ended, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="card-memory", daemon=True)

    @classmethod
    def open(cls) -> CardMemory | None:
        """Return the watch of this machine's first card; None without a card that works."""
        driver = load_driver()
        if driver is None:
            return None
        try:
            return cls(driver)
        except OSError:
            return None

    @property
    def peak_bytes(self) -> int | None:
        """Largest growth so far, bytes; None if the driver failed meanwhile."""
        if self._failed:
            return None
        self._smallest_free = min(self._smallest_free, self._free())
        return max(0, self._free_before - self._smallest_free)

    def __enter__(self) -> CardMemory:
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            self._call("cuCtxSetCurrent", self._context)  # a context is current in one thread
            while not self._ended.wait(SAMPLE_S):
                self._smallest_free = min(self._smallest_free, self._free())
        except OSError:
            self._failed = True

    def _free(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            raise OSError(f"{name}: CUDA error {status}")
