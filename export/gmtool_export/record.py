"""Records of a folder's exported models: `export.json` and `export.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmtool.artifact.spec import ArtifactSpec, OutputName, Precision
from gmtool.errors import DataError
from gmtool.files import write_atomically
from gmtool.json_toml import read_json
from gmtool.report.report import percent
from gmtool_export.int8.search import Quantization
from gmtool_export.proof.gate import Tolerance
from gmtool_export.proof.half import Headroom
from gmtool_export.proof.miou_drop import ScoreProof
from gmtool_export.proof.parity import ParityRow

FORMAT_VERSION = 2
JSON_NAME, MARKDOWN_NAME = "export.json", "export.md"


@dataclass(frozen=True)
class Proof:
    """Comparison of an exported model with PyTorch."""

    runtime: str
    """Runtime of the exported model, such as "onnxruntime 1.31.1 CPUExecutionProvider"."""
    tolerance: Tolerance
    rows: tuple[ParityRow, ...]
    score: ScoreProof | None
    not_scored: str | None
    """Reason why there is no score."""
    classes_predicted: int
    """Classes that PyTorch predicts on a minimum share of the compared pixels."""


@dataclass(frozen=True)
class ArtifactRecord:
    """Record of an exported file."""

    file: str
    sha256: str
    bytes: int
    checkpoint: str
    precision: Precision
    """Precision of the file's graph."""
    seconds: float
    """Duration of the export."""
    spec: ArtifactSpec
    proofs: tuple[Proof, ...]
    """Proofs in ONNX Runtime and, for a plan that can run here, in TensorRT. Empty with --no-parity."""
    quantization: Quantization | None = None
    headroom: Headroom | None = None
    """Largest magnitude, for fp16 only."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        value = asdict(self) | {"spec": json.loads(self.spec.to_json())}
        for proof, kept in zip(self.proofs, value["proofs"], strict=True):
            if proof.score is not None:
                kept["score"]["drop_points"] = proof.score.drop
        return value


def onnx_name(
    precision: Precision,
    outputs: tuple[OutputName, ...],
    *,
    symmetric: bool,
    shape: tuple[int, int, int] | None = None,
) -> str:
    """Return the file name of an ONNX model: `model_fp16.onnx`, `model_int8_symmetric_logits_1x480x640.onnx`."""
    parts = ["model", precision]
    if precision == "int8" and symmetric:
        parts.append("symmetric")
    fixed = [] if shape is None else ["x".join(map(str, shape))]
    return "_".join([*parts, *outputs_mark(outputs), *fixed]) + ".onnx"


def rejected_name(name: str) -> str:
    """Return the name under which a model that failed its proof is kept."""
    return name + ".rejected"


def save_rejected(folder: Path, record: ArtifactRecord, content: bytes, reason: str) -> None:
    """Keep a model that failed its proof, and its figures beside it as JSON."""
    name = rejected_name(record.file)
    write_atomically(folder / name, content)
    value = {"format_version": FORMAT_VERSION, "reason": reason, **record.to_dict()}
    write_atomically(folder / f"{name}.json", json.dumps(value, indent=1) + "\n")


def drop_rejected(folder: Path, file: str) -> None:
    """Delete what an earlier export kept of a model that is written now."""
    for name in (rejected_name(file), f"{rejected_name(file)}.json"):
        (folder / name).unlink(missing_ok=True)


def outputs_mark(outputs: tuple[OutputName, ...]) -> tuple[OutputName, ...]:
    """Return the outputs that a file name lists: all but the mask."""
    return tuple(name for name in outputs if name != "mask")


def save_records(folder: Path, records: Mapping[str, ArtifactRecord]) -> dict[str, dict[str, Any]]:
    """Merge records, by file name, into a folder's `export.json` and `export.md`; return those of all its files.

    Records of missing files are dropped, and so is an unreadable `export.json`.
    """
    old = {name: value for name, value in _read(folder).items() if (folder / name).is_file()}
    merged = old | {name: record.to_dict() for name, record in records.items()}
    ordered = {name: merged[name] for name in sorted(merged)}
    value = {"format_version": FORMAT_VERSION, "artifacts": ordered}
    write_atomically(folder / JSON_NAME, json.dumps(value, indent=1) + "\n")
    write_atomically(folder / MARKDOWN_NAME, _markdown(ordered))
    return ordered


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        value = read_json(folder / JSON_NAME)
        records: dict[str, dict[str, Any]] = (
            dict(value["artifacts"]) if value["format_version"] == FORMAT_VERSION else {}
        )
        _markdown(records)  # fails for a damaged record
        return records
    except (DataError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def _markdown(records: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        "# Exported models",
        "",
        "Agreement: share of the pixels with PyTorch's label, at the worst of the shapes. mIoU: of both on "
        "the same validation images.",
        "",
        "| file | precision | MB | agreement % | mIoU % PyTorch | mIoU % | drop, points |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [_table_row(record) for record in records.values()]
    for record in records.values():
        lines += ["", *_section(record)]
    return "\n".join(lines) + "\n"


def _table_row(record: dict[str, Any]) -> str:
    proof = record["proofs"][-1] if record["proofs"] else {"rows": [], "score": None}
    score = proof["score"] or {"miou_pytorch": None, "miou": None, "drop_points": None}
    drop = "-" if score["drop_points"] is None else f"{score['drop_points']:.2f}"
    worst = min((row["agreement"] for row in proof["rows"]), default=None)
    return (
        f"| {record['file']} | {record['precision']} | {record['bytes'] / 1e6:.1f} | {percent(worst)} | "
        f"{percent(score['miou_pytorch'])} | {percent(score['miou'])} | {drop} |"
    )


def _section(record: dict[str, Any]) -> list[str]:
    spec, origin = record["spec"], record["spec"]["provenance"]
    lines = [
        f"## {record['file']}",
        "",
        f"- of checkpoint `{record['checkpoint']}`, iteration {origin['iteration']}, weights sha256 "
        f"`{origin['weights_sha256']}`",
        f"- outputs: {', '.join(spec['outputs'])}; exported {origin['created']} in {record['seconds']:.0f} s with "
        f"gmtool {origin['gmtool_version']}, torch {origin['torch_version']}",
        f"- sha256 `{record['sha256']}`",
    ]
    if record["headroom"]:
        headroom = record["headroom"]
        lines.append(f"- largest magnitude {headroom['value']:.0f} in {headroom['layer']}; float16 holds 65504")
    if record["quantization"]:
        lines += _quantization_lines(record["quantization"])
    if not record["proofs"]:
        return [*lines, "- **not compared with PyTorch** (--no-parity)"]
    for proof in record["proofs"]:
        lines += _proof_lines(proof)
    return lines


def _quantization_lines(made: dict[str, Any]) -> list[str]:
    kind = "signed, symmetric activations" if made["symmetric"] else "unsigned activations"
    lines = [
        f"- {made['quantized_layers']} convolutions in int8, weights per channel, {kind}; ranges from "
        f"{made['calibration']} (sha256 of their names `{made['calibration_sha256']}`)",
        f"- left in float32: {', '.join(made['float_layers'])}",
        f"- pixels of calibration images with float32's label, convolutions alone: "
        f"{percent(made['tuned_agreement'])} %",
    ]
    if made.get("first_loss") is None:
        return lines
    unit = "points of mIoU" if made["judged_by"] == "mIoU" else "% of the pixels of calibration images"
    lines.append(f"- loss with the classifier alone in float32: {made['first_loss']:.2f} {unit}")
    if made["steps"]:
        lines += [
            "",
            f"| moved to float32 | pixels changed by it alone in int8, % | loss then, {unit} |",
            "|---|---:|---:|",
        ]
        lines += [
            f"| {step['layer']} | {percent(step['changed'])} | {step['loss']:.2f} |" for step in made["steps"]
        ]
    return lines


def _proof_lines(proof: dict[str, Any]) -> list[str]:
    # Runtime, bounds and score
    tolerance, score = proof["tolerance"], proof["score"]
    lines = [
        f"- run by {proof['runtime']}; required: agreement {percent(tolerance['min_agreement'])} %, drop at most "
        f"{tolerance['max_miou_drop']} points",
    ]
    if score is None:
        lines.append(f"- not scored: {proof['not_scored']}")
    else:
        lines.append(
            f"- scored on {score['num_images']} of {score['num_listed']} images of `{score['split']}`: "
            f"{percent(score['agreement'])} % of the pixels agree; worst image {score['worst']['id']}: "
            f"{percent(score['worst']['agreement'])} %"
        )
    # Table of shapes
    lines += [
        "",
        "| shape | batch x height x width | agreement % | largest difference of logits | largest logit "
        "| classes |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in proof["rows"]:
        size = f"{row['batch']}x{row['height']}x{row['width']}"
        difference = "-" if row["max_difference"] is None else f"{row['max_difference']:.2g}"
        lines.append(
            f"| {row['shape']} | {size} | {100 * row['agreement']:.3f} | {difference} | {row['max_logit']:.3g} | "
            f"{row['classes_seen']} |"
        )
    return lines
