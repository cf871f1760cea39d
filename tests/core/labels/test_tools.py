"""Import of files that the tools' own libraries wrote (see golden/README.md), against their own masks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from gmtool.images import UInt8Array
from gmtool.labels.dataset.importing import import_labels
from gmtool.labels.dataset.job import ImportOptions
from gmtool.labels.dataset.report import ImportReport

GOLDEN = Path(__file__).parent / "golden"
CLASSES = {"background": 0, "house": 1, "lake": 2, "tree": 3}


def import_golden(name: str, out: Path, **options: object) -> ImportReport:
    return import_labels(
        GOLDEN / name,
        out,
        ImportOptions(**options),  # type: ignore[arg-type]
        progress=lambda items, _: iter(items),
    )


def read(out: Path, part: str = "train") -> UInt8Array:
    """Return the mask of `scene` with the labels of `CLASSES`."""
    names = json.loads((out / "classes.json").read_text())["names"]
    mask = np.array(Image.open(out / "masks" / part / "scene.png"))
    labels: UInt8Array = np.array([CLASSES[name] for name in names], dtype=np.uint8)[mask]
    return labels


def truth(name: str) -> UInt8Array:
    return np.array(Image.open(GOLDEN / name))


def inner(labels: UInt8Array) -> np.ndarray:
    """Return the pixels whose neighbours all have their label."""
    same = np.ones(labels.shape, dtype=bool)
    for label in np.unique(labels):
        same &= (labels != label) | ndimage.binary_erosion(labels == label, np.ones((3, 3)), border_value=1)
    return same


@pytest.mark.parametrize("tool", ["cvat", "cvat-masks", "datumaro"])
def test_masks_are_those_of_cvat_and_datumaro(tool: str, tmp_path: Path) -> None:
    report = import_golden(tool, tmp_path / "out")
    np.testing.assert_array_equal(read(tmp_path / "out"), truth("datumaro.png"))
    assert (report.parts, report.labeled) == ({"train": 1, "val": 1}, {"train": 1, "val": 1})
    assert {problem.kind for problem in report.problems} <= {"too few labels"}


def test_coco_boxes_give_no_mask(tmp_path: Path) -> None:
    report = import_golden("coco", tmp_path / "out")
    expected = truth("datumaro.png").copy()
    expected[2:8, 18:27] = 0
    np.testing.assert_array_equal(read(tmp_path / "out"), expected)
    (problem,) = [one for one in report.problems if one.kind != "too few labels"]
    assert problem.kind == "boxes without outline" and "annotation 2 is a box" in problem.message


@pytest.mark.parametrize("tool", ["yolo-label-studio", "coco-label-studio"])
def test_polygons_that_label_studio_converts_are_the_same(tool: str, tmp_path: Path) -> None:
    import_golden(tool, tmp_path / "out")
    names = json.loads((tmp_path / "out/classes.json").read_text())["names"]
    assert names == ["background", "house", "lake", "tree"]
    (path,) = (tmp_path / "out/masks").rglob("*.png")
    np.testing.assert_array_equal(np.array(Image.open(path)) == 3, truth("datumaro.png") == 3)


@pytest.mark.parametrize("tool", ["labelme", "labelme-embedded", "label-studio"])
def test_masks_are_those_of_labelme_up_to_the_outline_that_it_paints(tool: str, tmp_path: Path) -> None:
    import_golden(tool, tmp_path / "out", val_share=0.0)
    found, expected = read(tmp_path / "out"), truth("labelme.png")
    # labelme paints the outline too, half a pixel more on each side
    assert (found == expected)[inner(expected) | inner(found)].all()
    np.testing.assert_array_equal(found[12:, 17:], expected[12:, 17:])  # its mask shape, exactly


def test_supervisely_bitmaps_rectangles_and_polygons(tmp_path: Path) -> None:
    report = import_golden("supervisely", tmp_path / "out")
    found, expected = read(tmp_path / "out"), truth("supervisely.png")
    assert report.classes == ("background", "house", "tree", "lake")
    assert (found == expected)[found != 3].mean() > 0.96
    assert (found == expected)[inner(expected) & (expected != 3)].all()
    np.testing.assert_array_equal((found == 1) | (found == 2), (expected == 1) | (expected == 2))
    assert (found[5:8, 7:10] == 0).all()  # the hole


def test_an_image_in_the_json_is_written_and_a_path_that_leads_outside_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(GOLDEN / "labelme/scene.png", tmp_path / "elsewhere/scene.png")
    shutil.copytree(GOLDEN / "labelme-embedded", tmp_path / "source")
    import_labels(tmp_path / "source", tmp_path / "out", ImportOptions(), progress=lambda items, _: iter(items))
    image = tmp_path / "out/images/train/scene.png"
    assert image.resolve().is_relative_to((tmp_path / "out").resolve())
    np.testing.assert_array_equal(np.array(Image.open(image)), np.array(Image.open(GOLDEN / "labelme/scene.png")))


def test_lines_are_left_out_with_their_reason(tmp_path: Path) -> None:
    report = import_golden("labelme", tmp_path / "out")
    kinds = {problem.kind: problem.message for problem in report.problems}
    assert "linestrip has no area" in kinds["linestrip without area"]


def test_tasks_of_label_studio_without_annotation_are_unlabeled(tmp_path: Path) -> None:
    report = import_golden("label-studio", tmp_path / "out")
    assert (report.parts, report.labeled) == ({"train": 2}, {"train": 1})
    assert (tmp_path / "out/labeled.txt").read_text() == "train/scene\n"
    assert (tmp_path / "out/images/train/other.png").exists()
