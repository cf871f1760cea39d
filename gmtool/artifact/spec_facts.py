"""Facts about an exported model as text, for `gmtool info`; numbers and sizes as text. Needs no numpy."""

from __future__ import annotations

from gmtool.artifact.spec import ArtifactSpec
from gmtool.json_toml import shown


def spec_facts(spec: ArtifactSpec) -> dict[str, str]:
    """Return the facts by name, in display order."""
    origin, image = spec.provenance, spec.input
    stride = spec.attention_stride
    attention = "none" if stride is None else f"at 1/{stride:.3g} of the image's size"
    shapes = {
        "mask": "uint8 [N, H, W]",
        "confidence": "uint8 [N, H, W]",
        "logits": "float32 [N, C, H, W]",
        "embedding": "float32 [N, D]",
    }
    return {
        "precision": spec.precision,
        "network": f"encoder {spec.encoder}, output stride {spec.output_stride}, attention {attention}",
        "decoder": f"{spec.decoder}, input scale {spec.input_scale:g}",
        "licence": f"of the encoder's published weights: {spec.encoder_license or 'not known'}",
        "input": f"{image.name}: {image.dtype} {_shape(spec)} {image.color}, at least {image.min_size_px} px",
        "outputs": "; ".join(f"{name}: {shapes[name]}" for name in spec.outputs),
        "unsure pixels": _unsure_pixels(spec),
        "opset": str(spec.opset),
        "run": f"{origin.run}, after {origin.iteration} iterations, {validated(origin.miou)}",
        "weights": f"sha256 {short_hash(origin.weights_sha256)}",
        "labeled": f"sha256 of the images' names {short_hash(origin.labeled_sha256)}",
        "exported": f"{origin.created} by gmtool {origin.gmtool_version}, torch {origin.torch_version}",
    }


def _shape(spec: ArtifactSpec) -> str:
    shape = spec.input.shape
    return "[N, H, W, 3]" if shape is None else f"{[*shape, 3]}, no other shape,"


def _unsure_pixels(spec: ArtifactSpec) -> str:
    """Return which formats carry what `predict --min-confidence` ignores."""
    if not {"confidence", "logits"} & set(spec.outputs):
        return "predict --min-confidence needs an export with --output mask+confidence"
    ignored = spec.classes.ignore_index
    return (
        f"predict --min-confidence makes them {ignored} in voc, trainids and npz, 0 in cityscapes, the color of "
        "ignored pixels in color and overlay, no entry in coco; voc-submission cannot carry them"
    )


def validated(miou: float | None) -> str:
    return "not validated" if miou is None else f"validation mIoU {percent(miou)} %"


def percent(ratio: float | None) -> str:
    """Return a ratio as per cent; without `gmtool.report`, which imports numpy."""
    return "-" if ratio is None else f"{100 * number(ratio):.2f}"


def short_hash(sha256: str | None) -> str:
    """Return the first 12 digits of a hash; `Description.value` has all."""
    return "not known" if sha256 is None else f"{sha256[:12]}..."


def file_size(count: int) -> str:
    return f"{number(count) / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def number(value: float) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{shown(value)} is not a number")
    return value
