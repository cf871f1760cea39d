"""Import of labels: parts, ground, updates, what is kept, and hostile sources."""

import base64
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli
from PIL import Image

from gmtool.classes import load_classes
from gmtool.config import DataConfig
from gmtool.data.datasets import load_training_data
from gmtool.errors import DataError, GmtoolError, UsageError
from gmtool.files import TEMPORARY_SUFFIX
from gmtool.images import UInt8Array
from gmtool.labels.dataset.importing import import_labels
from gmtool.labels.dataset.job import ImportOptions
from gmtool.labels.dataset.processes import Processes
from gmtool.labels.dataset.report import ImportReport

H, W = 20, 30


def photo(path: Path, size: tuple[int, int] = (W, H)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (sum(path.name.encode()) % 256, 90, 120)).save(path)


def shape(label: str, x0: float, y0: float, x1: float, y1: float, **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": "rectangle", "points": [[x0, y0], [x1, y1]], **more}


CAT = shape("cat", 0, 0, 5, 5)


def labelme(folder: Path, stem: str, *shapes: dict[str, Any], **more: Any) -> None:
    photo(folder / f"{stem}.png")
    value: dict[str, Any] = {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": f"{stem}.png",
        "imageData": None,
    }
    (folder / f"{stem}.json").write_text(json.dumps(value | {"imageHeight": H, "imageWidth": W} | more))


def run(source: Path, out: Path, **options: Any) -> ImportReport:
    return import_labels(source, out, ImportOptions(**options), progress=lambda items, _: iter(items))


def mask(out: Path, name: str) -> UInt8Array:
    return np.array(Image.open(out / "masks" / f"{name}.png"))


def kinds(report: ImportReport) -> dict[str, str]:
    return {problem.kind: problem.message for problem in report.problems}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for number in range(5):
        labelme(folder, f"p{number}", shape("cat", 2, 2, 10, 8), shape("dog", 12, 2, 14, 4))
    for number in range(5, 8):
        photo(folder / f"p{number}.png")
    return folder


def test_the_result_is_a_data_set_that_training_takes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(source, out)
    assert report.parts == {"train": 7, "val": 1} and report.labeled == {"train": 4, "val": 1}
    assert (report.objects["cat"], report.objects["dog"]) == (5, 5)
    data = load_training_data(DataConfig(out, layout="folder", labeled=out / "labeled.txt"))
    assert (len(data.labeled.samples), len(data.unlabeled.samples), len(data.val.samples)) == (4, 3, 1)
    classes = load_classes(str(out / "classes.json"))
    assert (classes.names, classes.background) == (("background", "cat", "dog"), 0)
    name = (out / "labeled.txt").read_text().split()[0]
    found = mask(out, name)
    assert (found[2:8, 2:10] == 1).all() and (found == 1).sum() == 48 and (found == 2).sum() == 4
    assert all(path.is_symlink() for path in (out / "images").rglob("*.png"))


def test_a_second_import_adds_and_updates_and_changes_nothing_else(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    del before[out / "import_report.json"]
    assert run(source, out).changes == {"unchanged": 5}
    assert {path: path.read_bytes() for path in before} == before
    # Thirty more labels: here one new, one corrected, a new class
    labelme(source, "p5", shape("bird", 0, 0, 5, 5))
    labelme(source, "p0", shape("cat", 2, 2, 11, 8))
    report = run(source, out)
    assert report.changes == {"updated": 1, "new": 1, "unchanged": 4}
    assert report.added_classes == ("bird",)
    assert load_classes(str(out / "classes.json")).names == ("background", "cat", "dog", "bird")
    assert (mask(out, "train/p5") == 3).sum() == 25
    assert "train/p5" in (out / "labeled.txt").read_text().split()
    assert report.parts == {"train": 7, "val": 1}
    images = [path.name for path in (out / "images").rglob("*.png")]
    assert sorted(images) == [f"p{number}.png" for number in range(8)]


def test_labels_that_a_later_export_lacks_stay(source: Path, tmp_path: Path) -> None:
    out, later = tmp_path / "out", tmp_path / "later"
    run(source, out)
    labelme(later, "q1", shape("cat", 0, 0, 5, 5))
    report = run(later, out)
    assert report.labeled == {"train": 5, "val": 1}
    assert len(list((out / "masks").rglob("*.png"))) == 6


def test_masks_and_lists_that_the_user_changed_are_kept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out)
    ids = (out / "labeled.txt").read_text().split()
    own = out / "masks" / f"{ids[0]}.png"
    Image.new("P", (W, H), 2).save(own)
    content = own.read_bytes()
    (out / "labeled.txt").write_text(f"{ids[1]}\n")
    labelme(source, Path(ids[0]).name, shape("cat", 0, 0, 1, 1))
    labelme(source, "p6", shape("cat", 0, 0, 5, 5))
    report = run(source, out)
    assert report.changes["changed by hand and kept"] == 1 and own.read_bytes() == content
    assert (out / "labeled.txt").read_text() == f"{ids[1]}\ntrain/p6\n"
    assert "labeled.txt was changed by hand: 1 new images were added" in kinds(report)["lists changed by hand"]
    assert run(source, out).changes["changed by hand and kept"] == 1


def test_a_folder_that_was_not_imported_is_not_touched(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    with pytest.raises(
        DataError, match="has files, and is no data set that gmtool imported: give an empty or new"
    ):
        run(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_import_that_was_stopped_is_finished_by_the_next(source: Path, tmp_path: Path) -> None:
    def stop(items: Any, _: int) -> Any:
        for place, item in enumerate(items):
            if place == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        import_labels(source, tmp_path / "out", ImportOptions(), progress=stop)
    report = run(source, tmp_path / "out")
    assert sum(report.changes.values()) == 5 and report.labeled == {"train": 4, "val": 1}


@pytest.mark.parametrize(("answer", "value"), [("background", 0), ("ignore", 255)])
def test_ground_without_label_is_asked_for_when_labels_cover_nearly_all(
    answer: str, value: int, tmp_path: Path
) -> None:
    for number in range(3):
        labelme(tmp_path / "source", f"p{number}", shape("sky", 0, 0, 30, 10), shape("road", 0, 10, 28, 20))
    with pytest.raises(
        UsageError, match=r"the labels cover 97 % of the pixels\) give --unlabeled-is background, or"
    ):
        run(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = run(tmp_path / "source", tmp_path / "out", unlabeled_is=answer)
    assert report.classes == (("background",) if value == 0 else ()) + ("road", "sky")
    assert set(np.unique(mask(tmp_path / "out", (tmp_path / "out/labeled.txt").read_text().split()[0]))) == {
        value,
        *range(len(report.classes) - 2, len(report.classes)),
    }
    assert run(tmp_path / "source", tmp_path / "out").changes == {"unchanged": 3}  # the answer is remembered


def test_shapes_of_background_and_of_ignored_ground(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    labelme(
        folder, "p", shape("_background_", 0, 0, 5, 5), shape("cat", 6, 0, 9, 5), shape("__ignore__", 9, 0, 12, 5)
    )
    with pytest.raises(UsageError, match="there is a label for background too"):
        run(folder, tmp_path / "out")
    run(folder, tmp_path / "out", unlabeled_is="ignore")
    found = mask(tmp_path / "out", "train/p")
    assert (found[0, 0], found[0, 7], found[0, 10], found[19, 29]) == (0, 1, 255, 255)


def test_images_without_any_label_are_unlabeled_unless_the_user_says_that_nothing_is_on_them(
    tmp_path: Path,
) -> None:
    labelme(tmp_path / "source", "full", shape("cat", 0, 0, 5, 5))
    labelme(tmp_path / "source", "empty")
    report = run(tmp_path / "source", tmp_path / "out", val_share=0.0)
    assert report.changes == {"without labels": 1, "new": 1}
    assert (tmp_path / "out/labeled.txt").read_text() == "train/full\n"
    run(tmp_path / "source", tmp_path / "all", val_share=0.0, empty_is="background")
    assert not mask(tmp_path / "all", "train/empty").any()
    assert (tmp_path / "all/labeled.txt").read_text() == "train/empty\ntrain/full\n"


def test_labels_that_are_none_of_the_classes_are_ignored(source: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("background\ndog\n")
    report = run(source, tmp_path / "out", classes=str(tmp_path / "names.txt"))
    name = (tmp_path / "out/labeled.txt").read_text().split()[0]
    assert set(np.unique(mask(tmp_path / "out", name))) == {0, 1, 255}
    assert kinds(report)["unknown labels"] == "label cat is none of the classes: its pixels are ignored"


def test_parts_of_the_source_are_kept(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        labelme(tmp_path / "source" / part, f"{part}1", shape("cat", 0, 0, 5, 5))
    report = run(tmp_path / "source", tmp_path / "out")
    assert report.labeled == {"train": 1, "val": 1, "test": 1}
    assert sorted(
        path.relative_to(tmp_path / "out/masks").as_posix() for path in tmp_path.glob("out/masks/*/*")
    ) == [*("test/test1.png", "train/train1.png", "val/valid1.png")]


def test_images_without_labels_are_no_validation_images(tmp_path: Path) -> None:
    labelme(tmp_path / "source/train", "a", CAT)
    labelme(tmp_path / "source/train", "b", CAT)
    labelme(tmp_path / "source/valid", "c", CAT)
    labelme(tmp_path / "source/valid", "empty")
    report = run(tmp_path / "source", tmp_path / "out")
    assert report.parts == {"train": 2, "val": 1}
    assert "valid/empty.png: has no labels" in kinds(report)["images of part val without labels"]
    load_training_data(DataConfig(tmp_path / "out", layout="folder", labeled=tmp_path / "out/labeled.txt"))
    run(tmp_path / "source", tmp_path / "all", empty_is="background")
    assert not mask(tmp_path / "all", "val/empty").any()


def test_a_damaged_image_in_the_json_is_left_out(tmp_path: Path) -> None:
    labelme(tmp_path / "source", "a", CAT)
    labelme(tmp_path / "source", "b", CAT, imageData="bm8gaW1hZ2U=")
    (tmp_path / "source/b.png").unlink()
    report = run(tmp_path / "source", tmp_path / "out")
    assert "b.json: not an image" in kinds(report)["unusable images or labels"]
    assert not (tmp_path / "out/embedded").exists() and report.parts == {"train": 1}


def test_a_data_set_inside_its_source_is_not_imported_again(tmp_path: Path) -> None:
    for name in "abc":
        labelme(tmp_path / "source", name, CAT)
    for _ in range(2):
        report = run(tmp_path / "source", tmp_path / "source/data", copy=True)
        assert report.parts == {"train": 2, "val": 1}


def test_groups_stay_together_in_validation(tmp_path: Path) -> None:
    for video in "abc":
        for frame in range(4):
            labelme(tmp_path / "source", f"{video}_{frame}", shape("cat", 0, 0, 5, 5))
    run(tmp_path / "source", tmp_path / "out", group="^[a-z]")
    names = {path.stem[0] for path in (tmp_path / "out/images/val").iterdir()}
    assert len(names) == 1 and len(list((tmp_path / "out/images/val").iterdir())) == 4


def test_images_that_differ_only_in_their_suffix_are_both_kept(tmp_path: Path) -> None:
    labelme(tmp_path / "source", "x", shape("cat", 0, 0, 5, 5))
    photo(tmp_path / "source/x.tif")
    run(tmp_path / "source", tmp_path / "out", val_share=0.0)
    assert sorted(path.name for path in (tmp_path / "out/images/train").iterdir()) == ["x_png.png", "x_tif.tif"]


def test_images_are_copied_if_asked_for(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out", copy=True)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    assert len(list((tmp_path / "out/images").rglob("*.png"))) == 8


def test_labels_of_another_size_and_images_that_are_missing_are_left_out(source: Path, tmp_path: Path) -> None:
    labelme(source, "turned", shape("cat", 0, 0, 5, 5), imageHeight=W, imageWidth=H)
    labelme(source, "gone", shape("cat", 0, 0, 5, 5))
    (source / "gone.png").unlink()
    report = run(source, tmp_path / "out")
    assert (
        "labels of 20x30, but the image is 30x20: was it turned by its EXIF"
        in kinds(report)["labels of another size"]
    )
    assert "gone.png: no image of this name below" in kinds(report)["images not found"]
    assert report.changes == {"new": 5, "left out": 1}


def test_a_source_without_its_images_names_the_option(source: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for path in source.glob("*.png"):
        path.rename(tmp_path / "photos" / path.name)
    with pytest.raises(
        DataError, match="none of its images lies below it .*: give their folder with --images DIR"
    ):
        run(source, tmp_path / "out")
    assert run(source, tmp_path / "out", images=tmp_path / "photos").labeled == {"train": 4, "val": 1}


@pytest.mark.parametrize("name", ["../secret.png", "..\\secret.png", "/etc/hostname", "C:\\secret.png"])
def test_no_path_leads_out_of_the_source(name: str, tmp_path: Path) -> None:
    photo(tmp_path / "secret.png")
    labelme(tmp_path / "source", "p", shape("cat", 0, 0, 5, 5))
    labelme(tmp_path / "source", "q", shape("cat", 0, 0, 5, 5), imagePath=name)
    (tmp_path / "source/q.png").unlink()
    report = run(tmp_path / "source", tmp_path / "out")
    assert "images not found" in kinds(report)
    links = [path.resolve() for path in (tmp_path / "out").rglob("*.png")]
    assert tmp_path / "secret.png" not in links


def test_windows_paths_web_addresses_and_prefixes_of_uploads_are_found(tmp_path: Path) -> None:
    for number, name in enumerate(
        [
            "images\\a b.png",
            "/data/upload/4/1a2b3c4d-c.png",
            "/data/local-files/?d=set%20x/d.png",
            "s3://b/k/e.png",
        ]
    ):
        photo(tmp_path / "source/images" / ["a b.png", "c.png", "d.png", "e.png"][number])
        value = {"points": [[0, 0], [50, 0], [50, 50]], "polygonlabels": ["cat"], "closed": True}
        result = {"type": "polygonlabels", "original_width": W, "original_height": H, "value": value}
        (tmp_path / f"{number}.json").write_text(
            json.dumps([{"data": {"image": name}, "annotations": [{"result": [result]}]}])
        )
    tasks = [json.loads((tmp_path / f"{number}.json").read_text())[0] for number in range(4)]
    (tmp_path / "source/result.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(tasks).encode())
    report = run(tmp_path / "source", tmp_path / "out", val_share=0.0)
    assert report.labeled == {"train": 4} and not report.problems


def test_coco_that_tools_bend(tmp_path: Path) -> None:
    photo(tmp_path / "source/images/a.png")
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    (tmp_path / "source/result.json").write_text(json.dumps({
        "images": [{"id": "x", "file_name": "images\\a.png", "height": 20.0, "width": 30.0}],
        "categories": [{"id": 0, "name": "things", "supercategory": "none"},
                       {"id": 1, "name": "cat", "supercategory": "things"}],
        "annotations": [
            {"image_id": "x", "category_id": 1, "segmentation": square},
            {"image_id": "x", "category_id": 1, "bbox": [0, 0, 5, 5]},
            {"image_id": "x", "category_id": 7, "segmentation": square},
            {"image_id": "x", "category_id": 1, "segmentation": [[0, 0, 10, 0]]},
            {"image_id": "x", "category_id": 1, "segmentation": {"size": [20, 30], "counts": "broken\x7f"}},
        ],
    }))  # fmt: skip
    report = run(tmp_path / "source", tmp_path / "out", val_share=0.0)
    assert report.classes == ("background", "cat")
    assert (mask(tmp_path / "out", "train/a") == 1).sum() == 100
    found = kinds(report)
    assert found["categories without annotations"].endswith("category things only groups others")
    assert "number 1 is a box, which gives no mask" in found["boxes without outline"]
    assert "polygon of 2 points is not closed" in found["unclosed or empty shapes"]
    assert [problem.kind for problem in report.problems].count("damaged shapes") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '<!DOCTYPE a [<!ENTITY x "y">]><annotations><version>1.1</version></annotations>',
            "document type or entities",
        ),
        ("<annotations><image", "not XML"),
        ("<annotations>" + "<a>" * 40 + "</a>" * 40 + "</annotations>", "nested deeper than 32"),
    ],
)
def test_hostile_xml_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=expected):
        run(tmp_path / "annotations.xml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_shapes_are_left_out_and_the_others_painted(tmp_path: Path) -> None:
    labelme(
        tmp_path / "source",
        "p",
        shape("cat", 0, 0, 5, 5),
        {"label": "cat", "shape_type": "polygon", "points": [[0, 0], [1e300, 0], [0, 1]]},
        {"label": "cat", "shape_type": "polygon", "points": "all"},
        {"label": "cat", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "bm8="},
        {"label": 7, "points": []},
        {"label": "cat", "shape_type": "polygon", "points": [[1, 1], [2, 2]]},
    )
    report = run(tmp_path / "source", tmp_path / "out", val_share=0.0)
    assert (mask(tmp_path / "out", "train/p") == 1).sum() == 25
    assert [problem.kind for problem in report.problems].count("damaged shapes") == 4
    assert "polygon of 2 points is not closed" in kinds(report)["unclosed or empty shapes"]


def test_sources_that_are_not_recognised_or_of_two_tools(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"no files of a labeling tool recognised \(it has nothing\); known: labelme"
    ):
        run(tmp_path / "empty", tmp_path / "out")
    labelme(tmp_path / "two", "p", shape("cat", 0, 0, 5, 5))
    (tmp_path / "two/annotations.xml").write_text("<annotations></annotations>")
    with pytest.raises(
        UsageError, match=r"several tools: cvat \(.*\), labelme \(.*\): choose one with --from cvat"
    ):
        run(tmp_path / "two", tmp_path / "out")
    assert run(tmp_path / "two", tmp_path / "out", tool="labelme").found.startswith("labelme")


def write_masks(folder: Path, values: UInt8Array, **save: Any) -> None:
    photo(folder / "images/a.png")
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / "masks/a.png", **save)


def test_plain_masks_of_0_and_255_of_three_channels_and_of_palettes(tmp_path: Path) -> None:
    values = np.zeros((H, W), dtype=np.uint8)
    values[3:7, 3:9] = 255
    write_masks(tmp_path / "binary", values)
    write_masks(tmp_path / "grey", np.repeat((values // 255)[..., None], 3, axis=2))
    for name in ("binary", "grey"):
        report = run(tmp_path / name, tmp_path / f"{name}-out", val_share=0.0)
        assert report.classes == ("background", "object")
        assert (mask(tmp_path / f"{name}-out", "train/a") == values // 255).all()


def test_palettes_that_an_editor_made_anew_are_read_as_colours(tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], dtype=np.uint8)
    labels = np.random.default_rng(0).integers(0, 3, (H, W)).astype(np.uint8)
    for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
        photo(tmp_path / f"source/images/{name}.png")
        image = Image.fromarray(np.array(order, dtype=np.uint8)[labels])
        palette = np.zeros((3, 3), dtype=np.uint8)
        palette[order] = colors
        image.putpalette(palette.ravel().tolist())
        (tmp_path / "source/masks").mkdir(exist_ok=True)
        image.save(tmp_path / f"source/masks/{name}.png")
    classes = {"names": ["background", "disc", "box"], "palette": colors.tolist()}
    (tmp_path / "source/classes.json").write_text(json.dumps(classes))
    run(tmp_path / "source", tmp_path / "out", val_share=0.0)
    for name in "ab":
        np.testing.assert_array_equal(mask(tmp_path / "out", f"train/{name}"), labels)


def test_values_of_plain_masks_beyond_the_classes_are_a_question_or_ignored(tmp_path: Path) -> None:
    values = np.repeat(np.arange(4, dtype=np.uint8), 5)[:, None].repeat(W, axis=1)
    write_masks(tmp_path / "source", values)
    classes = tmp_path / "source/classes.json"
    classes.write_text(json.dumps({"names": ["road", "crack", "patch"]}))
    with pytest.raises(UsageError, match="masks hold 0 too, which is none of the named classes"):
        run(tmp_path / "source", tmp_path / "out")
    run(tmp_path / "source", tmp_path / "out", unlabeled_is="ignore", val_share=0.0)
    assert np.unique(mask(tmp_path / "out", "train/a")).tolist() == [0, 1, 2, 255]
    classes.write_text(json.dumps({"names": ["background", "crack"]}))
    report = run(tmp_path / "source", tmp_path / "other", val_share=0.0)
    unknown = [problem.message for problem in report.problems]
    assert [line.partition("a.png: ")[2] for line in unknown] == [
        f"value {value} has no label (25.00 % of its pixels): ignored" for value in (2, 3)
    ]


def test_masks_stored_as_jpeg_are_refused_with_the_reason(tmp_path: Path) -> None:
    photo(tmp_path / "source/images/a.png")
    photo(tmp_path / "source/masks/a.jpg")
    with pytest.raises(DataError, match="stored as JPEG, which changes labels at every edge"):
        run(tmp_path / "source", tmp_path / "out")


def test_the_command_prints_what_it_found_and_the_next_lines(cli: Cli, source: Path, tmp_path: Path) -> None:
    code, out, err = cli(["data", "import", source, "--out", tmp_path / "out"])
    assert code == 0
    assert out.splitlines()[:4] == [
        "found: labelme: 5 JSON files",
        "images: train 7 (4 labeled), val 1 (1 labeled)",
        "masks: 5 new",
        "classes: background, cat, dog",
    ]
    check = next(line for line in err.splitlines() if "data check" in line)
    code, out, err = cli([*check.split()[1:], "--set", "data.crop_px=16"])
    assert code == 0 and "0 errors" in out
    code, out, _ = cli(["data", "import", source, "--out", tmp_path / "out", "--json"])
    assert code == 0 and json.loads(out)["masks"] == {"unchanged": 5}
    code, _, err = cli(["data", "import", source, "--out", tmp_path / "out", "--from", "labelmee"])
    assert code == 2 and err == "error: --from labelmee: unknown tool; did you mean labelme?\n"


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_names_in_other_scripts_and_composed_otherwise_are_found(tmp_path: Path) -> None:
    labelme(
        tmp_path / "source", "Stra\u00dfe U\u0308", shape("cat", 0, 0, 5, 5), imagePath="Stra\u00dfe \u00dc.png"
    )
    assert run(tmp_path / "source", tmp_path / "out", val_share=0.0).labeled == {"train": 1}
    data = DataConfig(tmp_path / "out", layout="folder", labeled=tmp_path / "out/labeled.txt")
    with pytest.raises(DataError, match="give --val LIST"):  # one labeled image alone
        load_training_data(data)


def test_training_on_files_of_labelme_names_the_import(source: Path, tmp_path: Path) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    source.rename(tmp_path / "data/images/train")
    (tmp_path / "data/labeled.txt").write_text("p0\n")
    config = DataConfig(tmp_path / "data", layout="folder", labeled=tmp_path / "data/labeled.txt")
    with pytest.raises(DataError, match="has labelme's files: gmtool data import .*data --out DIR"):
        load_training_data(config)
    assert run(tmp_path / "data", tmp_path / "out").labeled == {"train": 4, "val": 1}


@pytest.mark.parametrize("by", ["option", "editor"])
def test_values_without_names_get_them_later(by: str, tmp_path: Path) -> None:
    values = np.repeat(np.arange(4, dtype=np.uint8), 5)[:, None].repeat(W, axis=1)
    write_masks(tmp_path / "source", values)
    out, names = tmp_path / "out", ["background", "road", "crack", "patch"]
    report = run(tmp_path / "source", out, val_share=0.0)
    assert report.classes == ("background", "class_1", "class_2", "class_3")
    assert "the values 1, 2, 3 have no names: give --classes FILE" in kinds(report)["classes without name"]
    if by == "option":
        (tmp_path / "names.txt").write_text("\n".join(names))
        report = run(tmp_path / "source", out, val_share=0.0, classes=str(tmp_path / "names.txt"))
    else:
        (out / "classes.json").write_text(json.dumps({"names": names}))
        report = run(tmp_path / "source", out, val_share=0.0)
    assert report.classes == tuple(names) and not report.problems
    np.testing.assert_array_equal(mask(out, "train/a"), values)


def test_a_background_that_nobody_drew_is_no_class_if_ground_is_ignored(cli: Cli, tmp_path: Path) -> None:
    """CVAT lists all labels of a task; with the class, data check would take 255 for it."""
    folder = tmp_path / "source"
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("background", "cat", "dog"))
    boxes = "".join(
        f'<image id="{n}" name="p{n}.png" width="{W}" height="{H}">'
        f'<box label="cat" xtl="0" ytl="0" xbr="9" ybr="9" z_order="0"/>'
        f'<box label="dog" xtl="12" ytl="0" xbr="20" ybr="9" z_order="0"/></image>'
        for n in range(4)
    )
    for number in range(4):
        photo(folder / f"p{number}.png")
    (folder / "annotations.xml").write_text(
        f"<annotations><meta><task><labels>{labels}</labels></task></meta>{boxes}</annotations>"
    )
    report = run(folder, tmp_path / "out", unlabeled_is="ignore")
    assert report.classes == ("cat", "dog")
    code, out, _ = cli(["data", "check", tmp_path / "out", "--set", "data.crop_px=8"])
    assert code == 0 and "raw_ids" not in out and "0 warnings" in out


def test_too_few_labels_to_train_are_said(tmp_path: Path) -> None:
    for number in range(3):
        labelme(tmp_path / "source", f"p{number}", CAT)
    report = run(tmp_path / "source", tmp_path / "out")
    assert kinds(report)["too few labels"] == (
        "2 labeled training images, gmtool train needs 3: label more (1 of the labeled images went to validation)"
    )
    labelme(tmp_path / "source", "p3", CAT)
    assert "too few labels" not in kinds(run(tmp_path / "source", tmp_path / "out"))


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_several_processes_write_what_one_writes_also_after_a_stop(source: Path, tmp_path: Path) -> None:
    for number in range(8, 40):
        labelme(source, f"p{number}", shape("cat", 2, 2, 10, 8), shape("dog", 5, 2, 40, 4 + number % 9))
    labelme(source, "broken", CAT)
    (source / "broken.json").write_text('{"shapes": [], "imagePath"')
    labelme(source, "outside", CAT, shape("dog", 40, 0, 50, 9), shape("cat", 3.6, 3.6, 3.9, 3.9))
    labelme(source, "empty")
    labelme(source, "gone", CAT)
    (source / "gone.png").unlink()
    labelme(source, "inside", CAT, imageData=base64.b64encode((source / "p0.png").read_bytes()).decode())
    (source / "inside.png").unlink()
    expected = run(source, tmp_path / "one", processes=1, unlabeled_is="background")
    assert {"unreadable files", "images not found", "shapes outside the image"} <= set(kinds(expected))

    def stop(items: Any, _: int) -> Any:
        yield from islice(items, 9)
        raise KeyboardInterrupt

    options = ImportOptions(unlabeled_is="background", processes=2)
    with pytest.raises(KeyboardInterrupt):
        import_labels(source, tmp_path / "two", options, progress=stop)
    assert len(list((tmp_path / "two/masks").rglob("*.png"))) >= 8
    assert not list((tmp_path / "two").rglob(f"*{TEMPORARY_SUFFIX}"))
    report = run(source, tmp_path / "two", processes=2, unlabeled_is="background")
    assert report.changes["unchanged"] >= 8
    assert (report.to_dict() | {"masks": 0}) == (expected.to_dict() | {"masks": 0})
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    del one["import_report.json"], two["import_report.json"]  # of what was new
    assert one == two


def test_an_error_in_one_of_several_processes_ends_the_import(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out/masks/train/p1.png").mkdir(parents=True)
    (tmp_path / "out/import.json").write_text('{"format_version": 1, "images": {}}')
    for number in (1, 2):
        with pytest.raises(IsADirectoryError, match="p1.png"):
            run(source, tmp_path / "out", processes=number, val_share=0.0)
    with Processes(2) as processes:
        found = processes.read([source / f"p{number}.json" for number in range(5)] * 80)
        next(found)
        for child in processes.children:
            child.process.kill()
        with pytest.raises(GmtoolError, match=r"a process of the import ended \(.*\)"):
            list(found)
