import os
import shutil
import tempfile
from pathlib import Path

import pytest
from gmtool_serving.pipeline import run as predict

from gmtool import resources
from gmtool.errors import TemporaryFolderError


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container of a million bytes, of which 700 000 are in use, and 300 000 of those are file cache."""
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 300000\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(resources, "CGROUP_DIR", tmp_path)
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "cgroup")
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


@pytest.mark.parametrize(("mib", "decoders", "pixels_mib"), [(100, 1, 12.5), (1024, 4, 128), (8192, 8, 512)])
def test_case_52_a_small_container_decodes_less_at_once(
    container: Path, monkeypatch: pytest.MonkeyPatch, mib: int, decoders: int, pixels_mib: float
) -> None:
    monkeypatch.setattr(resources, "processors", lambda: 64)
    monkeypatch.setattr(resources, "physical_memory", lambda: 64 << 30)
    monkeypatch.setattr(resources, "MEMINFO", container / "none")
    monkeypatch.setattr(resources, "_address_space", lambda: 64 << 30)
    (container / "memory.max").write_text(f"{mib << 20}\n")
    (container / "memory.current").write_text("0\n")
    (container / "memory.stat").write_text("inactive_file 0\n")
    assert resources.decoding_processes() == predict._default_workers(100) == decoders
    assert resources.memory_for_pixels(512 << 20) == pixels_mib * 2**20


def test_a_limit_beyond_any_machine_is_none(container: Path) -> None:
    (container / "memory.max").write_text("9223372036854771712\n")
    assert resources.container_memory() is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "9900000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/pod/cpu.cfs_quota_us": "300000", "cpu/pod/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/pod/own/cpu.cfs_quota_us": "400000", "cpu/pod/own/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_case_52_processors_are_those_of_the_container_in_cgroup_1_and_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "cgroup").write_text("3:cpu,cpuacct:/pod/own\n2:memory:/pod/own\n0::/\n")
    monkeypatch.setattr(resources, "CGROUP_DIR", tmp_path)
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert resources.processors() == expected
    assert resources.runtime_threads(0) == (0 if expected == 8 else expected)
    assert resources.runtime_threads(5) == 5
    assert predict._default_workers(100) == expected


def test_case_52_the_memory_of_a_group_above_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit, used in (("pod/own", 2**62, 100), ("pod", 1_000_000, 700_000)):
        folder = tmp_path / "memory" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 300000\n")
    (tmp_path / "cgroup").write_text("2:memory:/pod/own\n0::/\n")
    monkeypatch.setattr(resources, "CGROUP_DIR", tmp_path)
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "cgroup")
    assert resources.available_memory() == 600_000
    assert resources.container_memory() == 1_000_000


def test_without_a_folder_for_temporary_files_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(TemporaryFolderError, match="no folder for temporary files.*set TMPDIR to one that can"):
        resources.temporary_dir().__enter__()


def test_the_rest_is_what_the_system_says(tmp_path: Path) -> None:
    found = resources.read_resources(tmp_path)
    assert found.memory_bytes is not None and found.available_bytes is not None
    assert 0 < found.available_bytes <= found.memory_bytes
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.disk_free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, abs=2**30)
    assert found.writable
