"""Settings of each data set kind over the defaults, which are the paper's for VOC."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from gmtool.errors import UsageError, did_you_mean
from gmtool.settings import Settings

PRESETS: Mapping[str, Settings] = {
    # Defaults of `gmtool.config`: the paper's VOC recipe
    "voc": {"data.layout": "voc"},
    # The same with SBD's masks: 10 582 training images
    "voc-aug": {
        "data.layout": "voc",
        "data.mask_dir": "SegmentationClassAug",
        "data.train_list": "ImageSets/Segmentation/trainaug.txt",
    },
    # The paper's settings: larger crops, random pairs, no image classifier
    "cityscapes": {
        "data.layout": "cityscapes",
        "data.classes": "cityscapes",
        "data.mask_values": "raw",
        "data.crop_px": 513,
        "data.labeled_batch": 4,
        "data.unlabeled_batch": 4,
        "model.encoder": "resnet101",
        "method.pairing": "random",
        "method.classification": False,
        "method.lambda_bound": 0.3,
    },
    # VOC 2010 images with the 59 classes and background of PASCAL Context
    "context": {
        "data.layout": "voc",
        "data.classes": "context",
        "data.mask_dir": "SegmentationClassContext",
        "data.train_list": "ImageSets/SegmentationContext/train.txt",
        "data.val_list": "ImageSets/SegmentationContext/val.txt",
        "data.crop_px": 480,
        "data.labeled_batch": 4,
        "data.unlabeled_batch": 4,
    },
    # Own data sets: a smaller batch
    "folder": {"data.layout": "folder", "data.labeled_batch": 4, "data.unlabeled_batch": 4},
    # The same for COCO annotations
    "coco": {"data.layout": "coco", "data.labeled_batch": 4, "data.unlabeled_batch": 4},
    # Generated shapes, narrow network, random weights: minutes on a CPU
    "toy": {
        "data.layout": "voc",
        "data.crop_px": 96,
        "data.labeled_batch": 8,
        "data.unlabeled_batch": 8,
        "data.workers": 0,
        "model.encoder": "toy",
        "model.encoder_weights": "none",
        "model.decoder_channels": 64,
        # The paper's 30 is for 40 000 iterations; in a few hundred it outweighs the labeled loss
        "method.omega_max": 3.0,
        "optim.iterations": 600,
        "optim.lr": 0.02,
        "optim.head_lr_multiplier": 1.0,
        "run.validations": 5,
    },
}


def preset(kind: str) -> Settings:
    """Return the settings for a data set kind.

    Raises:
        UsageError: Unknown kind.
    """
    if kind not in PRESETS:
        raise UsageError(f"unknown data set kind {kind}{did_you_mean(kind, PRESETS)}{_as_folder(kind)}")
    return PRESETS[kind]


def _as_folder(kind: str) -> str:
    """Return what to do if a folder was meant."""
    if Path(kind).is_dir():
        return f"; for a folder: folder --data {kind}"
    beside = Path(kind).parent
    names = [path.name for path in beside.iterdir() if path.is_dir()] if beside.is_dir() else []
    close = get_close_matches(Path(kind).name, names, n=1)
    meant = f": did you mean {beside / close[0]}?" if close else ""
    return f"; no folder of this name either{meant}"
