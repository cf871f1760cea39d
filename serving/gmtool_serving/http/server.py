"""The process of the service: socket, warm-up, signals, orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType
from typing import Any

import uvicorn

from gmtool.errors import GmtoolError
from gmtool_serving.http.app import make_app
from gmtool_serving.http.connection import Connection
from gmtool_serving.http.options import ServeOptions
from gmtool_serving.http.service import Service

DRAIN_S = 7.0
"""Seconds that requests in flight have after a signal."""
CLOSE_S = 2.0
"""Seconds that their answers have after that."""
LOOK_S = 0.05


def bind(options: ServeOptions) -> socket.socket:
    """Return a listening socket, before a model is loaded: clients wait until the service answers.

    Raises:
        GmtoolError: The port is taken, or the address is not of this machine.
    """
    where = f"--host {options.host} --port {options.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GmtoolError(f"{where}: {reason}: choose another with --port or --host") from error
    return listening


class Server(uvicorn.Server):
    """Server whose signals are handled by `run_server`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def make_server(service: Service) -> Server:
    """Return a server for a service; `run` it with a socket."""
    for name in ("uvicorn.error", "python_multipart"):  # tracebacks, not each bad request
        logging.getLogger(name).setLevel(logging.ERROR)
    config = uvicorn.Config(
        make_app(service),
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(CLOSE_S),
        backlog=2048,
    )
    return Server(config)


def run_server(service: Service, listening: socket.socket, *, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what is in flight. A second signal ends the process.

    Args:
        service: Its models are warmed up here, while /healthz is answered already.
        listening: From `bind`; it is closed.
        tell: Takes lines for the user.

    Raises:
        BackendError: A model failed in its warm-up.
    """
    asyncio.run(_serve(service, listening, tell))


async def _serve(service: Service, listening: socket.socket, tell: Callable[[str], None]) -> None:
    server, stop = make_server(service), asyncio.Event()
    with _calling(stop.set, asyncio.get_running_loop()):
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        stopping = asyncio.create_task(stop.wait())
        warming = _in_thread(service.warm_up, asyncio.get_running_loop())
        try:
            # Warm up
            started = time.perf_counter()
            await asyncio.wait((serving, stopping, warming), return_when=asyncio.FIRST_COMPLETED)
            if warming.done():
                warming.result()
                tell(f"ready after a warm-up of {time.perf_counter() - started:.1f} s; Ctrl-C stops")
            # Serve
            await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await _drain(service, tell)
        finally:
            server.should_exit = True
            await serving


def _in_thread(act: Callable[[], None], loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """Call `act` in a daemon thread, which the end of the process does not wait for."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            act()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="warm-up", daemon=True).start()
    return asyncio.wrap_future(done, loop=loop)


async def _drain(service: Service, tell: Callable[[str], None]) -> None:
    """Take no further images, and wait for those that were accepted."""
    slots, deadline = service.slots, time.monotonic() + DRAIN_S
    slots.draining = True
    tell(f"stopping: {slots.taken} images in flight")
    while slots.taken and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_S)
    if slots.taken:
        tell(f"stopped with {slots.taken} images without an answer after {DRAIN_S:g} s")


@contextlib.contextmanager
def _calling(act: Callable[[], None], loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Within the block, let the first SIGTERM or Ctrl-C call `act` in the loop; a second one acts as outside."""
    before: dict[int, Any] = {}

    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            loop.call_soon_threadsafe(act)
            return
        signal.signal(number, before[number])
        signal.raise_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
