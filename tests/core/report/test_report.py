import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from example_reports import ONE, REPORT, TWO, scores

from gmtool.classes import ClassSet, voc_palette
from gmtool.errors import ConfigError, DataError
from gmtool.report.cityscapes_json import official_dict
from gmtool.report.comparison import compare, comparison_markdown, verdict
from gmtool.report.html import report_html
from gmtool.report.report import format_json, load_report
from gmtool.report.tables import save_report


def test_absent_classes_are_null_and_not_in_the_mean(tmp_path: Path) -> None:
    save_report(REPORT, tmp_path)
    value = json.loads((tmp_path / "report.json").read_text())
    assert [row["iou"] for row in value["classes"]] == [0.75, 0.8, None]
    assert [row["precision"] for row in value["classes"]] == [1.0, 0.8, None]
    assert value["miou"] == (0.75 + 0.8) / 2
    assert value["mean_accuracy"] == (0.75 + 1) / 2
    assert value["confusion_matrix"] == [[3, 1, 0], [0, 4, 0], [0, 0, 0]]
    assert value["failed"] == ["x.jpg: damaged"]
    for key in ("split", "split_sha256", "model", "model_sha256", "backend", "precision"):
        assert value["provenance"][key]
    assert value["protocol"]["resolution"] == "whole image at its own size"


def test_markdown_says_the_same(tmp_path: Path) -> None:
    save_report(ONE, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "# mIoU 70.83 % on val.txt" in text
    assert "95 % interval " in text
    assert "| road | 75.00 | 75.00 | 100.00 | 50.00 | 4 |" in text
    assert "| train | - | - | - | - | 0 |" in text
    assert "1 counted pixels were given no class and count as missed." in text
    assert "- x.jpg: damaged" in text
    assert "- y: its ground truth ignores every pixel" in text
    assert "cd" * 32 in text


def test_what_failed_by_the_thousand_is_one_line_a_kind_and_whole_in_the_json(tmp_path: Path) -> None:
    failed = [f"town/{index}: no mask in predictions" for index in range(1000)]
    report = replace(ONE, failed=(*failed, "x: masks/x.png has label 34"))
    save_report(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    line = "- town/0: no mask in predictions (1000 such: town/0, town/1, town/2 and 997 more)"
    assert text.splitlines().count(line) == 1
    assert "- x: masks/x.png has label 34" in text.splitlines()
    assert "report.json has all of them." in text and len(text) < 3000
    assert len(report_html(report)) < len(report_html(ONE)) + 500
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == list(report.failed)


def test_images_that_are_not_compared_are_counted() -> None:
    many = scores(*[[[1, 0, 0], [0, 1, 0], [0, 0, 0]]] * 500)
    text = comparison_markdown(compare(replace(TWO, images=many), [ONE]))
    assert (
        "498 images not compared, since not all scored them: image 10, image 100, image 101 and 495 more." in text
    )


def test_a_report_is_read_back_as_it_was(tmp_path: Path) -> None:
    save_report(ONE, tmp_path)
    assert load_report(tmp_path).to_dict() == ONE.to_dict()
    value = json.loads((tmp_path / "report.json").read_text())
    assert value["images"][0]["counts"] == {"0": [2, 3, 2], "1": [2, 3, 3]}
    assert json.loads(format_json(value)) == value


def test_tables_for_spreadsheets_have_a_row_a_class_and_a_row_an_image(tmp_path: Path) -> None:
    save_report(ONE, tmp_path)
    classes = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [(row["name"], row["iou"], row["boundary_iou"]) for row in classes][::2] == [
        ("road", "0.75", "0.5"),
        ("train", "", ""),
    ]
    images = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert [row["id"] for row in images] == ["image 0", "image 1"]
    assert float(images[0]["miou"]) == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert (images[0]["pixels"], images[1]["car"], images[1]["train"]) == ("6", "1.0", "")


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_report(path)
    save_report(REPORT, tmp_path)  # as training writes it
    with pytest.raises(DataError, match="no scores of single images: write it again with gmtool evaluate --out"):
        load_report(tmp_path)
    for content, expected in (
        ("{}", "not a report"),
        ('{"format_version": 99}', "update it"),
        ("x", "not a report"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=expected):
            load_report(tmp_path)


def test_results_are_compared_over_the_images_that_both_scored() -> None:
    three = replace(TWO, images=scores([[1, 2, 0], [0, 2, 1], [0, 0, 0]]))
    comparison = compare(ONE, [TWO, three])
    assert [result.name for result in comparison.results] == ["m.onnx (1)", "m.onnx (2)", "m.onnx (3)"]
    assert comparison.ids == ("image 0",)
    assert comparison.only_in_some == ("image 1",)
    comparison = compare(ONE, [TWO])
    assert [result.name for result in comparison.results] == ["one/m.onnx", "two/m.onnx"]
    difference = comparison.differences[0]
    assert difference.miou == pytest.approx(ONE.miou - TWO.miou)
    assert verdict(difference) == "better"
    assert verdict(compare(TWO, [ONE]).differences[0]) == "worse"
    assert verdict(compare(TWO, [TWO]).differences[0]) == "no difference shown"
    text = comparison_markdown(comparison)
    assert "| two/m.onnx | 37.50 |" in text and "| better |" in text
    assert json.loads(format_json(comparison.to_dict()))["differences"][0]["verdict"] == "better"


def test_results_that_do_not_belong_together_are_refused() -> None:
    assert TWO.images is not None
    other_truth = replace(TWO, images=replace(TWO.images, truth_sha256=("hash 0", "changed")))
    with pytest.raises(DataError, match="other ground truth for 1 of 2 images, for example image 1"):
        compare(ONE, [other_truth])
    with pytest.raises(DataError, match="no common image id"):
        compare(ONE, [replace(TWO, images=replace(TWO.images, ids=("p", "q")))])
    renamed = ClassSet(("a", "b", "c"), voc_palette(3), (0, 1, 2))
    with pytest.raises(DataError, match="scored on other classes"):
        compare(ONE, [replace(TWO, classes=renamed)])


def test_official_keys_are_for_cityscapes_alone() -> None:
    with pytest.raises(ConfigError, match="needs the 19 classes of Cityscapes"):
        official_dict(ONE)
