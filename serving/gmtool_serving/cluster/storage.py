"""List, read and write files in object stores (`s3://bucket/images`) with pyarrow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from gmtool.errors import DataError, UsageError, needs_extra

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
"""Schemes of object stores, where a written file appears whole or not at all."""

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/]*)/*(.*)", re.DOTALL)


@dataclass(frozen=True)
class StoredFile:
    """File in an object store, from a listing."""

    uri: str
    relative: str
    """Path below the listed URI."""
    mtime_ns: int
    """Modification time by the clock of the store."""


def is_uri(text: str) -> bool:
    """Return whether a text is a URI and not a path; keys are not percent-encoded."""
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
    """Write a file, whole or not at all: a small one in one request, a larger one appears when complete.

    Raises:
        OSError: It cannot be written; its `strerror` is one line.
    """
    system, path = _locate(uri)
    with _one_line(), system.open_output_stream(path, compression=None) as file:
        file.write(content)


class StoredMasks:
    """Output folder in an object store, as `write_outputs` writes to it.

    Args:
        uri: The folder.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def locate(self, path: str) -> str:
        """Return the file's URI."""
        return join(self._uri, path)

    def write(self, files: Sequence[tuple[str, bytes]]) -> list[OSError | None]:
        """Write files, each whole or not at all (see `write_file`); return the error of each, or None."""
        errors: list[OSError | None] = []
        for path, content in files:
            try:
                write_file(self.locate(path), content)
                errors.append(None)
            except OSError as error:
                errors.append(error)
        return errors


def delete_file(uri: str) -> None:
    """Delete a file if it exists.

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
    """Return the files below a URI, sorted by relative path; empty if there are none.

    Raises:
        OSError: It cannot be listed.
    """
    from pyarrow.fs import FileSelector, FileType

    system, path = _locate(uri)
    try:
        with _one_line():
            found = system.get_file_info(FileSelector(path, recursive=recursive))
    except FileNotFoundError:  # `allow_not_found` would treat a missing bucket as empty
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
    """Return whether a file exists at a URI.

    Raises:
        OSError: The store is unavailable.
    """
    from pyarrow.fs import FileType

    system, path = _locate(uri)
    with _one_line():
        (info,) = system.get_file_info([path])
    return bool(info.type == FileType.File)


def check_uri(uri: str) -> None:
    """Check the URI of an object store.

    Raises:
        UsageError: Unknown scheme, or no bucket.
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
    """Return file system and path of a URI."""
    match = _URI.fullmatch(uri)
    assert match is not None
    scheme, bucket, key = match.groups()
    system, root = _file_system(scheme.lower(), bucket)
    return system, f"{root}/{key}" if key else root


@cache
def _file_system(scheme: str, bucket: str) -> tuple[FileSystem, str]:
    """Return file system and path of a bucket.

    Credentials and regions come from where the store's own tools read them: environment, files, machine.
    """
    with needs_extra("ray", "reading from object stores"):
        from pyarrow.fs import FileSystem, S3FileSystem
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    with _one_line():
        if scheme == "s3" and endpoint:  # AWS's own tools read these variables, pyarrow does not
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
            return S3FileSystem(endpoint_override=endpoint, region=region, allow_delayed_open=True), bucket
        # With delayed opening a small file is one request, not a multipart upload
        query = "?allow_delayed_open=true" if scheme == "s3" else ""
        system, root = FileSystem.from_uri(f"{scheme}://{bucket}{query}")
    return system, root.rstrip("/")


@contextmanager
def _one_line() -> Iterator[None]:
    """Convert pyarrow's errors to an OSError with a one-line reason, or a DataError."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).strip().splitlines()[0]
        raise type(error)(error.errno or 0, reason.partition(" (Request ID")[0]) from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise DataError(str(error).strip().splitlines()[0]) from error
