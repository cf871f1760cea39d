"""One search of folders for every command: links followed, hidden files left out and counted, any case."""

import json
import shutil
from pathlib import Path

import pytest
from gmtool_serving.benchmark.images import samples_below
from gmtool_serving.inputs.collect import collect_images
from gmtool_serving.scoring.tasks import masks_task
from PIL import Image

from gmtool.classes import ClassSet, voc_palette
from gmtool.config import DataConfig
from gmtool.data.datasets import load_split, load_training_data
from gmtool.errors import DataError
from gmtool.folders import LeftOut, below
from gmtool.masks.sources import open_masks

CLASSES = ClassSet(("a", "b"), voc_palette(2), (0, 1))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 6)).save(path, format="PNG")


def litter(folder: Path) -> None:
    """Put beside files what macOS and Jupyter leave."""
    touch(folder, "._x.jpg", "._x.png", ".DS_Store", ".ipynb_checkpoints/x-checkpoint.jpg", "__MACOSX/y.jpg")


def test_links_are_followed_and_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    touch(tmp_path, "disk/deep/b.JPG", "data/a.jpg", "data/notes.txt")
    (tmp_path / "data/more").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(tmp_path / "data")
    assert list(below(tmp_path / "data", suffixes=(".jpg",))) == ["a.jpg", "more/deep/b.JPG"]


def test_what_is_left_out_is_counted_in_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.heic", "c.HEIC", "d.heif", "e.heic", "f.avif", "g.jp2", "h.NEF", "notes.txt")
    litter(tmp_path)
    left_out = LeftOut()
    assert list(below(tmp_path, suffixes=(".jpg",), left_out=left_out)) == ["a.jpg"]
    line = str(left_out)
    assert "4 HEIC (b.heic, c.HEIC, d.heif and 1 more)" in line
    assert "1 AVIF (f.avif), 4 HEIC" in line and "1 JPEG 2000 (g.jp2), 1 RAW (h.NEF): convert them" in line
    assert "3 hidden files or folders (._x.jpg, .ipynb_checkpoints, __MACOSX)" in line
    assert "\n" not in line and "notes" not in line
    assert str(LeftOut()) == ""


def test_predict_says_which_images_it_leaves_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "in/a.jpg", "in/b.jfif", "in/c.JPE", "in/phone.heic")
    litter(tmp_path / "in")
    found = collect_images([str(tmp_path / "in")], tmp_path / "out")
    assert [image.path.name for image in found] == ["a.jpg", "b.jfif", "c.JPE"]
    assert "left out: 1 HEIC (phone.heic): convert them to JPEG or PNG, 4 hidden" in capfd.readouterr().err
    collect_images([f"{tmp_path}/in/*"], tmp_path / "out")
    assert "1 HEIC" in capfd.readouterr().err
    (tmp_path / "phone").mkdir()
    touch(tmp_path, "phone/x.heic")
    with pytest.raises(DataError, match=r"no images in .*left out: 1 HEIC \(x\.heic\)"):
        collect_images([str(tmp_path / "phone")], tmp_path / "out")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two training images, one labeled, and a validation image in layout folder."""
    for name in ("train/x", "train/y", "val/v"):
        picture(tmp_path / f"store/images/{name}.jpg")
        picture(tmp_path / f"store/masks/{name}.png")
    (tmp_path / "store/labeled.txt").write_text("x\n")
    return tmp_path / "store"


def load(root: Path, **more: object) -> list[list[str]]:
    config = DataConfig(root, "folder", labeled=root / "labeled.txt", **more)  # type: ignore[arg-type]
    data = load_training_data(config)
    return [[sample.id for sample in split.samples] for split in (data.labeled, data.unlabeled, data.val)]


def test_data_sets_of_links_and_with_hidden_files_are_read(
    store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("images/train", "images/val", "masks/train"):
        litter(store / folder)
    expected = [["train/x"], ["train/y"], ["val/v"]]
    assert load(store) == expected
    assert "hidden files or folders (train/._x.jpg, train/._x.png, " in capfd.readouterr().err
    linked = tmp_path / "linked"
    for kind in ("images", "masks"):
        (linked / kind).mkdir(parents=True)
        for part in ("train", "val"):
            (linked / kind / part).symlink_to(store / kind / part)
    shutil.copy(store / "labeled.txt", linked)
    assert load(linked) == expected
    (tmp_path / "voc/JPEGImages").mkdir(parents=True)
    (tmp_path / "voc/SegmentationClass").mkdir()
    (tmp_path / "voc/JPEGImages/a").symlink_to(store / "images/train")
    (tmp_path / "voc/SegmentationClass/a").symlink_to(store / "masks/train")
    (tmp_path / "voc/list.txt").write_text("a/x\n")
    assert len(load_split(DataConfig(tmp_path / "voc"), "val", tmp_path / "voc/list.txt").samples) == 1


def test_suffixes_count_in_any_case_and_masks_may_be_of_any_lossless_type(store: Path) -> None:
    images, masks = store / "images/train", store / "masks/train"
    (images / "x.jpg").rename(images / "x.JPG")
    for name in ("x.PNG", "x.tif", "x.Gif", "x.BMP"):
        next(masks.glob("x.*")).rename(masks / name)
        for template in ("images/{id}.*", "images/{id}.jpg"):
            assert load(store, images=template) == [["train/x"], ["train/y"], ["val/v"]]
    (masks / "x.tif").touch()
    with pytest.raises(DataError, match=r"x\.\w+ and .*x\.\w+ differ only in their suffix: keep one as the mask"):
        load(store)


def test_masks_beside_their_images_are_no_images_whatever_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "train/x.tif", "train/x_mask.TIF", "train/y.tif", "val/v.tif", "val/v_mask.png")
    (tmp_path / "labeled.txt").write_text("x\n")
    found = load(tmp_path, images="{part}/{id}.*", masks="{part}/{id}_mask.png")
    assert found == [["train/x"], ["train/y"], ["val/v"]]


@pytest.mark.parametrize("suffix", [".PNG", ".tif", ".TIFF", ".bmp", ".gif"])
def test_masks_of_every_lossless_type_are_scored_and_hidden_ones_are_not(tmp_path: Path, suffix: str) -> None:
    mask = Image.new("L", (8, 6))
    mask.putpixel((3, 3), 1)
    (tmp_path / "masks/deep").mkdir(parents=True)
    mask.save(tmp_path / f"masks/deep/x{suffix}")
    litter(tmp_path / "masks")
    (tmp_path / "masks/__MACOSX/deep").mkdir()
    shutil.copy(tmp_path / f"masks/deep/x{suffix}", tmp_path / "masks/__MACOSX/deep")
    source = open_masks(tmp_path / "masks", CLASSES, None, option="--mask-values")
    assert source.names == ("deep/x",)
    assert source.read("deep/x")[3, 3] == 1
    assert {"P": "PNG", "T": "TIFF", "B": "BMP", "G": "GIF"}[suffix[1].upper()] in source.description


def test_a_folder_without_masks_names_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.npy", "README")
    with pytest.raises(DataError, match=r"no masks in it, but 2 \.jpg, .*JPEG changes labels: save masks as PNG"):
        open_masks(tmp_path, CLASSES, None, option="x")
    picture(tmp_path / "masks/a.png")
    picture(tmp_path / "masks/a.bmp")
    with pytest.raises(DataError, match="keep one mask of a"):
        open_masks(tmp_path / "masks", CLASSES, None, option="x")


def test_pictures_of_a_report_and_images_of_a_benchmark_are_found_the_same_way(tmp_path: Path) -> None:
    picture(tmp_path / "disk/x.JPG")
    picture(tmp_path / "truth/a/x.PNG")
    litter(tmp_path / "disk")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a").symlink_to(tmp_path / "disk")
    (sample,) = samples_below(tmp_path / "images", tmp_path / "truth")
    assert (sample.id, sample.mask) == ("a/x", tmp_path / "truth/a/x.PNG")
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b"]}))
    task = masks_task(tmp_path / "truth", tmp_path / "truth", None, classes=CLASSES, images=tmp_path / "images")
    assert task.picture is not None and task.picture("a/x") is not None
