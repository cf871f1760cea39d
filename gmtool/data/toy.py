"""Toy data set in VOC layout: overlapping textured shapes of several classes."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gmtool.classes import ClassSet, distinct_palette
from gmtool.errors import DataError
from gmtool.files import write_atomically
from gmtool.images import UInt8Array
from gmtool.masks.files import write_mask

NAMES = ("background", "disc", "square", "triangle", "star", "ring")
CLASSES = ClassSet(
    names=NAMES, palette=distinct_palette(len(NAMES), 0), raw_ids=tuple(range(len(NAMES))), background=0
)
HUES = (0.30, 0.02, 0.60, 0.13, 0.80, 0.48)
"""Mean hue of each class, in [0, 1); hues vary so that classes overlap, and texture and shape matter too."""


@dataclass(frozen=True)
class ToyConfig:
    """Number and size of the images, and the seed."""

    labeled: int = 24
    unlabeled: int = 136
    val: int = 40
    height_px: int = 96
    width_px: int = 128
    seed: int = 0


def generate_toy(root: Path, config: ToyConfig) -> None:
    """Write the data set below `root`: VOC layout, `classes.json`, and split lists in `splits/`.

    A folder that already holds the same data set does not change.

    Raises:
        DataError: The folder holds other files.
    """
    stamp = root / "toy.json"
    wanted = json.dumps(asdict(config)) + "\n"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    if root.exists() and any(root.iterdir()):
        raise DataError(f"{root} exists already and is not this toy data set: give another --data DIR")
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "splits"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    ids = [f"toy_{index:05d}" for index in range(config.labeled + config.unlabeled + config.val)]
    for index, name in enumerate(ids):
        image, mask = draw_sample(np.random.default_rng([config.seed, index]), config)
        _write_jpeg(root / "JPEGImages" / f"{name}.jpg", image)
        write_mask(root / "SegmentationClass" / f"{name}.png", mask, CLASSES)
    train = ids[: config.labeled + config.unlabeled]
    _write_list(root / "ImageSets" / "Segmentation" / "train.txt", train)
    _write_list(root / "ImageSets" / "Segmentation" / "val.txt", ids[len(train) :])
    _write_list(root / "splits" / "labeled.txt", train[: config.labeled])
    write_atomically(root / "classes.json", json.dumps(CLASSES.to_dict(), indent=1) + "\n")
    write_atomically(stamp, wanted)  # last: marks the data set as complete


def draw_sample(random: np.random.Generator, config: ToyConfig) -> tuple[UInt8Array, UInt8Array]:
    """Return an image (H, W, 3) of two to five shapes, and its mask (H, W), both uint8; later ones in front."""
    height, width = config.height_px, config.width_px
    image = _texture(random, 0, height, width)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(random.integers(2, 6)):
        label = int(random.integers(1, len(NAMES)))
        inside = _shape(random, label, height, width)
        image[inside] = _texture(random, label, height, width)[inside]
        mask[inside] = label
    noisy = image * random.uniform(0.7, 1.2) + random.normal(0, 8, image.shape)
    return noisy.clip(0, 255).astype(np.uint8), mask


def _texture(random: np.random.Generator, label: int, height: int, width: int) -> np.ndarray:
    """Return stripes with period and hue of a class, (H, W, 3) float32 in [0, 255]."""
    y, x = np.mgrid[:height, :width]
    angle = random.uniform(0, math.pi)
    period = (9, 4, 6, 14, 5, 8)[label] * random.uniform(0.85, 1.15)
    wave = 0.5 + 0.5 * np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
    hue = np.full((height, width), (HUES[label] + random.normal(0, 0.035)) % 1 * 255)
    saturation = np.full((height, width), random.uniform(90, 200))
    value = 90 + 110 * wave
    hsv = np.stack([hue, saturation, value], axis=-1).astype(np.uint8)
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"), dtype=np.float32)


def _shape(random: np.random.Generator, label: int, height: int, width: int) -> np.ndarray:
    """Return the region of one shape of a class, (H, W) bool."""
    radius = random.uniform(0.14, 0.34) * height
    x, y = random.uniform(0, width), random.uniform(0, height)
    turn = random.uniform(0, 2 * math.pi)
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    box = (x - radius, y - radius, x + radius, y + radius)
    if NAMES[label] == "disc":
        draw.ellipse(box, fill=255)
    elif NAMES[label] == "ring":
        draw.ellipse(box, outline=255, width=max(3, round(radius * 0.45)))
    else:
        corners, inner = {"square": (4, 1.0), "triangle": (3, 1.0), "star": (5, 0.45)}[NAMES[label]]
        points = []
        for step in range(2 * corners):
            reach = radius if step % 2 == 0 else radius * inner
            if step % 2 == 0 or inner < 1:
                angle = turn + step * math.pi / corners
                points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        draw.polygon(points, fill=255)
    return np.asarray(canvas.filter(ImageFilter.ModeFilter(3))) > 127


def _write_jpeg(path: Path, image: UInt8Array) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    write_atomically(path, buffer.getvalue())


def _write_list(path: Path, ids: list[str]) -> None:
    write_atomically(path, "".join(f"{name}\n" for name in ids))
