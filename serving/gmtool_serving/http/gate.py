"""Outermost layer of the service: token, origins, headers of safety, metrics and access log of every request."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gmtool_serving.http.errors import RefusalError
from gmtool_serving.http.metrics import Metrics
from gmtool_serving.http.options import ServeOptions, is_loopback

OPEN_PATHS = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")
"""Paths without a token: probes, and pages that hold nothing of the models."""
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
CORS_METHODS, CORS_HEADERS = "GET, POST", "Authorization, Content-Type, Accept"


class Gate:
    """ASGI middleware that checks who asks, before the body is read, and notes what became of the request.

    Args:
        app: The application behind it.
        options: Token and origins.
        metrics: Counts requests.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, metrics: Metrics) -> None:
        self._app, self._options, self._metrics = app, options, metrics
        self._token_hash = None if options.token is None else _hash(options.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        started, status, sent = time.perf_counter(), 499, 0  # 499: no answer, as in nginx

        async def note(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(raw=message["headers"]), headers.get("origin"))
            sent += len(message.get("body", b""))
            await send(message)

        refusal = self._refuse(scope, headers)
        try:
            await (refusal or self._app)(scope, receive, note)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("endpoint"), "__name__", "none")
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            if self._options.access_log:
                _log(scope, status, sent, seconds)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer to a request that is not passed on, or None."""
        origin = headers.get("origin")
        if origin is not None and not self._is_known(origin, headers):
            return RefusalError(
                403,
                "foreign_origin",
                "pages of other origins are not served: see gmtool serve --cors",
                closes=True,
            ).response()
        if (
            self._options.token is None
            and self._options.is_local
            and not _is_of_this_machine(headers.get("host", ""))
        ):
            # A foreign name that was made to lead here (DNS rebinding)
            return RefusalError(
                403,
                "foreign_host",
                "the Host header is not that of this machine; with --token any is taken",
                closes=True,
            ).response()
        if scope["method"] == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            return PlainTextResponse("")
        if self._token_hash is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_hash(token.strip()), self._token_hash):
                return RefusalError(
                    401, "wrong_token", "expected the header Authorization: Bearer TOKEN", closes=True
                ).response()
        return None

    def _is_known(self, origin: str, headers: Mapping[str, str]) -> bool:
        return origin in self._options.origins or urlsplit(origin).netloc == headers.get("host")

    def _add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        for name, value in SAFE_HEADERS.items():
            headers.setdefault(name, value)
        if origin is not None and origin in self._options.origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Methods"] = CORS_METHODS
            headers["Access-Control-Allow-Headers"] = CORS_HEADERS
            headers["Access-Control-Expose-Headers"] = "Retry-After, Server-Timing, X-Gmtool-Warning"
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
            headers.add_vary_header("Origin")


def _hash(token: str) -> bytes:
    """Return a hash: comparing tokens of different lengths would tell the length."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _is_of_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:  # brackets that are no address
        return False


def _log(scope: Scope, status: int, sent: int, seconds: float) -> None:
    client = scope.get("client")
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode("latin-1"),
        "status": status,
        "bytes": sent,
        "ms": round(1000 * seconds, 1),
    }
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()
