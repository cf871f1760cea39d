import io
import json
import tarfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from format_contract import STEM, FormatContract, make_item
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.outputs.formats import (
    CITYSCAPES_LABELS,
    FORMAT_NAMES,
    FormatName,
    MaskItem,
    check_formats,
    check_names,
    encode,
    format_dirs,
    needs_confidence,
    needs_pixels,
    paths,
)
from gmtool_serving.outputs.tool_formats import TOOL_FORMATS
from gmtool_serving.outputs.whole_run_files import finish
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gmtool.classes import ClassSet, load_classes
from gmtool.config import MaskValues
from gmtool.errors import ConfigError, DataError
from gmtool.images import UInt8Array
from gmtool.masks.files import VOID_COLOR, read_mask

VOC, CITYSCAPES = load_classes("voc"), load_classes("cityscapes")


def one(name: FormatName, item: MaskItem, classes: ClassSet) -> tuple[str, bytes]:
    files = encode(name, item, classes)
    assert [path for path, _ in files] == paths(name, item.output)
    assert files == encode(name, item, classes)  # the same in, the same out
    (path, content), *more = files
    assert not more
    return str(path), content


def decoded(content: bytes) -> tuple[str, UInt8Array]:
    image = Image.open(io.BytesIO(content))
    return image.mode, np.array(image)


@pytest.mark.parametrize(
    ("name", "values"), [("voc", "index"), ("cityscapes", "raw"), ("trainids", "index"), ("color", "color")]
)
def test_label_maps_round_trip_through_the_reader(name: FormatName, values: MaskValues, tmp_path: Path) -> None:
    classes = CITYSCAPES
    if name == "color":
        classes = ClassSet(VOC.names[:5], VOC.palette[:5], VOC.raw_ids[:5], ignore_colors=((1, 2, 3),))
    item = make_item(len(classes))
    path, content = one(name, item, classes)
    (tmp_path / "m.png").write_bytes(content)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", classes, values=values), item.mask)
    assert path == ("a/town_000000_000019_pred.png" if name == "cityscapes" else f"{STEM}.png")


class TestVoc(FormatContract):
    name = "voc"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        with Image.open(out / self.path) as image:
            assert image.mode == "P"
            return np.array(image)


class TestVocSubmission(FormatContract):
    name = "voc-submission"
    path = "results/VOC2012/Segmentation/comp6_test_cls/town_000000_000019_leftImg8bit.png"
    ignored = 0  # the benchmark's evaluation refuses 255

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        assert finish(self.name, out, [STEM]) == out / "results.tar"
        with tarfile.open(out / "results.tar") as archive:
            file = archive.extractfile(self.path)
            assert file is not None
            mode, mask = decoded(file.read())
        assert mode == "P"
        return mask


class TestCityscapes(FormatContract):
    name = "cityscapes"
    path = "a/town_000000_000019_pred.png"
    classes = CITYSCAPES

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        labels = pytest.importorskip("cityscapesscripts.helpers.labels").id2label
        mode, raw = decoded((out / self.path).read_bytes())
        assert mode == "L"
        return np.array([[labels[raw_id].trainId for raw_id in row] for row in raw.tolist()], np.uint8)


class TestTrainIds(FormatContract):
    name = "trainids"
    classes = CITYSCAPES

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        mode, mask = decoded((out / self.path).read_bytes())
        assert mode == "L"
        return mask


class TestColor(FormatContract):
    name = "color"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        mode, colors = decoded((out / self.path).read_bytes())
        assert mode == "RGB"
        labels = {color: label for label, color in enumerate(self.classes.palette)} | {VOID_COLOR: 255}
        return np.array([[labels[tuple(color)] for color in row] for row in colors.tolist()], np.uint8)


class TestOverlay(FormatContract):
    name = "overlay"
    path = f"{STEM}.jpg"
    classes = ClassSet(("ground", "red", "blue"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)), (0, 1, 2), background=0)
    equal = 0.98  # JPEG

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        _, pixels = decoded((out / self.path).read_bytes())
        scale = min(-(-120 // shape[1]), 16)  # small images are enlarged
        pixels = pixels[scale // 2 :: scale, scale // 2 :: scale][: shape[0], : shape[1]]
        blended = np.array([(100, 100, 100), (177, 50, 50), (50, 50, 177), (162, 162, 146)])
        nearest = np.abs(pixels[:, :, None].astype(int) - blended).sum(axis=3).argmin(axis=2)
        labels: UInt8Array = np.array([0, 1, 2, 255], np.uint8)[nearest]
        return labels


class TestCoco(FormatContract):
    name = "coco"
    path = f"pieces/{STEM}.json"
    ignored = 0  # neither background nor ignored pixels have an object

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        assert finish(self.name, out, [STEM]) == out / "results.json"
        mask = np.zeros(shape, np.uint8)
        for entry in json.loads((out / "results.json").read_text()):
            assert entry["image_id"] == str(STEM)
            mask[coco_mask.decode(entry["segmentation"]).astype(bool)] = entry["category_id"]
        return mask


class TestNpz(FormatContract):
    name = "npz"
    path = f"{STEM}.npz"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        with np.load(out / self.path, allow_pickle=False) as arrays:
            assert sorted(arrays) == ["confidence", "mask"]
            confidence = make_item(len(self.classes)).confidence
            assert confidence is not None
            np.testing.assert_array_equal(arrays["confidence"], confidence[: shape[0], : shape[1]])
            mask: UInt8Array = arrays["mask"]
            return mask


def test_every_format_fulfils_the_contract() -> None:
    # Those of labeling tools are in test_tool_formats.py
    members = [member for member in FormatContract.__subclasses__() if hasattr(member, "name")]
    assert {member.name for member in members} == set(FORMAT_NAMES) - set(TOOL_FORMATS)


def test_an_ignore_index_below_255_is_written_as_the_format_has_it() -> None:
    classes = ClassSet(("a", "b"), VOC.palette[:2], (0, 1), ignore_index=2)
    mask = np.array([[0, 1, 2]], dtype=np.uint8)
    assert decoded(one("trainids", MaskItem(STEM, mask), classes)[1])[1].tolist() == [[0, 1, 255]]
    assert decoded(one("voc", MaskItem(STEM, mask), classes)[1])[1].tolist() == [[0, 1, 2]]


def test_more_classes_than_voc_has_fit_a_palette_png(tmp_path: Path) -> None:
    classes = load_classes("context")
    item = make_item(len(classes), seed=3)
    (tmp_path / "m.png").write_bytes(one("voc", item, classes)[1])
    assert item.mask[item.mask < 255].max() > 21
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", classes), item.mask)


def test_coco_categories_are_raw_ids_and_a_mask_of_background_has_none() -> None:
    entries = json.loads(one("coco", make_item(19), CITYSCAPES)[1])
    assert {entry["category_id"] for entry in entries} <= set(CITYSCAPES.raw_ids)
    nothing = MaskItem(STEM, np.zeros((4, 4), dtype=np.uint8))
    assert json.loads(one("coco", nothing, VOC)[1]) == []


def test_coco_results_are_scored_by_cocos_own_evaluation() -> None:
    """Which stops with a KeyError at an entry without a score."""
    entries = json.loads(one("coco", make_item(21, output=PurePosixPath("7")), VOC)[1])
    assert {entry["image_id"] for entry in entries} == {7} and len(entries) > 10
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "height": 45, "width": 61}],
        "categories": [{"id": index} for index in VOC.raw_ids],
        "annotations": [
            {**entry, "id": index + 1, "iscrowd": 0, "area": int(coco_mask.area(entry["segmentation"]))}
            for index, entry in enumerate(entries)
        ],
    }
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(entries), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("output", "coco_id", "expected"),
    [
        ("v/000000000139", None, 139),
        ("v/x1", None, "v/x1"),
        ("x", 7, 7),
        ("x", "seven", "seven"),
        ("²", None, "²"),
    ],
)
def test_image_ids_of_coco_results(output: str, coco_id: int | str | None, expected: int | str) -> None:
    item = MaskItem(PurePosixPath(output), np.ones((2, 2), dtype=np.uint8), coco_id=coco_id)
    assert json.loads(one("coco", item, VOC)[1])[0]["image_id"] == expected


def test_overlay_blends_leaves_background_and_has_a_legend() -> None:
    mask = np.zeros((300, 400), dtype=np.uint8)
    mask[:, 200:] = 15
    pixels = np.full((300, 400, 3), 100, dtype=np.uint8)
    path, content = one("overlay", MaskItem(STEM, mask, pixels=pixels), VOC)
    assert path == f"{STEM}.jpg"
    _, values = decoded(content)
    assert values.shape[1] == 400
    assert values.shape[0] > 300  # the legend is below, not on the image
    assert np.abs(values[150, 50].astype(int) - 100).max() <= 3
    assert np.abs(values[150, 350].astype(int) - (np.array(VOC.palette[15]) + 100) / 2).max() <= 3
    legend = values[300:].astype(int)
    person = np.abs(legend - VOC.palette[15]).max(axis=2) <= 12
    assert person.sum() >= 100  # its swatch
    assert not (np.abs(legend - VOC.palette[8]).max(axis=2) <= 12).sum() >= 100  # cat does not occur
    tiny = decoded(one("overlay", MaskItem(STEM, mask[:4, :4], pixels=pixels[:4, :4]), VOC)[1])[1]
    assert tiny.shape[1] == 240


@pytest.mark.parametrize(
    ("formats", "classes", "expected"),
    [
        (("voc-submission",), CITYSCAPES, "21 classes of PASCAL VOC"),
        (("color", "cityscapes"), VOC, "class background has raw id 0"),
        (("npz",), VOC, "stores confidence, but the model.s only output is mask"),
    ],
)
def test_formats_that_a_model_cannot_give_are_refused(
    formats: tuple[FormatName, ...], classes: ClassSet, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_formats(formats, classes, ("mask",))


def test_what_a_model_can_give_is_taken() -> None:
    names = tuple({"tvmonitor": "TV/Monitor", "diningtable": "dining table"}.get(name, name) for name in VOC.names)
    spelled = ClassSet(names, VOC.palette, VOC.raw_ids, background=0)
    check_formats(("voc-submission", "voc", "npz"), spelled, ("mask", "confidence"))
    check_formats(("cityscapes", "npz"), CITYSCAPES, ("logits",))
    assert [name for name in FORMAT_NAMES if needs_confidence(name)] == ["npz"]
    assert [name for name in FORMAT_NAMES if needs_pixels(name)] == ["overlay"]


def test_the_label_ids_are_those_of_the_official_table() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    assert dict(enumerate(CITYSCAPES_LABELS)) == {label.id: label.name for label in labels if label.id >= 0}


def test_images_that_would_be_one_in_a_format_are_refused() -> None:
    images = [InputImage(Path(name), PurePosixPath(name).with_suffix("")) for name in ("a/7.jpg", "b/7.jpg")]
    check_names(["voc", "color", "npz"], images)
    for name in ("voc-submission", "cityscapes", "coco"):
        with pytest.raises(DataError, match=r"a/7.jpg and b/7.jpg would both be .*7.* in --format"):
            check_names(["voc", name], images)
    check_names(["coco"], [InputImage(i.path, i.output, coco_id=n) for n, i in enumerate(images)])


def test_several_formats_lie_in_sibling_folders() -> None:
    assert format_dirs(Path("out"), ["color"]) == {"color": Path("out")}
    assert format_dirs(Path("out"), ["cityscapes", "color"]) == {
        "cityscapes": Path("out/cityscapes"),
        "color": Path("out/color"),
    }


def write(name: FormatName, folder: Path, outputs: list[PurePosixPath], classes: ClassSet) -> None:
    for seed, output in enumerate(outputs):
        for path, content in encode(name, make_item(len(classes), output=output, seed=seed), classes):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)


def test_the_voc_archive_holds_this_runs_masks_alone_and_is_the_same_each_time(tmp_path: Path) -> None:
    outputs = [PurePosixPath(f"2008_00000{number}") for number in (3, 1, 2)]
    write("voc-submission", tmp_path, [*outputs, PurePosixPath("of_an_earlier_run")], VOC)
    path = finish("voc-submission", tmp_path, [*outputs, PurePosixPath("that_failed")])
    assert path == tmp_path / "results.tar"
    first = path.read_bytes()
    with tarfile.open(path) as archive:
        assert archive.getnames() == [
            f"results/VOC2012/Segmentation/comp6_test_cls/2008_00000{number}.png" for number in (1, 2, 3)
        ]
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            assert file.read() == (tmp_path / member.name).read_bytes()
            assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
    assert finish("voc-submission", tmp_path, outputs[::-1]) == path
    assert path.read_bytes() == first


def test_coco_results_load_in_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [PurePosixPath(f"val/{number:012}") for number in range(1, 5)]
    write("coco", tmp_path, outputs[:3], VOC)
    path = finish("coco", tmp_path, outputs)
    assert path == tmp_path / "results.json"
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": number, "height": 45, "width": 61} for number in range(1, 5)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(VOC.names)],
        "annotations": [],
    }
    truth.createIndex()
    results = truth.loadRes(str(path))
    for seed, number in enumerate(range(1, 4)):
        mask = make_item(21, seed=seed).mask
        for annotation in results.loadAnns(results.getAnnIds(imgIds=number)):
            np.testing.assert_array_equal(results.annToMask(annotation), mask == annotation["category_id"])
    assert results.getAnnIds(imgIds=4) == []
    # The last image comes, as after --resume
    write("coco", tmp_path, outputs, VOC)
    finish("coco", tmp_path, outputs)
    assert {entry["image_id"] for entry in json.loads(path.read_text())} == {1, 2, 3, 4}
    (tmp_path / paths("coco", outputs[1])[0]).write_text("[\n{")
    with pytest.raises(DataError, match="000000000002.json: not the COCO results of an image"):
        finish("coco", tmp_path, outputs)


def test_nothing_to_finish(tmp_path: Path) -> None:
    assert finish("color", tmp_path, [PurePosixPath("x")]) is None
    empty = finish("coco", tmp_path, [PurePosixPath("x")])
    assert empty is not None
    assert json.loads(empty.read_text()) == []


def test_the_last_shard_to_end_leaves_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another shard writes its image after this one has looked which are there."""
    outputs = [PurePosixPath("a"), PurePosixPath("b")]
    write("coco", tmp_path, outputs[:1], VOC)
    from gmtool_serving.outputs import whole_run_files as module

    write_results = module._write_results

    def late(*arguments: object) -> None:
        write_results(*arguments)  # type: ignore[arg-type]
        write("coco", tmp_path, outputs, VOC)

    monkeypatch.setattr(module, "_write_results", late)
    path = finish("coco", tmp_path, outputs)
    assert path is not None
    assert {entry["image_id"] for entry in json.loads(path.read_text())} == {"a", "b"}
