"""Import of the archives that labeling tools export."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.errors import DataError
from gmtool.labels import archive as archives
from gmtool.labels.dataset.importing import import_labels
from gmtool.labels.dataset.job import ImportOptions
from gmtool.labels.dataset.report import ImportReport


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three images with labelme's files."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (30, 20), (number, 90, 120)).save(folder / f"p{number}.png")
        shape = {"label": "cat", "shape_type": "rectangle", "points": [[number, 0], [9, 9]]}
        value = {"shapes": [shape], "imagePath": f"p{number}.png", "imageHeight": 20, "imageWidth": 30}
        (folder / f"p{number}.json").write_text(json.dumps(value))
    return folder


def run(source: Path, out: Path) -> ImportReport:
    return import_labels(source, out, ImportOptions(), progress=lambda items, _: iter(items))


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
        ours, theirs = (
            np.array(Image.open(tmp_path / out / "masks" / name)) for out in ("of-archive", "of-folder")
        )
        assert np.array_equal(ours, theirs)
        image = tmp_path / "of-archive/images" / name
        assert image.is_file() and not image.is_symlink()
    assert not list(tmp_path.glob(".*.gmtool-tmp"))
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
