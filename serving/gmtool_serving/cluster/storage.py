"""Files at URIs such as `s3://bucket/images`: listing, reading and writing them through pyarrow's file systems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from gmtool.errors import DataError, UsageError, needs_extra

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
"""Object stores: what is written to them appears whole or not at all, which other file systems do not promise."""

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)/*(.*)", re.DOTALL)


@dataclass(frozen=True)
class StoredFile:
    """A file that a listing found."""

    uri: str
    relative: str
    """Its path below what was listed."""
    mtime_ns: int
    """When it was written, by the clock of the store."""


def is_uri(text: str) -> bool:
    """Return whether this is a URI and not a path; keys in it are as they are, not percent-encoded."""
    return _URI.fullmatch(text) is not None


def join(uri: str, relative: str) -> str:
    """Return the URI of a path below another URI."""
    return f"{uri.rstrip('/')}/{relative}"


def read_file(uri: str) -> bytes:
    """Return a file's content.

    Raises:
        OSError: It cannot be read; its `strerror` is one line.
    """
    system, path = _locate(uri)
    with _one_line(), system.open_input_stream(path) as file:
        return bytes(file.read())


def write_file(uri: str, content: bytes) -> None:
    """Write a file, whole or not at all: a small one is one request, and a larger one appears when it is complete.

    Raises:
        OSError: It cannot be written; its `strerror` is one line.
    """
    system, path = _locate(uri)
    with _one_line(), system.open_output_stream(path, compression=None) as file:
        file.write(content)


def delete_file(uri: str) -> None:
    """Delete a file; one that is not there is no error.

    Raises:
        OSError: It cannot be deleted.
    """
    system, path = _locate(uri)
    with _one_line():
        try:
            system.delete_file(path)
        except FileNotFoundError:
            return


def list_files(uri: str, *, recursive: bool = True) -> list[StoredFile]:
    """Return the files below a URI, in the order of their names; none if there is nothing.

    Raises:
        OSError: It cannot be listed.
    """
    from pyarrow.fs import FileSelector, FileType

    system, path = _locate(uri)
    try:
        with _one_line():
            found = system.get_file_info(FileSelector(path, recursive=recursive))
    except FileNotFoundError:  # allowing it would take a bucket that does not exist for an empty one
        return []
    start = len(path.rstrip("/")) + 1
    base = uri.rstrip("/")
    files = [
        StoredFile(f"{base}/{entry.path[start:]}", entry.path[start:], entry.mtime_ns or 0)
        for entry in found
        if entry.type == FileType.File
    ]
    return sorted(files, key=lambda file: file.relative)


def is_file(uri: str) -> bool:
    """Return whether there is a file at a URI.

    Raises:
        OSError: The store cannot be asked.
    """
    from pyarrow.fs import FileType

    system, path = _locate(uri)
    with _one_line():
        (info,) = system.get_file_info([path])
    return bool(info.type == FileType.File)


def check_uri(uri: str) -> None:
    """Refuse what is no object store, before anything is started.

    Raises:
        UsageError: The scheme is unknown, or there is no bucket in it.
        MissingExtraError: pyarrow is not installed.
    """
    match = _URI.fullmatch(uri)
    assert match is not None
    scheme, bucket, _ = match.groups()
    if scheme.lower() not in SCHEMES or not bucket:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"{uri}: expected a local path or {known} with a bucket")
    _locate(uri)


def _locate(uri: str) -> tuple[FileSystem, str]:
    """Return the file system of a URI and the path in it."""
    match = _URI.fullmatch(uri)
    assert match is not None
    scheme, bucket, key = match.groups()
    system, root = _file_system(scheme.lower(), bucket)
    return system, f"{root}/{key}" if key else root


@cache
def _file_system(scheme: str, bucket: str) -> tuple[FileSystem, str]:
    """Return the file system that a bucket is in, and the bucket's path in it.

    Credentials and regions are found as the store's own tools find them: in the environment, in files, from the
    machine.
    """
    with needs_extra("ray", "reading from object stores"):
        from pyarrow.fs import FileSystem, S3FileSystem
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    with _one_line():
        if scheme == "s3" and endpoint:  # pyarrow does not know these variables, and AWS's own tools do
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            return S3FileSystem(endpoint_override=endpoint, region=region, allow_delayed_open=True), bucket
        # A delayed opening makes a small file one request and no upload in parts
        query = "?allow_delayed_open=true" if scheme == "s3" else ""
        system, root = FileSystem.from_uri(f"{scheme}://{bucket}{query}")
    return system, root.rstrip("/")


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn what pyarrow raises into an OSError whose reason is one line."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).strip().splitlines()[0]
        raise type(error)(error.errno or 0, reason.partition(" (Request ID")[0]) from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise DataError(str(error).strip().splitlines()[0]) from error
