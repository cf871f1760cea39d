"""A service in a thread of the test, and a client for it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeBackend
from gmtool_serving.backends.base import Backend
from gmtool_serving.http.models import ServedModel
from gmtool_serving.http.options import ServeOptions
from gmtool_serving.http.server import bind, make_server
from gmtool_serving.http.service import Service
from gmtool_serving.inputs.decode import DecodeOptions
from gmtool_serving.pipeline.decoder_pool import Decoders
from PIL import Image

from gmtool.images import UInt8Array


@dataclass(frozen=True)
class Reply:
    """Answer of the service."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Code of an error."""
        code = self.json["error"]["code"]
        assert isinstance(code, str)
        return code


@dataclass(frozen=True)
class Client:
    """Client of a service on loopback."""

    port: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def get(self, path: str, **headers: str) -> Reply:
        """Answer to a GET."""
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: bytes, **headers: str) -> Reply:
        """Answer to a POST."""
        return self.ask("POST", path, body, headers)

    def post_form(self, path: str, files: Mapping[str, bytes], **headers: str) -> Reply:
        """Answer to a POST of a form with files, each by its name."""
        body, kind = form(files)
        return self.ask("POST", path, body, {"Content-Type": kind, **headers})

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Answer to any request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            named = {name.replace("_", "-"): value for name, value in (self.headers | headers).items()}  # type: ignore[operator]
            connection.request(method, path, body, named)
            got = connection.getresponse()
            return Reply(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class Running:
    """A service that runs, and a client of it."""

    service: Service
    client: Client


@contextmanager
def serving(
    backends: Mapping[str, Backend],
    *,
    warm: bool = True,
    isolated: bool = False,
    send_buffer_bytes: int = 0,
    samples: tuple[Path, ...] = (),
    **options: Any,
) -> Iterator[Running]:
    """Serve backends within the block, on a free port of loopback; decoders are threads unless `isolated`."""
    options.setdefault("decode", DecodeOptions(max_pixels=4_000_000))
    settings = ServeOptions(**{"port": 0, "workers": 1, **options})
    models = {name: ServedModel(name, backend, {"file": name}) for name, backend in backends.items()}
    decoders = Decoders(settings.workers, settings.decode, isolated=isolated)
    service = Service(models, settings, decoders, samples)
    if warm:
        service.warm_up()
        for backend in backends.values():
            if isinstance(backend, FakeBackend):
                backend.batches.clear()
    listening = bind(settings)
    if send_buffer_bytes:  # connections have that of their listener
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    port = listening.getsockname()[1]
    server = make_server(service)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield Running(service, Client(port))
    finally:
        server.should_exit = True
        service.close()
        thread.join(timeout=10)
        assert not thread.is_alive()


def form(files: Mapping[str, bytes]) -> tuple[bytes, str]:
    """Return the body of a form with files, and its media type."""
    parts = [
        f'--xyz\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files.items()
    ]
    return b"".join(parts) + b"--xyz--\r\n", "multipart/form-data; boundary=xyz"


def gradient(height: int = 24, width: int = 36) -> UInt8Array:
    """Return an image in which each of the fake model's classes occurs."""
    red = np.linspace(0, 255, width).astype(np.uint8)
    return np.stack([np.broadcast_to(red, (height, width)), *np.zeros((2, height, width), np.uint8)], axis=-1)


def png(pixels: UInt8Array) -> bytes:
    """Return the file of an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
