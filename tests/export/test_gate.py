"""What lets an exported model pass, on figures that are made up, and what it is measured on."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gmtool_export import make
from gmtool_export.proof.gate import TOLERANCES, judge, refuse_weak_evidence
from gmtool_export.proof.half import LARGEST_HALF, MagnitudeWatch, half_headroom
from gmtool_export.proof.miou_drop import ImageScore, ScoreProof, classes_predicted
from gmtool_export.proof.parity import ParityRow, ReferenceBatch, compare, reference_batches, reference_logits
from gmtool_export.record import Proof, onnx_name
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gmtool.artifact.spec import Precision
from gmtool.errors import ParityError
from gmtool.images import UInt8Array, read_image
from gmtool.nn.checkpoint import load_network
from gmtool.nn.guidedmix_decoder import GuidedMixDecoder
from gmtool.nn.mitrans import NonLocal
from gmtool.nn.model import GuidedMixNet

ROW = ParityRow("odd", 1, 97, 133, 1.0, max_difference=1e-5, max_logit=10.0, unexplained=0, classes_seen=4)
SCORE = ScoreProof("val", 10, 20, 0.75, 0.75, 1.0, ImageScore("a", 0.98), 5)

Figures = tuple[ParityRow, ScoreProof | None]


def pass_gate(figures: Figures, precision: Precision = "fp32") -> None:
    row, scored = figures
    judge("it", precision, [ROW, row], scored, TOLERANCES[precision])


def test_what_agrees_passes() -> None:
    pass_gate((ROW, SCORE))
    pass_gate((ROW, None))
    pass_gate((replace(ROW, agreement=0.996, max_difference=0.2), replace(SCORE, miou=0.749)), "fp16")
    pass_gate((replace(ROW, agreement=0.97), replace(SCORE, miou=0.741)), "int8")


def test_half_precision_is_judged_on_whole_images() -> None:
    """A model whose masks agree on 99.86 % of 24 images was refused for 72 pixels of one crop of 64x96."""
    crop = replace(ROW, agreement=0.9883, max_difference=0.2)
    pass_gate((crop, replace(SCORE, agreement=0.9986)), "fp16")
    pass_gate((replace(crop, shape="own size", agreement=0.996), None), "fp16")
    with pytest.raises(ParityError, match=r"99.40% of the pixels of whole images; expected 99.50% \(--min-agree"):
        pass_gate((ROW, replace(SCORE, agreement=0.994)), "fp16")
    with pytest.raises(ParityError, match=r"90.0000% of the pixels at 1x97x133 \(odd\); expected 95.00%: nothing"):
        pass_gate((replace(ROW, agreement=0.9), SCORE), "fp16")


def test_half_precision_is_not_refused_for_a_crop_before_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    crop = replace(ROW, agreement=0.9883, max_difference=0.2)
    monkeypatch.setattr(make, "compare", lambda runner, given: (ROW, crop))
    monkeypatch.setattr(make, "score", lambda *given: replace(SCORE, agreement=0.9986))
    spec = cast(Any, SimpleNamespace(precision="fp16", classes=None))
    runner = cast(Any, None)

    def prove(scored: object) -> Proof:
        evidence = SimpleNamespace(scored=scored, not_scored=None, classes_predicted=5)
        proving = SimpleNamespace(evidence=evidence, tolerance=TOLERANCES["fp16"], masks=None)
        return make._prove("it", "runtime", spec, cast(Any, proving), runner, runner, {})

    assert prove(SimpleNamespace(samples=(), num_listed=10)).score is not None
    with pytest.raises(ParityError, match=r"98.8300% of the pixels at 1x97x133 \(odd\); expected 99.50%"):
        prove(None)  # nothing whole was compared


@pytest.mark.parametrize(
    ("figures", "precision", "expected"),
    [
        ((replace(ROW, agreement=0.99), None), "fp32", r"99.0000% of the pixels at 1x97x133 .*expected 99.90%"),
        (
            (replace(ROW, agreement=0.99), None),
            "fp16",
            r"expected 99.50% \(--min-agreement\): nothing was written",
        ),
        ((replace(ROW, max_difference=0.1), None), "fp32", "differ from PyTorch's by 0.1 at 1x97x133"),
        (
            (replace(ROW, unexplained=7), None),
            "int8",
            "gives 7 pixels at .* differ by more than the rounding errors",
        ),
        ((ROW, replace(SCORE, miou=0.745)), "fp16", r"74.50 % mIoU on 10 images of val, 0.50 points below"),
        ((ROW, replace(SCORE, miou=0.739)), "int8", r"expected at most 1.0 \(--max-miou-drop\), worst image a"),
    ],
)
def test_case_38_what_differs_is_refused_with_its_figure(
    figures: Figures, precision: Precision, expected: str
) -> None:
    with pytest.raises(ParityError, match=expected):
        pass_gate(figures, precision)


def test_case_38_a_network_that_predicts_hardly_any_class_is_no_evidence() -> None:
    assert classes_predicted([9_900, 60, 40, 0]) == 2
    with pytest.raises(ParityError, match="only 2 of its 4 classes 0.5% of the pixels or more; expected 3"):
        refuse_weak_evidence(2, 4)
    refuse_weak_evidence(3, 4)
    refuse_weak_evidence(2, 2)
    with pytest.raises(ParityError, match=r"--images DIR.*--allow-few-classes"):
        refuse_weak_evidence(1, 2)


@pytest.fixture(scope="module")
def network(toy_run: Path) -> GuidedMixNet:
    return load_network(toy_run, "best")[0]


@pytest.fixture(scope="module")
def compared(network: GuidedMixNet, toy_data: Path) -> dict[str, ReferenceBatch]:
    return reference_batches(
        network, [read_image(path) for path in sorted((toy_data / "JPEGImages").iterdir())[:3]]
    )


def test_four_shapes_and_an_image_at_its_own_size_are_compared(compared: dict[str, ReferenceBatch]) -> None:
    shapes = {example.images.shape for example in compared.values()}
    assert len(shapes) == 5
    assert {shape[0] for shape in shapes} == {1, 2, 3}
    for example in compared.values():
        count, height, width, _ = example.images.shape
        assert example.logits.shape == (count, 6, height, width)


def test_a_flipped_label_is_explained_by_rounding_only_where_two_classes_are_close(
    network: GuidedMixNet, compared: dict[str, ReferenceBatch]
) -> None:
    (example,) = [compared["odd"]]
    order = np.argsort(example.logits, axis=1)
    margin = np.take_along_axis(example.logits, order[:, -1:], 1) - np.take_along_axis(
        example.logits, order[:, -2:-1], 1
    )
    mask = order[:, -1].astype(np.uint8)
    second = order[:, -2].astype(np.uint8)

    def measured(differ: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> ParityRow:
        logits = example.logits + np.float32(1e-4)
        given = {"mask": np.where(differ, second, mask), "logits": logits}
        return compare(lambda _: given, {"odd": example})[0]

    assert measured(np.zeros_like(mask, dtype=bool)).agreement == 1
    assert measured(np.zeros_like(mask, dtype=bool)).max_difference == pytest.approx(1e-4, rel=0.02)
    wide = margin[:, 0] > 0.5
    row = measured(wide)
    assert row.unexplained == int(wide.sum()) > 0
    assert row.agreement == pytest.approx(1 - wide.mean())


def test_masks_of_another_shape_and_scores_that_are_not_finite_are_refused(
    compared: dict[str, ReferenceBatch],
) -> None:
    example = compared["odd"]
    with pytest.raises(ParityError, match="gives masks"):
        compare(lambda images: {"mask": np.zeros((1, 8, 8), np.uint8)}, {"odd": example})
    broken = {"mask": example.logits.argmax(1), "logits": example.logits * np.nan}
    with pytest.raises(ParityError, match="not finite"):
        compare(lambda images: broken, {"odd": example})


def test_half_precision_is_refused_where_an_activation_does_not_fit(
    network: GuidedMixNet, compared: dict[str, ReferenceBatch]
) -> None:
    images: UInt8Array = compared["odd"].images
    room = half_headroom(network, images)
    assert 1 < room.value < 1000
    # Positions of the pooling's regions are computed in float32, whatever the network computes in
    assert half_headroom(network, np.repeat(images, 8, axis=2)).layer != "psp"
    large = copy.deepcopy(network)
    with torch.no_grad():
        large.get_parameter("encoder.layer2.0.bn1.weight").mul_(1e5)
    with pytest.raises(ParityError, match=r"fp16: \S+ reaches \d+, and float16 holds up to 65504"):
        half_headroom(large, images)
    # Nothing is left behind that would watch the network
    assert not any(module._forward_hooks for module in network.modules())
    assert reference_logits(network, images).shape == compared["odd"].logits.shape


def test_half_precision_is_refused_where_attention_scores_do_not_fit(
    network: GuidedMixNet, compared: dict[str, ReferenceBatch]
) -> None:
    """No layer returns them: they are a product in the middle of attention."""
    images: UInt8Array = compared["odd"].images
    large = copy.deepcopy(network)
    assert isinstance(large.decoder, GuidedMixDecoder)
    attention = large.decoder.mitrans1.attention
    assert isinstance(attention, NonLocal)
    seen: dict[nn.Module, torch.Tensor] = {}
    for conv in (attention.query, attention.key):
        conv.register_forward_hook(lambda layer, _, output: seen.__setitem__(layer, output.flatten(2)))
    with torch.no_grad():
        for conv in (attention.query, attention.key):
            reference_logits(large, images)
            conv.weight.mul_(3000 / seen[conv].abs().max())
            assert conv.bias is not None
            conv.bias.mul_(3000 / seen[conv].abs().max())
    reference_logits(large, images)
    query, key = seen[attention.query].double(), seen[attention.key].double()
    assert max(query.abs().max(), key.abs().max()) < 3001
    scores = float((query.transpose(1, 2) @ key).abs().max()) * query.shape[1] ** -0.5
    assert scores > 2 * LARGEST_HALF
    with pytest.raises(
        ParityError, match=r"fp16: decoder.mitrans1.attention reaches \d+, and float16 holds"
    ) as error:
        half_headroom(large, images)
    reached = float(str(error.value).split("reaches ")[1].split(",")[0])
    assert reached == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_convolution_counts_by_its_own_unless_normalisation_is_merged_into_it(normalised: bool) -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    network = nn.Sequential(conv, nn.BatchNorm2d(1) if normalised else nn.Identity(), nn.Sigmoid()).eval().double()
    with torch.no_grad():
        conv.weight.fill_(1e5)
        if isinstance(network[1], nn.BatchNorm2d):
            network[1].running_var.fill_(1e8)  # type: ignore[union-attr]
    watch = MagnitudeWatch(network)
    with torch.no_grad(), watch:
        network(torch.ones(1, 1, 2, 2, dtype=torch.float64))
    layer, value = watch.largest()
    assert (layer, round(value)) == (("1", 10) if normalised else ("0", 100_000))


def test_fused_attention_counts_with_its_scores_and_not_a_number_is_too_large() -> None:
    query = torch.full((1, 1, 4, 16), 300.0, dtype=torch.float64)
    watch = MagnitudeWatch(nn.Identity())
    with sdpa_kernel(SDPBackend.MATH), watch:
        F.scaled_dot_product_attention(query, query, query)
    assert watch.largest()[1] == pytest.approx(16 * 300**2 / 4)
    watch = MagnitudeWatch(nn.Identity())
    with watch:
        torch.zeros(2, dtype=torch.float64) / 0
    assert watch.largest()[1] == math.inf


def test_names_say_precision_and_outputs() -> None:
    assert onnx_name("fp16", ("mask",), symmetric=False) == "model_fp16.onnx"
    assert onnx_name("fp32", ("mask", "confidence"), symmetric=False) == "model_fp32_confidence.onnx"
    assert onnx_name("int8", ("logits",), symmetric=True) == "model_int8_symmetric_logits.onnx"
