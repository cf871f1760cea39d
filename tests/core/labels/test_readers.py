"""Shapes that the golden files do not have, from the tools' published formats, and what each reader leaves out."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gmtool.errors import DataError
from gmtool.labels.brush import decode_brush, encode_brush
from gmtool.labels.image_finder import ImageFinder, part_of, plain_name
from gmtool.labels.paint import paint
from gmtool.labels.recognize import open_source, recognize
from gmtool.labels.shapes import MaskFile, ShapeList

SIZE = (20, 30)


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(path)


def shapes(source: Path, name: str = "a.png") -> ShapeList:
    """Return the shapes of an image of a source."""
    (image,) = [each for each in open_source(source).images if each.name.endswith(name)]
    assert image.labels is not None and not isinstance(image.labels, MaskFile)
    return image.labels(SIZE)


def area(found: ShapeList) -> dict[str, int]:
    """Return the pixels of each label."""
    index = {label: place for place, label in enumerate(sorted({each.label for each in found.shapes}), start=1)}
    labels = paint(found.shapes, SIZE, index, ground=0).labels
    return {label: int((labels == place).sum()) for label, place in index.items()}


def png(mask: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
    return buffer.getvalue()


def test_cvat_for_video_tracks_ellipses_turned_boxes_and_z_order(tmp_path: Path) -> None:
    photo(tmp_path / "images/frame_000003.PNG")
    (tmp_path / "annotations.xml").write_text("""<?xml version="1.0"?>
<annotations><version>1.1</version><meta><task>
<labels><label><name>car</name><color>#ff0000</color></label><label><name>tree &amp; co</name></label></labels>
<original_size><width>30</width><height>20</height></original_size></task></meta>
<track id="0" label="car">
 <polygon frame="3" outside="0" keyframe="1" points="0,0;10,0;10,10;0,10" z_order="0"></polygon>
 <polygon frame="4" outside="1" points="0,0;10,0;10,10;0,10" z_order="0"></polygon>
</track>
<track id="1" label="tree &amp; co">
 <box frame="3" outside="0" xtl="10" ytl="12" xbr="20" ybr="16" rotation="90" z_order="2"></box>
 <ellipse frame="3" outside="0" cx="24" cy="6" rx="3" ry="5" z_order="1"></ellipse>
 <polyline frame="3" outside="0" points="0,0;5,5"></polyline>
</track></annotations>""")
    found = shapes(tmp_path, "frame_000003.PNG")
    assert found.size == SIZE and [each.z_order for each in found.shapes] == [0, 2, 1]
    counts = area(found)
    assert counts["car"] == 100 and abs(counts["tree & co"] - (40 + np.pi * 15)) < 4
    (problem,) = found.problems
    assert "polyline has no area" in problem.message
    assert open_source(tmp_path).colors == {"car": (255, 0, 0)}


@pytest.mark.parametrize("rle", ["", "a, b", "5, -1, 3", "100, 900"])
def test_a_damaged_mask_of_cvat_is_left_out(rle: str, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    mask = f'<mask label="x" rle="{rle}" left="1" top="1" width="5" height="5" z_order="0"></mask>'
    image = f'<image id="0" name="a.png" width="30" height="20">{mask}</image>'
    (tmp_path / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    found = shapes(tmp_path)
    assert not found.shapes and found.problems[0].kind == "damaged shapes"


def result(kind: str, **value: Any) -> dict[str, Any]:
    return {"type": kind, "original_width": 30, "original_height": 20, "image_rotation": 0, "value": value}


def test_regions_of_label_studio_of_every_kind(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    mask = np.zeros(SIZE, dtype=bool)
    mask[10:15, 3:9] = True
    data = "data:image/png;base64," + base64.b64encode(png(mask)).decode()
    regions = [
        # Turned about its upper left corner, clockwise
        result("rectanglelabels", x=50, y=0, width=20, height=50, rotation=90, rectanglelabels=["box"]),
        result("bitmasklabels", imageDataURL=data, bitmasklabels=["bits"]),
        result("labels", points=[[80, 50], [100, 50], [100, 100], [80, 100]], labels=["generic"]),
        result("polygonlabels", points=[[0, 0], [10, 0], [10, 10]], closed=False, polygonlabels=["open"]),
        result("keypointlabels", x=1, y=1, width=1, keypointlabels=["point"]),
        result("brushlabels", rle="string", brushlabels=["text"]),
        result("polygonlabels", points=[[0, 0], [10, 0], [10, 10]], polygonlabels=["turned"])
        | {"image_rotation": 90},
        {"type": "choices", "value": {"choices": ["x"]}},
    ]
    annotations = [{"result": regions}, {"was_cancelled": True, "result": []}]
    tasks = [{"id": 3, "data": {"photo": "http://host/a.png"}, "annotations": annotations}]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    found = shapes(tmp_path)
    box = paint(found.shapes[:1], SIZE, {"box": 1}, ground=0).labels
    assert box[:6, 5:15].all()
    assert area(found) == {"box": 60, "bits": 30, "generic": 60}
    assert [problem.kind for problem in found.problems] == [
        *("unclosed or empty shapes", "keypointlabels without area", "damaged shapes", "damaged shapes")
    ]
    assert "its rle is text, not a list of bytes" in found.problems[2].message


def test_json_min_of_label_studio(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    label = {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "polygonlabels": ["cat"], "original_width": 30}
    task = {
        "image": "/data/upload/1/0123abcd-a.png",
        "id": 1,
        "label": [label | {"original_height": 20}],
        "annotator": 1,
    }
    (tmp_path / "min.json").write_text(json.dumps([task]))
    assert area(shapes(tmp_path)) == {"cat": 150}


@pytest.mark.parametrize("seed", range(4))
def test_brush_strokes_round_trip(seed: int) -> None:
    mask = np.random.default_rng(seed).random((37, 411)) < [0.5, 0.01, 0.0, 1.0][seed]
    np.testing.assert_array_equal(decode_brush(encode_brush(mask), mask.shape, where="x"), mask)


@pytest.mark.parametrize(
    "rle", [[], [0] * 3, [0, 0, 0, 40, 57, 16, 0], [300], "abc", None, [0, 0, 9, 96] + [255] * 9]
)
def test_damaged_brush_strokes_are_refused(rle: Any) -> None:
    with pytest.raises(DataError, match="^spot: its rle"):
        decode_brush(rle, SIZE, where="spot")


def test_yolo_lines_of_every_kind(tmp_path: Path) -> None:
    photo(tmp_path / "train/images/a.png")
    (tmp_path / "train/labels").mkdir()
    (tmp_path / "train/labels/a.txt").write_text(
        "0 0 0 0.5 0 0.5 0.5 0 0.5\n1 0.5 0.5 0.1 0.1\n7 0 0 1 0 1 1\n"
        "0 0 0 1\n0 a b c d e f\n0 0.1 0.1 0.2 0.2\n\n"
    )
    (tmp_path / "data.yaml").write_text("train: ../train/images\nnames: ['cat', 'dog']\n")
    found = shapes(tmp_path)
    assert area(found) == {"cat": 150}
    assert [problem.kind for problem in found.problems] == [
        *("boxes without outline", "damaged shapes", "damaged shapes", "damaged shapes", "boxes without outline")
    ]


def test_datumaro_ellipses_and_what_has_no_area(tmp_path: Path) -> None:
    photo(tmp_path / "images/train/a.png")
    annotations = [
        {"type": "ellipse", "label_id": 0, "points": [2, 2, 12, 10], "z_order": 0},
        {"type": "label", "label_id": 0},
        {"type": "points", "label_id": 0, "points": [1, 1]},
        {"type": "polygon", "label_id": 9, "points": [0, 0, 5, 0, 5, 5]},
        {"type": "mask", "label_id": 0, "rle": {"counts": "x", "size": [2, 2]}},
    ]
    value = {
        "categories": {"label": {"labels": [{"name": "lake"}]}},
        "items": [{"id": "a", "annotations": annotations, "image": {"path": "a.png", "size": [20, 30]}}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text(json.dumps(value))
    found = shapes(tmp_path)
    assert abs(area(found)["lake"] - np.pi * 20) < 4
    assert [problem.kind for problem in found.problems] == [
        *("points without area", "damaged shapes", "damaged shapes")
    ]


def test_a_bitmap_of_supervisely_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmtool.labels.readers import supervisely

    monkeypatch.setattr(supervisely, "MAX_PIXELS", 1000)
    photo(tmp_path / "d/img/a.png")
    data = base64.b64encode(zlib.compress(bytes(10_000))).decode()
    item = {"classTitle": "x", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [0, 0]}}
    (tmp_path / "d/ann").mkdir()
    (tmp_path / "d/ann/a.png.json").write_text(
        json.dumps({"size": {"height": 20, "width": 30}, "objects": [item]})
    )
    (tmp_path / "meta.json").write_text(json.dumps({"classes": [{"title": "x", "shape": "bitmap"}]}))
    found = shapes(tmp_path)
    assert not found.shapes and "or too large" in found.problems[0].message


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a\\b\\x.jpg", "a/b/x.jpg"),
        ("C:\\data\\x.jpg", "data/x.jpg"),
        ("https://host/a%20b/x.jpg?token=1", "a b/x.jpg"),
        ("/data/local-files/?d=set/x%2Cy.jpg", "set/x,y.jpg"),
        ("s3://bucket/a/x.jpg", "a/x.jpg"),
        ("plain.jpg", "plain.jpg"),
    ],
)
def test_names_of_images_become_paths(name: str, plain: str) -> None:
    assert plain_name(name) == plain


@pytest.mark.parametrize(
    ("text", "part"),
    [("instances_train2017", "train"), ("valid", "val"), ("Test-1", "test"), ("strain", None), ("images", None)],
)
def test_parts_are_recognised_by_whole_words(text: str, part: str | None) -> None:
    assert part_of(text) == part


def test_an_image_is_found_by_the_most_parts_that_agree_and_not_if_two_do(tmp_path: Path) -> None:
    for name in ("one/x.jpg", "two/x.jpg", "two/y.jpg"):
        photo(tmp_path / name)
    finder = ImageFinder([tmp_path])
    assert finder.find("D:\\set\\two\\X.JPG", near=tmp_path) == tmp_path / "two/x.jpg"
    assert finder.find("x.jpg", near=tmp_path) is None
    assert finder.find("elsewhere/y.jpg", near=tmp_path) == tmp_path / "two/y.jpg"
    assert finder.find_stem("one/x", near=tmp_path / "missing") == tmp_path / "one/x.jpg"


def test_classes_of_label_studio_beside_yolo_labels_are_not_coco(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0 0 1 0 1 1\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "notes.json").write_text(json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {}}))
    assert [each.tool for each in recognize(tmp_path)] == ["yolo"]
