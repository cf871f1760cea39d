"""Download PASCAL VOC 2012 and SBD with torchvision; build SBD's larger training set."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import numpy as np

from gmtool.classes import load_classes
from gmtool.config import DataConfig
from gmtool.console import remark
from gmtool.errors import DataError, needs_extra
from gmtool.files import TEMPORARY_SUFFIX, write_atomically
from gmtool.images import UInt8Array
from gmtool.masks.files import encode_mask

MASK_DIR = "SegmentationClassAug"
"""Folder of the masks that `download_sbd` builds."""
TRAIN_LIST = "ImageSets/Segmentation/trainaug.txt"
VOC_DIR = "VOCdevkit/VOC2012"


def download_data(config: DataConfig) -> None:
    """Fetch PASCAL VOC into the data's folder if it is missing; SBD too if its masks are asked for."""
    voc = download_voc(config.root)
    if config.mask_dir == MASK_DIR:
        download_sbd(config.root, voc)


def download_voc(root: Path) -> Path:
    """Download PASCAL VOC 2012 into `root` atomically, unless it exists.

    Returns:
        Folder that contains `JPEGImages`.

    Raises:
        DataError: The download failed.
    """
    for voc in (root, root / "VOC2012", root / VOC_DIR):
        if (voc / "JPEGImages").is_dir():
            remark(f"PASCAL VOC already exists in {voc}")
            return voc
    from torchvision.datasets import VOCSegmentation
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    source = DATASET_YEAR_DICT["2012"]
    with _fetching(root, source["filename"], url=source["url"], md5=source["md5"]) as folder:
        VOCSegmentation(folder, year="2012", image_set="trainval", download=True)
        (root / VOC_DIR).parent.mkdir(exist_ok=True)
        (folder / VOC_DIR).rename(root / VOC_DIR)
    remark(f"PASCAL VOC is in {root / VOC_DIR}")
    return root / VOC_DIR


def download_sbd(root: Path, voc: Path) -> None:
    """Download SBD and build `MASK_DIR` and `TRAIN_LIST`, unless they exist.

    The list has the images of SBD and of VOC's training set without VOC's validation set: 10 582. Masks of VOC are
    preferred, since they are finer and mark borders as void; VOC's validation masks are copied too.

    Args:
        root: Folder for the archive.
        voc: Folder that contains `JPEGImages`.

    Raises:
        DataError: The download failed, or only the masks or the list exist.
    """
    masks, train_list = voc / MASK_DIR, voc / TRAIN_LIST
    if masks.is_dir() and train_list.is_file():
        remark(f"SBD already exists in {masks}")
        return
    if masks.exists():
        raise DataError(f"{masks} exists without {train_list}: add the list, or remove the folder to build both")
    with needs_extra("train", "reading SBD"):
        import scipy.io  # noqa: F401  torchvision would fail after the download
    from torchvision.datasets import SBDataset

    with _fetching(root, SBDataset.filename, url=SBDataset.url, md5=SBDataset.md5) as folder:
        SBDataset(folder, image_set="train", mode="segmentation", download=True)
        built = folder / MASK_DIR
        ids = _build_masks(folder, voc, built)
        # Masks last: without them SBD counts as missing
        write_atomically(train_list, "".join(f"{name}\n" for name in ids))
        built.rename(masks)
    remark(f"{len(ids)} training images with masks of SBD: {masks}, {train_list}")


def _build_masks(sbd: Path, voc: Path, masks: Path) -> list[str]:
    """Write a mask for every image of SBD and VOC; return the ids of the training images."""
    lists = voc / "ImageSets/Segmentation"
    train, val = (set((lists / f"{part}.txt").read_text().split()) for part in ("train", "val"))
    in_sbd = {name for part in ("train", "val") for name in (sbd / f"{part}.txt").read_text().split()}
    masks.mkdir()
    for name in sorted(train | val):
        shutil.copyfile(voc / "SegmentationClass" / f"{name}.png", masks / f"{name}.png")
    classes = load_classes("voc")
    for name in sorted(in_sbd - train - val):
        if not (voc / "JPEGImages" / f"{name}.jpg").is_file():
            raise DataError(f"SBD has a mask for {name}, but {voc / 'JPEGImages'} has no such image")
        labels = _read_sbd_mask(sbd / "cls" / f"{name}.mat")
        (masks / f"{name}.png").write_bytes(encode_mask(labels, classes))
    return sorted((in_sbd | train) - val)


def _read_sbd_mask(path: Path) -> UInt8Array:
    from scipy.io import loadmat

    labels: UInt8Array = np.asarray(loadmat(path)["GTcls"][0]["Segmentation"][0], dtype=np.uint8)
    return labels


@contextmanager
def _fetching(root: Path, filename: str, *, url: str, md5: str) -> Iterator[Path]:
    """Yield a temporary folder in `root` to download into; turn failures into `DataError`.

    An archive that exists in `root` is used instead of a download.
    """
    from torchvision.datasets.utils import check_integrity

    folder = root / f".{filename}{TEMPORARY_SUFFIX}"
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed process
    try:
        folder.mkdir(parents=True)
        if check_integrity(root / filename, md5):
            (folder / filename).symlink_to((root / filename).resolve())
        yield folder
    except (OSError, RuntimeError, HTTPException, tarfile.TarError, EOFError, KeyError) as error:
        raise DataError(
            f"download of {url} failed ({error}): repeat it, or put {filename} into {root} by other means"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
