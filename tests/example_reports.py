"""Small reports for the tests of what is written from them."""

from dataclasses import replace

import numpy as np

from gmtool.classes import ClassSet, voc_palette
from gmtool.report.image_scores import ImageScores, ScoreCollector
from gmtool.report.report import IoUReport, Provenance

CLASSES = ClassSet(("road", "car", "train"), voc_palette(3), (0, 1, 2))
REPORT = IoUReport(
    confusion=np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]], dtype=np.int64),
    classes=CLASSES,
    num_images=2,
    failed=("x.jpg: damaged",),
    provenance=Provenance("val.txt", "ab" * 32, "model.onnx", "cd" * 32, "onnxruntime", "fp32"),
)


def scores(*matrices: list[list[int]], prefix: str = "image") -> ImageScores:
    collector = ScoreCollector(3)
    for index, matrix in enumerate(matrices):
        collector.add(f"{prefix} {index}", f"hash {index}", np.array(matrix, dtype=np.int64))
    return collector.scores()


def full(model: str, *matrices: list[list[int]]) -> IoUReport:
    """A report of `gmtool evaluate`, with images, a column for no class, and boundaries."""
    return replace(
        REPORT,
        confusion=np.array(matrices, dtype=np.int64).sum(axis=0),
        num_images=len(matrices),
        provenance=replace(REPORT.provenance, model=model),
        left_out=("y: its ground truth ignores every pixel",),
        ignored_pixels=7,
        images=scores(*matrices),
        boundary=np.array([[2, 3, 0], [4, 3, 0]], dtype=np.int64),
    )


ONE = full(
    "runs/one/m.onnx", [[2, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]], [[1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]
)
TWO = full(
    "runs/two/m.onnx", [[1, 2, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]], [[0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]]
)
