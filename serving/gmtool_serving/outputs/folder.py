"""Output folder: lock, manifest, resume state."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gmtool.errors import DataError
from gmtool.files import sweep_leftovers
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import sha256_of_input
from gmtool_serving.inputs.shards import Shard
from gmtool_serving.outputs.formats import FormatName, format_dirs, paths
from gmtool_serving.outputs.lock import FolderLock
from gmtool_serving.outputs.manifest import Conditions, Manifest, PastRecords, Record, was_closed


class OutputFolder:
    """Output folder, or one shard of it, locked until `close`.

    Args:
        out: Folder; created if its parent exists.
        shard: Shard of the job; None for the whole job.
        resume: Read the manifests of earlier runs, of all shards.

    Raises:
        DataError: The folder cannot be created or written, another run holds it, or the lock or the manifest is a
            link.
    """

    def __init__(self, out: Path, *, shard: Shard | None, resume: bool) -> None:
        self.out = out
        name = "manifest.jsonl" if shard is None else f"manifest-{shard}.jsonl"
        self.manifest_path = out / name
        self.name, self.manifest_name = str(out), str(self.manifest_path)
        """Names for messages."""
        if not out.parent.is_dir():
            raise DataError(f"output folder {out}: cannot be created: its parent {out.parent} does not exist")
        self._is_new = not out.exists()
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"output folder {out}: cannot be created: {error.strerror}") from error
        self._lock = FolderLock(out, "" if shard is None else str(shard))
        try:
            self.needs_sweep = os.path.lexists(self.manifest_path) and not was_closed(self.manifest_path)
            """True if the previous run was killed and may have left temporary files."""
            known = sorted(out.glob("manifest*.jsonl"), key=lambda path: path.lstat().st_mtime)
            self._past = PastRecords(known if resume else [])
            self._manifest = Manifest(self.manifest_path)
        except OSError as error:
            self._lock.release()
            raise DataError(f"output folder {out}: cannot be written: {error.strerror}") from error
        self.proof = self._lock.path
        """A file that exists while the folder is locked."""

    def sweep(self, folders: Iterable[Path]) -> None:
        """Delete temporary files of a killed run in `folders`, except behind links."""
        out = self.out.resolve()
        for folder in folders:
            if folder.resolve() == out / folder.relative_to(self.out):
                sweep_leftovers(folder)

    def find_done(self, image: InputImage, conditions: Conditions) -> Record | None:
        """Return the record of an input that an earlier run completed, else None. Thread-safe.

        Input hash, model and options are equal, and all output files are unchanged.
        """
        record = self.find_past(image, conditions)
        if record is None or not all(file.is_whole(self.out) for file in record.outputs):
            return None
        sha256 = sha256_of_input(image.path, image.frame)
        return record if sha256 is not None and sha256 == record.sha256 else None

    def find_past(self, image: InputImage, conditions: Conditions) -> Record | None:
        """Return an earlier run's record under the same conditions, unless it failed; files are not checked."""
        record = self._past.get(str(image.output))
        if record is None or record.status == "failed" or record.conditions != conditions:
            return None
        return record if {file.path for file in record.outputs} == _files_of(image, conditions.formats) else None

    def add(self, *records: Record) -> None:
        """Append records to the manifest.

        Raises:
            OSError: The manifest cannot be written.
        """
        self._manifest.add(*records)

    def finish(self, summary: Mapping[str, Any], images: Sequence[InputImage] | None) -> None:
        """Close the manifest with a summary; see `Manifest.finish`."""
        self._manifest.finish(summary, None if images is None else (str(image.output) for image in images))

    def close(self) -> None:
        """Release the folder. A run that was refused before its first image leaves no files."""
        self._manifest.close()
        is_empty = self.manifest_path.exists() and not self.manifest_path.stat().st_size
        if is_empty:
            self.manifest_path.unlink()
        self._lock.release()
        if is_empty and self._is_new:
            with suppress(OSError):  # another file was added
                self.out.rmdir()


def _files_of(image: InputImage, formats: Sequence[FormatName]) -> set[str]:
    """Return the output files of an image, relative to the output folder, with forward slashes."""
    folders = format_dirs(Path(), formats)
    return {(folder / path).as_posix() for name, folder in folders.items() for path in paths(name, image.output)}
