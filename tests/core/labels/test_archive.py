"""Import of the archives that labeling tools export."""

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_importing import labelme, mask, run, shape

from gmtool.errors import DataError
from gmtool.labels import archive as archives


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(3):
        labelme(tmp_path / "export", f"p{number}", shape("cat", number, 0, 9, 9))
    return tmp_path / "export"


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
@pytest.mark.parametrize("top", [None, "export"])
def test_an_archive_is_its_folder(source: Path, tmp_path: Path, kind: str, top: str | None) -> None:
    archive = shutil.make_archive(str(tmp_path / "labels"), kind, tmp_path if top else source, top)
    run(source, tmp_path / "of-folder")
    report = run(Path(archive), tmp_path / "of-archive")
    assert sum(report.labeled.values()) == 3
    ids = [
        path.relative_to(tmp_path / "of-folder/masks") for path in (tmp_path / "of-folder/masks").rglob("*.png")
    ]
    assert len(ids) == 3
    for name in ids:
        stem = str(name.with_suffix(""))
        assert np.array_equal(mask(tmp_path / "of-archive", stem), mask(tmp_path / "of-folder", stem))
        image = tmp_path / "of-archive/images" / name
        assert image.is_file() and not image.is_symlink()
    assert not list(tmp_path.glob(".gmtool-unpacked-*"))
    again = run(Path(archive), tmp_path / "of-archive")
    assert again.changes.get("new", 0) == 0


def test_nothing_leaves_the_folder_and_links_are_left_out(source: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as opened:
        opened.add(source, "export")
        link = tarfile.TarInfo("export/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        opened.addfile(link)
    with archives.unpacked(tmp_path / "x.tar", beside=tmp_path / "out") as folder:
        assert folder.name == "export" and not (folder / "link").exists()
        assert len(list(folder.rglob("*.json"))) == 3
    with tarfile.open(tmp_path / "y.tar", "w") as opened:
        outside = tarfile.TarInfo("../outside.txt")
        outside.size = 1
        opened.addfile(outside, io.BytesIO(b"x"))
    with pytest.raises(DataError, match=r"y\.tar is a damaged or encrypted archive: .*outside"):
        run(tmp_path / "y.tar", tmp_path / "out")
    assert not (tmp_path / "outside.txt").exists()
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as opened_zip:
        opened_zip.writestr("../../outside.txt", "x")
    with archives.unpacked(tmp_path / "z.zip", beside=tmp_path / "out") as folder:
        assert (folder / "outside.txt").read_text() == "x"


def test_archives_that_cannot_be_unpacked_are_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"x\.zip is a damaged or encrypted archive"):
        run(tmp_path / "x.zip", tmp_path / "out")
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match=r"x\.rar is an archive of another kind than zip and tar: unpack it"):
        run(tmp_path / "x.rar", tmp_path / "out")
    archive = shutil.make_archive(str(tmp_path / "labels"), "zip", source)
    Path(archive).write_bytes(Path(archive).read_bytes().replace(b"shapes", b"shApes"))
    monkeypatch.setattr(archives, "SMALL_BYTES", 10)
    monkeypatch.setattr(archives, "MAX_GROWTH", 0)
    with pytest.raises(DataError, match=r"unpacks to 0\.0 GiB, expected at most 0\.0: unpack it on a disk"):
        run(Path(archive), tmp_path / "out")
    assert not (tmp_path / "out").exists()
