"""Each value of each JSON file that gmtool reads is replaced by hostile ones: one line says so, or all is well."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_reports import ONE
from PIL import Image
from pycocotools import mask as coco_mask

from gmtool.artifact.checkpoints import SEAL, read_checkpoint_file, sealed
from gmtool.artifact.describe import describe
from gmtool.artifact.shapes import BatchShape, ShapeProfile
from gmtool.artifact.spec import ArtifactSpec, ModelProvenance
from gmtool.artifact.tensorrt_plan import PlanSpec
from gmtool.classes import ClassSet, load_classes, voc_palette
from gmtool.config import ModelConfig
from gmtool.data.ground_truth import read_truth
from gmtool.data.samples import Sample
from gmtool.errors import ConfigError, DataError, GmtoolError
from gmtool.masks.coco_annotations import rasterize, read_coco
from gmtool.masks.coco_results import paint_results, read_coco_results
from gmtool.report.report import load_report
from gmtool.report.tables import to_markdown
from gmtool.settings import Settings, build_config, load_toml, parse_assignments

HOSTILE = {
    "true": "true",
    "null": "null",
    "text": '"7"',
    "negative": "-1",
    "zero": "0",
    "fraction": "0.5",
    "too large for a float": "1e999",
    "not a number": "NaN",
    "93 digits": "1" + "0" * 92,
    "5000 digits": "1" * 5000,
    "nested": "[" * 5000 + "]" * 5000,
    "nested below the limit": '{"a": ' * 40 + "1" + "}" * 40,
    "list": "[]",
    "object": "{}",
}
MARK = "@HOSTILE@"
CLASSES = ClassSet(("sky", "road", "car"), voc_palette(3), (0, 1, 2))
SPEC = ArtifactSpec(
    classes=CLASSES,
    precision="fp16",
    encoder="resnet18",
    output_stride=8,
    attention_stride=8,
    outputs=("mask", "confidence"),
    provenance=ModelProvenance("toy", 40, 0.5, "ab" * 32, "0.1.0", "2.15.0", "2026-01-01T00:00:00+00:00"),
)
SHAPE = BatchShape(1, 32, 32)
PLAN = PlanSpec(
    artifact=SPEC,
    plan_sha256="ab" * 32,
    onnx_sha256="cd" * 32,
    flavour="tensorrt",
    version="11.4.0.106",
    gpu=None,
    compute_capabilities=("8.6",),
    platform="linux-x86_64",
    hardware_compatible=False,
    version_compatible=False,
    profiles=(ShapeProfile(SHAPE, SHAPE, SHAPE),),
    workspace_bytes=None,
    created="2026-01-01T00:00:00+00:00",
)
HEIGHT, WIDTH = 6, 8


def coco_document() -> dict[str, Any]:
    rle = {"size": [HEIGHT, WIDTH], "counts": [10, 20, 18]}
    polygon = [[1, 1, 5, 1, 5, 4]]
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "car"}],
        "annotations": [
            {"id": 3, "image_id": 1, "category_id": 1, "segmentation": polygon, "area": 9.0, "iscrowd": 0},
            {"id": 4, "image_id": 1, "category_id": 2, "segmentation": rle, "area": 20, "iscrowd": 1},
        ],
    }


def results_document() -> list[dict[str, Any]]:
    rle = coco_mask.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return [{"image_id": 1, "category_id": 1, "segmentation": segmentation, "score": 1.0}]


def export_document() -> dict[str, Any]:
    record = {"sha256": "ab" * 32, "bytes": 10, "spec": json.loads(SPEC.to_json())}
    return {"format_version": 2, "artifacts": {"model_fp32.onnx": record}}


def read_report(path: Path) -> None:
    to_markdown(load_report(path))


def read_annotations(path: Path) -> None:
    file = read_coco(path)
    Image.new("L", (WIDTH, HEIGHT)).save(path.parent / "1.png")
    classes = load_classes(str(path))
    for image in file.images:
        sample = Sample("1", path.parent / "1.png", file.mask_of(image))
        assert read_truth(sample, classes, values="index").shape == (HEIGHT, WIDTH)


def read_results(path: Path) -> None:
    for image, entries in read_coco_results(path).items():
        paint_results(entries, CLASSES, where=str(image))


def read_names(path: Path) -> None:
    from gmtool_serving.inputs.lists import read_coco_names

    read_coco_names(path)


def read_checkpoint(path: Path) -> None:
    """Read a description whose seal is right: else it is refused for that alone."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        value = json.loads(path.read_text())
        path.write_text(sealed({key: value[key] for key in value.keys() - {SEAL}}))
    read_checkpoint_file(path)


def checkpoint_document() -> dict[str, Any]:
    model = asdict(ModelConfig(encoder="toy", encoder_weights="none", decoder_channels=16))
    return {
        "format_version": 1,
        "weights": "w.safetensors",
        "sha256": "ab" * 32,
        "iteration": 3,
        "miou": 0.5,
        "model": model,
        "classes": CLASSES.to_dict(),
    }


DOCUMENTS: dict[str, tuple[Callable[[], Any], Callable[[Path], object]]] = {
    "spec": (
        lambda: json.loads(SPEC.to_json()),
        lambda path: ArtifactSpec.from_json(path.read_text(), where=str(path)),
    ),
    "sidecar": (
        lambda: json.loads(PLAN.to_json()),
        lambda path: PlanSpec.from_json(path.read_text(), where=str(path)),
    ),
    "classes": (CLASSES.to_dict, lambda path: load_classes(str(path))),
    "report": (ONE.to_dict, read_report),
    "described report": (ONE.to_dict, describe),
    "described exports": (export_document, describe),
    "checkpoint": (checkpoint_document, read_checkpoint),
    "annotations": (coco_document, read_annotations),
    "names": (coco_document, read_names),
    "results": (results_document, read_results),
}


def replaced(value: Any) -> Iterator[Any]:
    """Yield the document with each of its values, at every depth, replaced by `MARK`."""
    yield MARK
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(pairs):
        for changed in replaced(item):
            copy = value.copy()
            copy[key] = changed
            yield copy


@pytest.mark.parametrize("name", DOCUMENTS)
def test_case_48_no_value_of_a_document_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    document, read = DOCUMENTS[name]
    path = tmp_path / "document.json"
    path.write_text(json.dumps(document()))
    read(path)  # as it is, it is fine
    refused = 0
    texts = [json.dumps(changed) for changed in replaced(document())]
    step = -(-len(texts) // 25)  # of a long document, each place has some of the values
    for place, text in enumerate(texts):
        for number, (kind, hostile) in enumerate(HOSTILE.items()):
            if (place + number) % step:
                continue
            path.write_text(text.replace(f'"{MARK}"', hostile))
            try:
                read(path)
            except GmtoolError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 1000, f"{kind}: {error}"
    assert refused > 50


@pytest.mark.parametrize("name", ["spec", "sidecar", "classes", "report"])
@pytest.mark.parametrize("hostile", ["true", "1e999", "1" + "0" * 92])
def test_case_48_no_number_passes_for_what_it_is_not(tmp_path: Path, name: str, hostile: str) -> None:
    document, read = DOCUMENTS[name]
    value = document()
    numbers = {
        "spec": ["output_stride", "opset"],
        "sidecar": ["workspace_bytes"],
        "classes": ["ignore_index"],
        "report": ["num_images", "ignored_pixels"],
    }
    path = tmp_path / "document.json"
    for key in numbers[name]:
        path.write_text(json.dumps(value | {key: MARK}).replace(f'"{MARK}"', hostile))
        with pytest.raises(GmtoolError) as error:
            read(path)
        assert "document.json" in str(error.value) and key in str(error.value)


def test_a_report_whose_counts_cannot_be_is_refused(tmp_path: Path) -> None:
    for place, counts in enumerate(([2, 1, 3], [-1, 3, 3], [1, 3], [1, True, 3], [1.5, 3, 3])):
        value = ONE.to_dict()
        value["images"][0]["counts"]["0"] = counts
        path = tmp_path / f"{place}.json"
        path.write_text(json.dumps(value))
        with pytest.raises(DataError, match="not a report of gmtool evaluate"):
            load_report(path)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "true", "9" * 5000, "[" * 5000, "0x" + "f" * 30])
@pytest.mark.parametrize("name", ["optim.lr", "optim.iterations", "method.omega_max", "data.workers"])
def test_case_48_settings_take_finite_numbers_alone(tmp_path: Path, name: str, value: str) -> None:
    section, key = name.split(".")
    path = tmp_path / "config.toml"
    path.write_text(f"[{section}]\n{key} = {value}\n")
    readers: list[Callable[[], Settings]] = [
        lambda: load_toml(path),
        lambda: parse_assignments([f"{name}={value}"]),
    ]
    for read in readers:
        with pytest.raises(ConfigError) as error:
            build_config({"data.root": Path("data")}, read())
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_case_48_numbers_of_python_are_checked_too() -> None:
    for value in (math.inf, math.nan, True):
        with pytest.raises(ConfigError, match=r"setting optim\.lr: got (inf|nan|true); expected a finite number"):
            build_config({"data.root": Path("data"), "optim.lr": value})
    assert build_config({"data.root": Path("data"), "data.flip": True, "run.seed": 1e3}).run.seed == 1000


@pytest.mark.parametrize("size", [10**92, 10**9, HEIGHT + 1])
def test_case_48_annotations_of_another_size_are_refused_before_anything_is_painted(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = coco_document()
    value["images"][0]["height"] = size
    (tmp_path / "a.json").write_text(json.dumps(value))
    monkeypatch.setattr("gmtool.data.ground_truth.rasterize", None)
    with pytest.raises(DataError, match="its image is 8x6"):
        read_annotations(tmp_path / "a.json")


def test_case_48_the_outlines_of_an_image_are_bounded(tmp_path: Path) -> None:
    far = [value for _ in range(4) for value in (-1e6, -1e6, 1e6, 1e6)]
    classes = ClassSet(("background", "road", "car"), voc_palette(3), (0, 1, 2), background=0)
    value = coco_document()
    value["annotations"] = [value["annotations"][0] | {"segmentation": [far]}]
    (tmp_path / "a.json").write_text(json.dumps(value))
    file = read_coco(tmp_path / "a.json")
    with pytest.raises(DataError, match="annotation 3 .*outlines in its image are longer than 5000000 pixels"):
        rasterize(file.mask_of(file.images[0]), classes)
    # Reaching over the border is common: the part inside is painted
    value["annotations"][0]["segmentation"] = [[-300, -300, 300, -300, 300, 300, -300, 300]]
    (tmp_path / "a.json").write_text(json.dumps(value))
    file = read_coco(tmp_path / "a.json")
    assert (rasterize(file.mask_of(file.images[0]), classes) == 1).all()


def test_case_48_results_of_an_absurd_size_are_refused_before_they_are_painted() -> None:
    entry = results_document()[0]
    for size, expected, message in (
        ([10**9, 10**9], None, "at most|expected 1 to"),
        ([10**92, 1], None, "expected 1 to"),
        ([HEIGHT, WIDTH], (HEIGHT, WIDTH + 1), "but its ground truth has 9x6"),
    ):
        damaged = entry | {"segmentation": entry["segmentation"] | {"size": size}}
        with pytest.raises(DataError, match=message):
            paint_results([damaged], CLASSES, where="x", expected=expected)
