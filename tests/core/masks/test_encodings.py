"""What masks hold is recognised where it is sure, and asked for where it is not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmtool.classes import ClassSet, load_classes, voc_palette
from gmtool.errors import DataError
from gmtool.masks.encodings import recognize_values

CITYSCAPES = load_classes("cityscapes")
VOC = load_classes("voc")


def folder(
    tmp_path: Path, *labels: list[int], palette: dict[int, tuple[int, int, int]] | None = None
) -> list[Path]:
    paths = []
    for index, row in enumerate(labels):
        image = Image.fromarray(np.array([row], dtype=np.uint8))
        if palette is not None:
            flat = np.zeros((256, 3), dtype=np.uint8)
            for label, color in palette.items():
                flat[label] = color
            image.putpalette(flat.ravel().tolist())
        image.save(tmp_path / f"{index}.png")
        paths.append(tmp_path / f"{index}.png")
    return paths


def recognized(paths: list[Path], classes: ClassSet) -> str:
    return recognize_values(paths, classes, where=Path("masks"), option="--mask-values").values


RAW_PALETTE = dict(zip(CITYSCAPES.raw_ids, CITYSCAPES.palette, strict=True))
INDEX_PALETTE = dict(enumerate(CITYSCAPES.palette))


def test_single_channel_masks_are_told_apart_by_what_only_one_reading_allows(tmp_path: Path) -> None:
    assert recognized(folder(tmp_path, [0, 7, 8], [11, 26, 23]), CITYSCAPES) == "raw"
    assert recognized(folder(tmp_path, [0, 1, 13], [255, 2, 0]), CITYSCAPES) == "index"
    assert recognized(folder(tmp_path, [7, 8, 11], palette=RAW_PALETTE), CITYSCAPES) == "raw"
    assert recognized(folder(tmp_path, [7, 8, 11], palette=INDEX_PALETTE), CITYSCAPES) == "index"
    assert recognized(folder(tmp_path, [0, 15, 255]), VOC) == "index"
    greys = ClassSet(("a", "b", "c"), voc_palette(3), (0, 128, 255), ignore_index=254)
    assert recognized(folder(tmp_path, [0, 128], [255, 0]), greys) == "raw"


@pytest.mark.parametrize("labels", [[0, 8, 11, 13], [1, 2, 3], [0]])
def test_what_may_be_indices_or_raw_ids_is_not_guessed(tmp_path: Path, labels: list[int]) -> None:
    with pytest.raises(DataError, match=r"may be class indices or raw ids: .* --mask-values index\|raw"):
        recognized(folder(tmp_path, labels), CITYSCAPES)


def test_colours_are_known_by_their_channels_and_by_odd_palettes(tmp_path: Path) -> None:
    colors = np.array([[VOC.palette[3], VOC.palette[15]]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "x.png")
    assert recognized([tmp_path / "x.png"], VOC) == "color"
    odd = {200: VOC.palette[3], 201: VOC.palette[15]}
    assert recognized(folder(tmp_path, [200, 201], palette=odd), VOC) == "color"
    with pytest.raises(DataError, match=r"palettes show other classes than its labels say: .* index\|color"):
        recognized(folder(tmp_path, [0, 1], palette={0: VOC.palette[3], 1: VOC.palette[15]}), VOC)


def test_three_equal_channels_are_labels_unless_the_classes_are_grey(tmp_path: Path) -> None:
    for name, values in (("a", [0, 1, 15]), ("b", [0, 255])):
        Image.fromarray(np.repeat(np.array([values], np.uint8)[..., None], 3, axis=2)).save(
            tmp_path / f"{name}.png"
        )
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert recognized(paths, VOC) == "index"
    assert recognized([*paths, *folder(tmp_path, [0, 2])], VOC) == "index"
    greys = ClassSet(("a", "b"), ((0, 0, 0), (255, 255, 255)), (0, 1))
    assert recognized([tmp_path / "b.png"], greys) == "color"


def test_overlays_and_mixtures_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "overlay.png")
    with pytest.raises(DataError, match=r"colours such as \[1, 2, 3\], which no class has"):
        recognized([tmp_path / "overlay.png"], VOC)
    with pytest.raises(DataError, match="masks of one channel .* and of several"):
        recognized([tmp_path / "overlay.png", *folder(tmp_path, [0, 1])], VOC)


def test_of_masks_that_cannot_be_read_nothing_is_concluded(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"text")
    with pytest.raises(
        DataError, match=r"none of 2 masks can be read, such as a\.png; .* with --x index\|raw\|color"
    ):
        recognize_values(sorted(tmp_path.iterdir()), VOC, where=tmp_path, option="--x")
