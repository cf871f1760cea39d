"""Lease of an output folder in a bucket, whose store is a dictionary here."""

import json
import threading
import time
from collections.abc import Iterator

import pytest
from gmtool_serving.cluster import stored_folder
from gmtool_serving.cluster.storage import StoredFile
from gmtool_serving.cluster.stored_folder import StoredFolder
from gmtool_serving.outputs.manifest import Conditions, Record

from gmtool.errors import DataError

RECORD = Record("a.png", None, "a", "0" * 64, "ok", None, None, None, (), Conditions("0" * 64, ("voc",), {}))


class Store:
    """A bucket; its writes fail with `error`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.error: Exception | None = None
        self.tried = threading.Semaphore(0)

    def write(self, uri: str, content: bytes) -> None:
        self.tried.release()
        if self.error is not None:
            raise self.error
        self.files[uri] = content

    def files_of(self, uri: str, *, recursive: bool) -> list[StoredFile]:
        return [StoredFile(each, each.removeprefix(f"{uri}/"), 1) for each in self.files]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    made = Store()
    monkeypatch.setattr(stored_folder, "write_file", made.write)
    monkeypatch.setattr(stored_folder, "list_files", made.files_of)
    monkeypatch.setattr(stored_folder, "read_file", made.files.__getitem__)
    monkeypatch.setattr(stored_folder, "delete_file", made.files.pop)
    monkeypatch.setattr(stored_folder, "HEARTBEAT_S", 0.002)
    yield made


def beats(store: Store, count: int) -> None:
    """Wait for so many more writes."""
    while store.tried.acquire(blocking=False):
        pass
    for _ in range(count):
        assert store.tried.acquire(timeout=20)


@pytest.mark.parametrize("error", [OSError("store unavailable"), RuntimeError("credentials expired")])
def test_a_heart_beats_on_after_any_error(
    error: Exception, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StoredFolder("s3://bucket/out", resume=False)
    store.error = error
    beats(store, 3)
    store.error = None
    store.files.clear()
    beats(store, 3)
    lease = next(json.loads(content) for uri, content in store.files.items() if uri.endswith(".lock"))
    assert lease, "renewed again"
    folder.add(RECORD)
    folder.close()
    said = capsys.readouterr().err
    if isinstance(error, OSError):
        assert said == ""
    else:
        assert said == "warning: s3://bucket/out: its lease cannot be renewed: RuntimeError: credentials expired\n"


def test_a_run_whose_lease_has_expired_stops(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StoredFolder("s3://bucket/out", resume=False)
    store.error = RuntimeError("credentials expired")
    beats(store, 2)
    folder.add(RECORD)
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + stored_folder.LEASE_S + 1)
    with pytest.raises(DataError, match=r"lease could not be renewed for 5 minutes \(credentials expired\)"):
        folder.add(RECORD)
    store.error = None
    folder.close()
