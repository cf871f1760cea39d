"""`--download` through torchvision's own code, from a server on this machine."""

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Cli
from gmtool_training.data.download import download_sbd, download_voc
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

from gmtool.errors import DataError

TRAIN, VAL = ["t0", "t1", "t2", "t3", "t4"], ["v0", "v1"]
SBD_TRAIN, SBD_VAL = ["s0", "s1", "s2", "t0", "v0"], ["s3", "s4", "s5", "t1"]
SIZE = (48, 40)
"""Height and width."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and its address."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def labels_of(name: str) -> np.ndarray:
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[10:30, 10:30] = 1 + int(name[1])
    return labels


def pack(source: Path, archive: Path) -> str:
    """Write `source` into an archive; return its MD5."""
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as tar:
        tar.add(source, arcname=source.name)
    return hashlib.md5(archive.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def archives(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny archives of VOC and SBD under the official names, and torchvision's tables turned to them."""
    folder, address = served
    voc = tmp_path / "VOCdevkit"
    for sub in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / "VOC2012" / sub).mkdir(parents=True)
    for name in {*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL}:
        noise = np.random.default_rng(int(name[1])).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(voc / "VOC2012/JPEGImages" / f"{name}.jpg")
    for name in (*TRAIN, *VAL):
        labels = labels_of(name)
        labels[10] = 255  # void, which SBD does not have
        Image.fromarray(labels).save(voc / "VOC2012/SegmentationClass" / f"{name}.png")
    for part, names in (("train", TRAIN), ("val", VAL), ("trainval", [*TRAIN, *VAL])):
        (voc / "VOC2012/ImageSets/Segmentation" / f"{part}.txt").write_text("\n".join(names) + "\n")
    source = dict(DATASET_YEAR_DICT["2012"])
    source["md5"] = pack(voc, folder / source["filename"])
    source["url"] = f"{address}/{source['filename']}"
    monkeypatch.setitem(DATASET_YEAR_DICT, "2012", source)

    sbd = tmp_path / "benchmark_RELEASE"
    for sub in ("cls", "img", "inst"):
        (sbd / "dataset" / sub).mkdir(parents=True)
    for name in {*SBD_TRAIN, *SBD_VAL}:
        record = np.zeros((1, 1), dtype=[("Segmentation", object)])
        record[0, 0]["Segmentation"] = labels_of(name)
        savemat(sbd / "dataset/cls" / f"{name}.mat", {"GTcls": record})
    (sbd / "dataset/train.txt").write_text("\n".join(SBD_TRAIN))
    (sbd / "dataset/val.txt").write_text("\n".join(SBD_VAL))
    monkeypatch.setattr(SBDataset, "md5", pack(sbd, folder / SBDataset.filename))
    monkeypatch.setattr(SBDataset, "url", f"{address}/{SBDataset.filename}")


def test_voc_appears_whole_and_is_fetched_once(
    tmp_path: Path, served: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    voc = download_voc(root)
    assert voc == root / "VOCdevkit/VOC2012"
    assert len(list((voc / "JPEGImages").iterdir())) == 13
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]
    for path in served[0].iterdir():
        path.unlink()
    for place in (root, root / "VOCdevkit", voc):
        assert download_voc(place) == voc
    assert capfd.readouterr().err.count("already") == 3


def test_sbd_completes_voc(tmp_path: Path, served: tuple[Path, str], capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    voc = download_voc(root)
    download_sbd(root, voc)
    names = (voc / "ImageSets/Segmentation/trainaug.txt").read_text().split()
    assert names == sorted(({*SBD_TRAIN, *SBD_VAL} | {*TRAIN}) - {*VAL})
    masks = voc / "SegmentationClassAug"
    assert {path.stem for path in masks.iterdir()} == {*names, *VAL}
    for name in names:
        expected = labels_of(name)
        if name in TRAIN:
            expected[10] = 255  # VOC's own mask was taken
        np.testing.assert_array_equal(np.asarray(Image.open(masks / f"{name}.png")), expected)
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]
    for path in served[0].iterdir():
        path.unlink()
    download_sbd(root, voc)
    assert "already exists in" in capfd.readouterr().err.splitlines()[-1]


def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path: Path, served: tuple[Path, str]) -> None:
    root = tmp_path / "data"
    filename = DATASET_YEAR_DICT["2012"]["filename"]
    archive = served[0] / filename
    content = archive.read_bytes()
    archive.write_bytes(content[:-1000])
    with pytest.raises(DataError, match=f"download of http.* failed .*or put {filename} into {root}") as error:
        download_voc(root)
    assert "\n" not in str(error.value)
    archive.unlink()
    with pytest.raises(DataError, match="failed .HTTP Error 404"):
        download_voc(root)
    assert list(root.iterdir()) == []
    # By other means
    (root / filename).write_bytes(content)
    assert (download_voc(root) / "JPEGImages").is_dir()
    assert (root / filename).read_bytes() == content


def test_voc_stays_when_sbd_fails(tmp_path: Path, served: tuple[Path, str]) -> None:
    root = tmp_path / "data"
    voc = download_voc(root)
    (served[0] / SBDataset.filename).unlink()
    before = sorted(root.rglob("*"))
    with pytest.raises(DataError, match="benchmark.tgz"):
        download_sbd(root, voc)
    assert sorted(root.rglob("*")) == before


def test_masks_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    voc = download_voc(tmp_path / "data")
    (voc / "SegmentationClassAug").mkdir()
    with pytest.raises(DataError, match="exists without .*trainaug.txt"):
        download_sbd(tmp_path / "data", voc)


@pytest.mark.parametrize(("kind", "images"), [("voc", 5), ("voc-aug", 11)])
def test_download_and_train_in_one_command(cli: Cli, tmp_path: Path, kind: str, images: int) -> None:
    root = tmp_path / "data"
    settings = {**SMALL, "method.name": "supervised", "run.validations": 1, "optim.iterations": 2}
    flags = [item for name, value in settings.items() for item in ("--set", f"{name}={value}")]
    code, out, err = cli(["train", kind, "--download", "--data", root, "--out", tmp_path / "run", *flags])
    assert code == 0, err
    assert f"{images} labeled" in err and "2 validation" in err
    assert "2 images scored, 0 failed" in out


def test_other_kinds_are_not_downloaded(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli(["train", "cityscapes", "--download", "--data", tmp_path / "data"])
    assert code == 2
    assert "--download fetches voc and voc-aug, not cityscapes" in err
    assert err.count("\n") == 1
