"""Output folder in an object store: lease object, and a local manifest that is uploaded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from gmtool.console import remark
from gmtool.errors import DataError
from gmtool_serving.cluster.storage import StoredFile, delete_file, join, list_files, read_file, write_file
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.outputs.folder import OutputFolder
from gmtool_serving.outputs.lock import PREFIX, Holder, holder_of
from gmtool_serving.outputs.manifest import Record

HEARTBEAT_S = 30.0
"""Interval at which a run renews its lease and uploads its manifest; a killed run loses at most that much."""
LEASE_S = 300.0
"""Age of a lease after which its run counts as dead."""


class StoredFolder(OutputFolder):
    """Output folder in an object store, leased until `close`.

    Object stores can neither append to files nor lock them. The manifest is therefore written locally and
    uploaded, and a run holds a lease object that it renews: of two runs that start at once, at least one sees the
    other's.

    Args:
        uri: Folder.
        resume: Read the manifests of earlier runs.

    Raises:
        DataError: The folder cannot be written, or another run holds it.
    """

    def __init__(self, uri: str, *, resume: bool) -> None:
        self._uri = uri.rstrip("/")
        self._lease = join(self._uri, f"{PREFIX}-{uuid.uuid4().hex}.lock")
        self._copy = Path(tempfile.mkdtemp(prefix="gmtool-manifest-"))
        self._stopped = threading.Event()
        self._uploading = threading.Lock()
        self._uploaded = 0
        self._renewed, self._failure = time.monotonic(), cast("Exception | None", None)
        try:
            self._renew()
            self._refuse_others()
            self._fetch_manifests()
            super().__init__(self._copy, shard=None, resume=resume)
        except BaseException as error:
            self._give_up()
            if isinstance(error, OSError):
                raise DataError(f"output folder {uri}: cannot be written: {error.strerror or error}") from error
            raise
        self.name, self.manifest_name = self._uri, join(self._uri, self.manifest_path.name)
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()

    def sweep(self, folders: Iterable[Path]) -> None:
        """Do nothing: an object store has no temporary files."""

    def add(self, *records: Record) -> None:
        """Append records to the manifest.

        Raises:
            DataError: The lease has expired, since it could not be renewed: another run may hold the folder.
            OSError: The manifest cannot be written.
        """
        if self._failure is not None and time.monotonic() - self._renewed > LEASE_S:
            raise DataError(
                f"output folder {self._uri}: its lease could not be renewed for {LEASE_S / 60:.0f} minutes "
                f"({self._failure}), so that another run may write into it: continue with --resume"
            )
        super().add(*records)

    def finish(self, summary: Mapping[str, Any], images: Sequence[InputImage] | None) -> None:
        """Close the manifest with a summary; see `Manifest.finish`."""
        super().finish(summary, images)
        self._upload()

    def close(self) -> None:
        """Release the folder."""
        self._stopped.set()
        self._heart.join()
        super().close()
        self._give_up()

    def _give_up(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        try:
            delete_file(self._lease)
        except OSError:
            return  # the lease expires

    def _renew(self) -> None:
        holder = Holder(os.getpid(), socket.gethostname())
        write_file(self._lease, json.dumps(vars(holder)).encode())
        self._renewed = time.monotonic()

    def _refuse_others(self) -> None:
        leases = [file for file in list_files(self._uri, recursive=False) if _is_lease(file)]
        now = max((file.mtime_ns for file in leases if file.uri == self._lease), default=0)  # the store's clock
        for file in leases:
            if file.uri == self._lease:
                continue
            if now - file.mtime_ns > LEASE_S * 1e9:
                delete_file(file.uri)
                continue
            raise DataError(
                f"output folder {self._uri}: {holder_of(read_file(file.uri))} writes into it: wait, or stop that "
                f"run; the lease of a killed run expires after {LEASE_S / 60:.0f} minutes"
            )

    def _fetch_manifests(self) -> None:
        for file in list_files(self._uri, recursive=False):
            if file.relative.startswith("manifest") and file.relative.endswith(".jsonl"):
                copy = self._copy / file.relative
                copy.write_bytes(read_file(file.uri))
                os.utime(copy, ns=(file.mtime_ns, file.mtime_ns))

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            try:
                self._renew()
                self._upload()
            except OSError as error:
                self._failure = error  # store unavailable: the next beat tries again
            except Exception as error:  # of pyarrow, credentials, or a bug: it too is tried again, and said
                if type(error) is not type(self._failure):
                    remark(f"warning: {self._uri}: its lease cannot be renewed: {type(error).__name__}: {error}")
                self._failure = error

    def _upload(self) -> None:
        with self._uploading:
            content = self.manifest_path.read_bytes()
            if len(content) != self._uploaded:
                write_file(self.manifest_name, content)
                self._uploaded = len(content)


def _is_lease(file: StoredFile) -> bool:
    return file.relative.startswith(PREFIX) and file.relative.endswith(".lock")
