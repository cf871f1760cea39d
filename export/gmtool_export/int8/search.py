"""Choice of the layers that stay in float32, so that an int8 model keeps its mIoU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from gmtool.console import remark
from gmtool_export.int8.cache import Calibrated
from gmtool_export.int8.quantize import quantize_graph
from gmtool_export.int8.sensitivity import LayerError, SwitchedModel, agreement

GOAL = 0.99
"""Share of the pixels with float32's label at which no further layer is moved to float32, without a score."""
MAX_SHARE = 0.25
"""Largest share of layers in float32; more would defeat int8's purpose."""
GOAL_SHARE = 0.5
"""Share of the accepted drop that the search aims at: the images that are not scored may lose more."""

Measure = Callable[[onnx.ModelProto], float]
"""Loss of mIoU, points, of a graph with all outputs."""


@dataclass(frozen=True)
class SearchStep:
    """Layer moved back to float32."""

    layer: str
    changed: float
    """Share of pixels that get another label when this layer alone is in int8, in [0, 1]."""
    loss: float
    """Loss with this layer, and those before it, in float32: points of mIoU, or per cent of the pixels."""


@dataclass(frozen=True)
class Quantization:
    """Settings and results of an int8 quantization."""

    symmetric: bool
    """Signed, zero-centred activations, as TensorRT needs them; else unsigned ones, which are fast on CPUs."""
    quantized_layers: int
    """Convolutions in int8."""
    float_layers: tuple[str, ...]
    """Convolutions left in float32: the classifier, then the most sensitive first."""
    tuned_agreement: float
    """Share of the pixels of some calibration images with float32's label, in [0, 1], that the choice reached."""
    calibration: str
    """Description of the calibration images' origin."""
    calibration_sha256: str
    """SHA-256 of their file names."""
    judged_by: str = "pixels"
    """Loss that the search lowered: `mIoU`, points on validation images, or `pixels`, per cent of those of
    calibration images."""
    first_loss: float | None = None
    """Loss with the classifier alone in float32."""
    steps: tuple[SearchStep, ...] = ()


def quantize(
    model: onnx.ModelProto,
    calibrated: Calibrated,
    *,
    symmetric: bool,
    measure: Measure | None = None,
    max_drop: float = 1.0,
) -> tuple[onnx.ModelProto, Quantization]:
    """Return the int8 version of a float32 graph, and the record of its quantization.

    The classifier stays in float32. The other layers move there one after another, the most sensitive first, until
    the loss is small enough, at most `MAX_SHARE` of them.

    Args:
        model: Float32 graph with the output `logits`.
        calibrated: Images, ranges and what was computed before.
        symmetric: Signed activations, as TensorRT needs them; see `quantize_graph`.
        measure: Loss of mIoU on validation images; None judges by the labels of calibration images.
        max_drop: Accepted loss of mIoU, points; the search aims at `GOAL_SHARE` of it.
    """
    convolutions = quantize_graph(model, calibrated.ranges, symmetric=symmetric, operators=["Conv"])
    switched = SwitchedModel(model, convolutions)
    # In 256 steps the classifier's scores would tie; it is also the smallest layer
    always = switched.layers[-1:]

    def build(floats: Sequence[str]) -> onnx.ModelProto:
        return quantize_graph(model, calibrated.ranges, symmetric=symmetric, float_layers=[*always, *floats])

    def disagreement(floats: Sequence[str]) -> float:
        return 100 * (1 - agreement(switched, calibrated.images, float_layers=[*always, *floats]))

    losses = disagreement if measure is None else lambda floats: measure(build(floats))
    goal = 100 * (1 - GOAL) if measure is None else GOAL_SHARE * max_drop

    def ranked() -> list[LayerError]:
        errors = calibrated.layer_errors(switched, symmetric=symmetric)
        return sorted((error for error in errors if error.node not in always), key=lambda error: -error.error)

    unit = "% of the pixels" if measure is None else "points of mIoU"
    most = int(len(switched.layers) * MAX_SHARE)
    first, steps, floats = search(losses, ranked, goal=goal, most=most, unit=unit)
    return build(floats), Quantization(
        symmetric=symmetric,
        quantized_layers=len(switched.layers) - len(always) - len(floats),
        float_layers=tuple(switched.titles[layer] for layer in [*always, *floats]),
        tuned_agreement=agreement(switched, calibrated.images, float_layers=[*always, *floats]),
        calibration=calibrated.source,
        calibration_sha256=calibrated.sha256,
        judged_by="pixels" if measure is None else "mIoU",
        first_loss=first,
        steps=steps,
    )


def search(
    loss: Callable[[Sequence[str]], float],
    ranked: Callable[[], Sequence[LayerError]],
    *,
    goal: float,
    most: int,
    unit: str = "points of mIoU",
) -> tuple[float, tuple[SearchStep, ...], list[str]]:
    """Move layers to float32 until the loss is at most `goal`; keep those up to the smallest loss otherwise.

    Args:
        loss: Loss with these nodes in float32.
        ranked: Returns the layers, the most sensitive first; not called if no layer has to move.
        goal: Loss that is small enough.
        most: Largest number of layers to move.
        unit: Unit of the loss, for remarks.

    Returns:
        The loss before, the steps that are kept, and the nodes that stay in float32.
    """
    first = best = loss([])
    remark(f"int8 loses {first:.2f} {unit}; at most {goal:.2f} is aimed at")
    if first <= goal:
        return first, (), []
    steps: list[SearchStep] = []
    nodes: list[str] = []
    kept = 0
    for layer in ranked()[:most]:
        nodes.append(layer.node)
        reached = loss(nodes)
        steps.append(SearchStep(layer.title, layer.changed, reached))
        remark(f"with {layer.title} in float32 it loses {reached:.2f}")
        if reached < best:
            best, kept = reached, len(steps)
        if reached <= goal:
            break
    return first, tuple(steps[:kept]), nodes[:kept]
