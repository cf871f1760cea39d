import os
import shutil
from pathlib import Path

import pytest

from gmtool import resources


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container of a million bytes, of which 700 000 are in use, and 300 000 of those are file cache."""
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 300000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(resources, "CONTAINER_FILES", ((tmp_path, "memory.max", "memory.current"),))
    monkeypatch.setattr(resources, "QUOTA_FILE", tmp_path / "cpu.max")
    return tmp_path


def test_a_containers_limit_counts(container: Path) -> None:
    assert resources.available_memory() == 600_000
    found = resources.read_resources(container)
    assert (found.container_bytes, found.container_cores) == (1_000_000, 1.5)
    (container / "memory.max").write_text("max\n")
    (container / "cpu.max").write_text("max 100000\n")
    assert resources.available_memory() > 10_000_000
    found = resources.read_resources(container)
    assert (found.container_bytes, found.container_cores) == (None, None)


def test_a_limit_beyond_any_machine_is_none(container: Path) -> None:
    (container / "memory.max").write_text("9223372036854771712\n")
    assert resources.container_memory() is None


def test_the_rest_is_what_the_system_says(tmp_path: Path) -> None:
    found = resources.read_resources(tmp_path)
    assert found.memory_bytes is not None and found.available_bytes is not None
    assert 0 < found.available_bytes <= found.memory_bytes
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.disk_free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, abs=2**30)
    assert found.writable
