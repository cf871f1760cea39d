"""HTTP connection whose client has to send its headers, and to take its answer, in time."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0
"""Seconds for the head of a request, and for the rest of a body that was refused."""
TAKE_TIMEOUT_S = 30.0
"""Seconds that a client may take nothing of a large answer."""
SLOW_HEAD = b'{"error":{"code":"slow_client","message":"the head of the request did not arrive in time"}}'


class Connection(H11Protocol):
    """Connection of uvicorn with two more time limits; uvicorn has one between two requests alone."""

    _head_timer: asyncio.TimerHandle | None = None
    _take_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        super().connection_lost(exc)
        self._stop_head_timer()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take bytes; more bytes of the same head do not give it more time."""
        super().data_received(data)
        waits_for_head = self.conn.their_state is h11.IDLE
        is_refused = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if not (waits_for_head or is_refused) or self.transport.is_closing():
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_slow)

    def pause_writing(self) -> None:
        """Begin to wait for a client that takes nothing."""
        super().pause_writing()
        if self._take_timer is None:
            self._take_timer = self.loop.call_later(TAKE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting."""
        super().resume_writing()
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_slow(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE:
            headers = [("content-type", "application/json"), ("content-length", str(len(SLOW_HEAD)))]
            events = (
                h11.Response(
                    status_code=408, headers=[*headers, ("connection", "close")], reason="Request Timeout"
                ),
                h11.Data(data=SLOW_HEAD),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
