"""Bodies of requests: bounded reading, and the images in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from gmtool_serving.http.errors import ClientGoneError, RefusalError, bad_request

MAX_HELD_BYTES = 256 << 20
"""Bytes of all bodies at a time; further requests get 503."""
MAX_FIELDS = 8
"""Parts of a form that are no files; they are refused with a better message than that of their number."""
MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class Upload:
    """Content of an image file and its name, which is only used in messages and names of answers."""

    name: str
    content: bytes


class Bodies:
    """Reader of bodies, within a limit for each and for all together.

    Args:
        max_bytes: Largest body.
        timeout_s: Seconds that a client has to send it.
    """

    def __init__(self, *, max_bytes: int, timeout_s: float) -> None:
        self.max_bytes, self.timeout_s = max_bytes, timeout_s
        self.held = 0
        """Bytes of bodies in memory."""

    def refuse_by_head(self, request: Request) -> None:
        """Refuse a body that says itself that it is too large, before any of it is read.

        Raises:
            RefusalError: 413.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            raise self._too_large(length)

    async def read(self, request: Request) -> bytearray:
        """Return the body; the caller gives it back with `release`.

        Raises:
            RefusalError: 413 for a larger one, 408 for a slow client, 503 if all bodies together are too large.
            ClientGoneError: The connection was closed.
        """
        self.refuse_by_head(request)
        body = bytearray()
        try:
            async with asyncio.timeout(self.timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    self.held += len(chunk)
                    if len(body) > self.max_bytes:
                        raise self._too_large(f"more than {self.max_bytes}")
                    if self.held > max(MAX_HELD_BYTES, self.max_bytes):
                        raise RefusalError(
                            503, "busy", "too many bodies at a time: try again", retry_after_s=1, closes=True
                        )
        except BaseException as error:
            self.release(body)
            if isinstance(error, TimeoutError):
                raise RefusalError(
                    408,
                    "slow_client",
                    f"the body had not arrived after {self.timeout_s:g} s: {len(body)} bytes of it had",
                    closes=True,
                ) from None
            if isinstance(error, ClientDisconnect):
                raise ClientGoneError from None
            raise
        return body

    def release(self, body: bytearray) -> None:
        """Count a body as given back."""
        self.held -= len(body)

    def _too_large(self, found: str) -> RefusalError:
        return RefusalError(
            413, "body_too_large", f"the body has {found} bytes; expected at most {self.max_bytes}", closes=True
        )


async def uploads(request: Request, body: bytearray, *, most: int) -> list[Upload]:
    """Return the images of a body: the files of a form, or the one that the body is.

    Args:
        request: Its headers tell the kind of the body.
        body: The whole body.
        most: Files that a form may have.

    Raises:
        RefusalError: 400 for a form that cannot be read or has too many files, 422 for a text where a file is
            expected: paths and URLs are never opened.
    """
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        return [Upload("image", bytes(body))]

    async def stream() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    parser = MultiPartParser(request.headers, stream(), max_files=most, max_fields=MAX_FIELDS)
    parser.spool_max_size = len(body) + 1  # stays in memory: nothing is written to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise bad_request(f"multipart body: {error.message}") from error
    except UnicodeError as error:  # the client names the encoding of its field names
        raise bad_request("multipart body: names of fields or files that cannot be decoded") from error
    found = []
    try:
        for field, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise RefusalError(
                    422,
                    "not_a_file",
                    f"form field {field[:MAX_NAME_CHARS]!r} is text; expected the content of an image file with "
                    "a file name: paths and URLs are never opened",
                )
            found.append(Upload(safe_name(value.filename or ""), await value.read()))
    finally:
        await form.close()
    if not found:
        raise bad_request("multipart body without a file: expected an image file in a field of any name")
    return found


def safe_name(name: str) -> str:
    """Return a file name without folders and control characters; "image" if nothing is left."""
    last = name.replace("\\", "/").rpartition("/")[2][:MAX_NAME_CHARS]
    shown = "".join(char for char in last if char.isprintable()).strip(". ")
    return shown or "image"
