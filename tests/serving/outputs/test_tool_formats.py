"""Formats of labeling tools: their contract, read with other readers, and the round trip through `data import`."""

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Cli
from format_contract import STEM, FormatContract, make_item
from gmtool_serving.inputs.collect import InputImage
from gmtool_serving.inputs.decode import Failure
from gmtool_serving.outputs.formats import MaskItem, check_formats, check_names, encode
from gmtool_serving.outputs.tool_formats import TOOL_FORMATS, ToolFormat
from gmtool_serving.outputs.whole_run_files import finish
from gmtool_serving.outputs.write import MaskFolders, OutputFile, write_outputs
from matplotlib.path import Path as Outline
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from gmtool.classes import ClassSet, load_classes, voc_palette
from gmtool.errors import ConfigError, DataError
from gmtool.images import UInt8Array
from gmtool.labels.dataset.importing import import_labels
from gmtool.labels.dataset.job import ImportOptions
from gmtool.labels.outlines import OutlineOptions
from gmtool.masks.files import read_mask

VOC = load_classes("voc")
EXACT = OutlineOptions(0, 0)
CLASSES = ClassSet(("background", "tree", "house & barn", "lake"), voc_palette(4), (0, 1, 2, 3), background=0)


def inside(points: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centres are in an outline, by matplotlib."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    ring = np.array(points, dtype=float).reshape(-1, 2)
    ring = np.concatenate([ring, ring[:1]])
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    found: npt.NDArray[np.bool_] = Outline(ring).contains_points(centres).reshape(shape[:2])
    return found


class ToolContract(FormatContract):
    """A tool's file of exact outlines gives the mask back; the background and ignored pixels have no shape."""

    ignored = 0
    exact: ClassVar[OutlineOptions] = EXACT

    def write(self, out: Path, item: MaskItem) -> tuple[OutputFile, ...] | Failure:
        exact = replace(item, outlines=self.exact)
        (written,) = write_outputs([exact], self.classes, [self.name], MaskFolders(out))
        return written

    def finished(self, out: Path) -> Path:
        path = finish(self.name, out, [STEM], self.classes)
        assert path is not None
        return path

    def label(self, name: str) -> int:
        return self.classes.names.index(name)


class TestLabelme(ToolContract):
    name = "labelme"
    path = f"{STEM}.json"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        value = json.loads((out / self.path).read_text())
        assert (value["imageHeight"], value["imageWidth"]) == shape[:2]
        mask = np.zeros(shape, dtype=np.uint8)
        for each in value["shapes"]:
            assert each["shape_type"] == "polygon"
            mask[inside(each["points"], shape)] = self.label(each["label"])
        return mask


class TestYolo(ToolContract):
    name = "yolo"
    path = f"labels/train/{STEM}.txt"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        yaml = pytest.importorskip("yaml")
        names = yaml.safe_load(self.finished(out).read_text())["names"]
        mask = np.zeros(shape, dtype=np.uint8)
        for line in (out / self.path).read_text().splitlines():
            number, *values = line.split()
            points = np.array(values, dtype=float).reshape(-1, 2) * (shape[1], shape[0])
            mask[inside(points, shape)] = self.label(names[int(number)])
        return mask


class TestCvat(ToolContract):
    name = "cvat"
    path = f"pieces/{STEM}.json"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        root = ElementTree.parse(self.finished(out)).getroot()
        (image,) = root.iter("image")
        assert image.get("name") == f"{STEM}.jpg"
        assert [label.findtext("name") for label in root.iter("label")] == list(self.classes.names[1:])
        mask = np.zeros(shape, dtype=np.uint8)
        for each in image:
            label = self.label(each.get("label", ""))
            if each.tag == "polygon":
                points = [pair.split(",") for pair in each.get("points", "").split(";")]
                mask[inside(points, shape)] = label
            else:
                top, left, height, width = (int(each.get(n, "")) for n in ("top", "left", "height", "width"))
                counts = [int(count) for count in each.get("rle", "").split(",")]
                flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
                mask[top : top + height, left : left + width][flat.reshape(height, width)] = label
        return mask


class TestLabelStudio(ToolContract):
    name = "label-studio"
    path = f"pieces/{STEM}.json"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        (task,) = json.loads(self.finished(out).read_text())
        assert task["data"]["image"] == f"/data/local-files/?d={STEM}.jpg"
        config = ElementTree.parse(out / "label_config.xml").getroot()
        controls = {each.get("name"): each.tag.lower() for each in config}
        mask = np.zeros(shape, dtype=np.uint8)
        for region in task["predictions"][0]["result"]:
            value = region["value"]
            assert controls[region["from_name"]] == region["type"]
            label = self.label(value[region["type"]][0])
            if "points" in value:
                mask[inside(np.array(value["points"]) * (shape[1] / 100, shape[0] / 100), shape)] = label
            else:
                mask[brush(value["rle"]).reshape(*shape[:2], 4)[..., 3] > 0] = label
        return mask


def brush(rle: list[int]) -> UInt8Array:
    """Return the bytes of a brush stroke, by a text of bits as in Label Studio's converter."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if is_run else [take(word) for _ in range(length)]
    return np.array(values, dtype=np.uint8)


class TestCocoAnnotations(ToolContract):
    name = "coco-annotations"
    path = f"pieces/{STEM}.json"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        coco = COCO(str(self.finished(out)))
        mask = np.zeros(shape, dtype=np.uint8)
        for each in coco.loadAnns(coco.getAnnIds()):
            name = coco.loadCats(each["category_id"])[0]["name"]
            mask[coco.annToMask(each).astype(bool)] = self.label(name)
        return mask


class TestDatumaro(ToolContract):
    name = "datumaro"
    path = f"pieces/{STEM}.json"

    def read(self, out: Path, shape: tuple[int, ...]) -> UInt8Array:
        value = json.loads(self.finished(out).read_text())
        (item,) = value["items"]
        assert item["id"] == str(STEM) and item["image"]["size"] == list(shape[:2])
        mask = np.zeros(shape, dtype=np.uint8)
        for each in item["annotations"]:
            label = self.label(value["categories"]["label"]["labels"][each["label_id"]]["name"])
            pixels = coco_mask.decode(each["rle"]) if "rle" in each else inside(each["points"], shape)
            mask[pixels.astype(bool)] = label
        return mask


def test_every_tool_fulfils_the_contract() -> None:
    assert {member.name for member in ToolContract.__subclasses__()} == set(TOOL_FORMATS)


def blobs(seed: int) -> UInt8Array:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(37, 52)), 2.5)
    labels: UInt8Array = np.digitize(smooth, np.quantile(smooth, [0.4, 0.65, 0.85])).astype(np.uint8)
    return labels


def border_distance(labels: UInt8Array) -> npt.NDArray[np.float64]:
    """Return how far each pixel's centre is from the nearest of another label or the border, less half a pixel."""
    padded = np.pad(labels.astype(int), 1, constant_values=-1)
    distances = [ndimage.distance_transform_edt(padded == label) for label in np.unique(labels)]
    nearest: npt.NDArray[np.float64] = np.max(distances, axis=0)[1:-1, 1:-1] - 0.5
    return nearest


@pytest.mark.parametrize("name", TOOL_FORMATS)
@pytest.mark.parametrize("tolerance", [0.0, 1.5])
def test_the_import_of_predicted_shapes_gives_the_masks_back(
    name: ToolFormat, tolerance: float, tmp_path: Path
) -> None:
    masks = {PurePosixPath(stem): blobs(seed) for seed, stem in enumerate(("a/x", "a/y z", "Straße"))}
    out, images = tmp_path / "predicted", tmp_path / "photos"
    out.mkdir()
    for output, mask in masks.items():
        photo = images / f"{output}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", mask.shape[::-1]).save(photo)
        item = MaskItem(output, mask, source=str(photo), outlines=OutlineOptions(tolerance, 0))
        (written,) = write_outputs([item], CLASSES, [name], MaskFolders(out))
        assert not isinstance(written, Failure)
    finish(name, out, list(masks), CLASSES)
    if name == "yolo":  # it finds labels by the place of the image
        images = images.rename(out / "images").parent / "images"
        (out / "images").rename(out / "train")
        (out / "images").mkdir()
        (out / "train").rename(out / "images/train")
    if name == "label-studio":  # a person accepts the predictions
        tasks = json.loads((out / "tasks.json").read_text())
        done = [task | {"annotations": task["predictions"], "predictions": []} for task in tasks]
        (out / "tasks.json").write_text(json.dumps(done))
    report = import_labels(
        out,
        tmp_path / "data",
        ImportOptions(images=None if name == "yolo" else images, unlabeled_is="background", val_share=0.0),
        progress=lambda items, _: iter(items),
    )
    # A part narrower than the tolerance may become a sliver
    assert report.labeled == {"train": 3}
    assert {problem.kind for problem in report.problems} <= ({"unclosed or empty shapes"} if tolerance else set())
    classes = load_classes(str(tmp_path / "data/classes.json"))
    order = np.array([CLASSES.names.index(label) for label in classes.names], dtype=np.uint8)
    for output, mask in masks.items():
        found = order[read_mask(tmp_path / f"data/masks/train/{output}.png", classes)]
        assert (border_distance(mask)[found != mask] <= tolerance + 1e-6).all()
        assert tolerance or (found == mask).all()


def test_labelme_names_the_image_relative_to_its_file(tmp_path: Path) -> None:
    item = replace(make_item(3, output=PurePosixPath("a/x")), source=str(tmp_path / "photos/a/x.JPG"))
    ((path, content),) = encode("labelme", item, VOC, folder=str(tmp_path / "labels"))
    assert str(path) == "a/x.json"
    assert json.loads(content)["imagePath"] == "../../photos/a/x.JPG"
    ((_, content),) = encode("labelme", replace(item, source="s3://bucket/a/x.JPG"), VOC, folder="s3://bucket/out")
    assert json.loads(content)["imagePath"] == "x.JPG"


def test_unsure_pixels_get_no_shape_and_need_confidence(tmp_path: Path) -> None:
    mask, confidence = np.ones((10, 10), dtype=np.uint8), np.full((10, 10), 200, dtype=np.uint8)
    confidence[:, 5:] = 100
    sure = OutlineOptions(0, 0, min_confidence=0.5)
    ((_, content),) = encode("labelme", MaskItem(STEM, mask, confidence, outlines=sure), CLASSES)
    (shape,) = json.loads(content)["shapes"]
    assert sorted(map(tuple, shape["points"])) == [(0, 0), (0, 10), (5, 0), (5, 10)]
    check_formats(["labelme"], CLASSES, ["mask", "confidence"], sure)
    with pytest.raises(ConfigError, match="--min-confidence needs confidence.*--output mask.confidence"):
        check_formats(["labelme"], CLASSES, ["mask"], sure)


def test_frames_of_a_video_are_refused() -> None:
    frame = InputImage(Path("x.mp4"), PurePosixPath("x_000001"), frame=1)
    with pytest.raises(DataError, match="--format cvat names image files, but x.mp4 frame 1 has none"):
        check_names(["cvat"], [frame])
    check_names(["voc"], [frame])


def test_a_damaged_piece_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces/x.json").write_text('{"image": 3}')
    with pytest.raises(DataError, match="x.json: not the outlines of an image: delete it, and predict again"):
        finish("cvat", tmp_path, [PurePosixPath("x")], CLASSES)


def test_predict_then_import_on_the_command_line(
    cli: Cli, toy_model: Path, toy_data: Path, tmp_path: Path
) -> None:
    images = toy_data / "JPEGImages"
    predict = ["predict", images, "--model", toy_model, "--device", "cpu", "--workers", 0]
    for options in (["--format", "voc"], ["--format", "cvat", "--tolerance", 0, "--min-area", 0]):
        code, _, err = cli([*predict, *options, "--out", tmp_path / str(options[1])])
        assert code == 0, err
    code, out, err = cli(["data", "import", tmp_path / "cvat/annotations.xml", "--images", images,
                          "--out", tmp_path / "data", "--val", 0, "--unlabeled-is", "background"])  # fmt: skip
    assert code == 0, err
    assert out.startswith("found: CVAT: 1 XML file, 24 images\n")
    assert f"gmtool train {tmp_path / 'data'}" in err
    for mask in (tmp_path / "data/masks/train").glob("*.png"):
        np.testing.assert_array_equal(
            np.array(Image.open(mask)), np.array(Image.open(tmp_path / "voc" / mask.name))
        )


def test_detail_of_shapes_needs_a_format_of_shapes(cli: Cli, toy_data: Path, tmp_path: Path) -> None:
    code, _, err = cli(["predict", toy_data / "JPEGImages", "--out", tmp_path / "masks", "--min-area", 5])
    assert code == 2
    assert err == (
        "error: --min-area is for labeling tools: --format labelme, cvat, label-studio, coco-annotations, yolo, "
        "datumaro\n"
    )
