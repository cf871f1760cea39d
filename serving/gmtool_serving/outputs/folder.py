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
    """Holds a folder, or one shard of it, from the moment it is made until `close`.

    Args:
        out: The folder; it is made if its parent exists.
        shard: The part of a job that is done here; None for all of it.
        resume: Read what earlier runs recorded, those of all shards.

    Raises:
        DataError: The folder cannot be made or written, another run writes into it, or a link lies where a file
            of gmtool must.
    """

    def __init__(self, out: Path, *, shard: Shard | None, resume: bool) -> None:
        self.out = out
        name = "manifest.jsonl" if shard is None else f"manifest-{shard}.jsonl"
        self.manifest_path = out / name
        self.name, self.manifest_name = str(out), str(self.manifest_path)
        """What people call them."""
        if not out.parent.is_dir():
            raise DataError(f"output folder {out}: cannot be made: there is no folder {out.parent}")
        self._is_new = not out.exists()
        try:
            out.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"output folder {out}: cannot be made: {error.strerror}") from error
        self._lock = FolderLock(out, "" if shard is None else str(shard))
        try:
            self.needs_sweep = os.path.lexists(self.manifest_path) and not was_closed(self.manifest_path)
            """Whether the run before was killed and may have left temporary files."""
            known = sorted(out.glob("manifest*.jsonl"), key=lambda path: path.lstat().st_mtime)
            self._past = PastRecords(known if resume else [])
            self._manifest = Manifest(self.manifest_path)
        except OSError as error:
            self._lock.release()
            raise DataError(f"output folder {out}: cannot be written: {error.strerror}") from error
        self.proof = self._lock.path
        """A file that is there as long as the folder is held."""

    def sweep(self, folders: Iterable[Path]) -> None:
        """Delete temporary files that a killed run left in folders, unless a link leads to them."""
        out = self.out.resolve()
        for folder in folders:
            if folder.resolve() == out / folder.relative_to(self.out):
                sweep_leftovers(folder)

    def find_done(self, image: InputImage, conditions: Conditions) -> Record | None:
        """Return the record of an input that needs nothing, else None. Safe in threads.

        Input, model and options are those of the record, and all files are there as they were written.
        """
        record = self.find_past(image, conditions)
        if record is None or not all(file.is_whole(self.out) for file in record.outputs):
            return None
        sha256 = sha256_of_input(image.path, image.frame)
        return record if sha256 is not None and sha256 == record.sha256 else None

    def find_past(self, image: InputImage, conditions: Conditions) -> Record | None:
        """Return what an earlier run recorded of an input under these conditions, unless it failed; unverified."""
        record = self._past.get(str(image.output))
        if record is None or record.status == "failed" or record.conditions != conditions:
            return None
        return record if {file.path for file in record.outputs} == _files_of(image, conditions.formats) else None

    def add(self, record: Record) -> None:
        """Record an input.

        Raises:
            OSError: The manifest cannot be written.
        """
        self._manifest.add(record)

    def finish(self, summary: Mapping[str, Any], images: Sequence[InputImage] | None) -> None:
        """Close the manifest with a summary; see `Manifest.finish`."""
        self._manifest.finish(summary, None if images is None else (str(image.output) for image in images))

    def close(self) -> None:
        """Let the folder go. A run that was refused before its first image leaves nothing behind."""
        self._manifest.close()
        is_empty = self.manifest_path.exists() and not self.manifest_path.stat().st_size
        if is_empty:
            self.manifest_path.unlink()
        self._lock.release()
        if is_empty and self._is_new:
            with suppress(OSError):  # something else came to lie there
                self.out.rmdir()


def _files_of(image: InputImage, formats: Sequence[FormatName]) -> set[str]:
    """Return the files of an image, relative to the output folder, with forward slashes."""
    folders = format_dirs(Path(), formats)
    return {(folder / path).as_posix() for name, folder in folders.items() for path in paths(name, image.output)}
