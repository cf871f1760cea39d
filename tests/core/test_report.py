import json
from pathlib import Path

import numpy as np

from gmtool.classes import ClassSet, voc_palette
from gmtool.report import IoUReport, Provenance
from gmtool.report_tables import save_report

CLASSES = ClassSet(("road", "car", "train"), voc_palette(3), (0, 1, 2))
REPORT = IoUReport(
    confusion=np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]], dtype=np.int64),
    classes=CLASSES,
    num_images=2,
    failed=("x.jpg: damaged",),
    provenance=Provenance("val.txt", "ab" * 32, "model.onnx", "cd" * 32, "onnxruntime", "fp32"),
)


def test_absent_classes_are_null_and_not_in_the_mean(tmp_path: Path) -> None:
    save_report(REPORT, tmp_path)
    value = json.loads((tmp_path / "report.json").read_text())
    assert [row["iou"] for row in value["classes"]] == [0.75, 0.8, None]
    assert value["miou"] == (0.75 + 0.8) / 2
    assert value["confusion_matrix"] == [[3, 1, 0], [0, 4, 0], [0, 0, 0]]
    assert value["failed"] == ["x.jpg: damaged"]
    for key in ("split", "split_sha256", "model", "model_sha256", "backend", "precision"):
        assert value["provenance"][key]
    assert value["protocol"]["resolution"] == "whole image at its own size"


def test_markdown_says_the_same(tmp_path: Path) -> None:
    save_report(REPORT, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "# mIoU 77.50 % on val.txt" in text
    assert "| train | - | - | 0 |" in text
    assert "- x.jpg: damaged" in text
    assert "cd" * 32 in text
