"""Model card of a run's exported models: `MODEL.md` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmtool.artifact.openvino_ir import IR_SUFFIX
from gmtool.artifact.run_record import read_record
from gmtool.artifact.spec import ArtifactSpec
from gmtool.classes import load_classes
from gmtool.config import TrainConfig
from gmtool.errors import DataError
from gmtool.escaping import markdown_text
from gmtool.json_toml import read_json
from gmtool.report.report import JSON_NAME as REPORT_NAME
from gmtool.report.report import percent
from gmtool.resources import EXACT_INT8
from gmtool_export.record import ArtifactRecord

CARD_NAME = "MODEL.md"
WEAK_IOU = 0.5
"""IoU below which a class is listed as weak."""
DATA_LICENSES = {
    "voc": "PASCAL VOC: images from Flickr, under Flickr's terms of use",
    "cityscapes": "Cityscapes: its own licence, for non-commercial purposes: https://www.cityscapes-dataset.com/license",
    "context": "PASCAL-Context: images of PASCAL VOC, from Flickr, under Flickr's terms of use",
}
"""Terms of the data sets whose classes gmtool knows."""


def model_card(
    run_dir: Path, config: TrainConfig, record: ArtifactRecord, records: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return the card as Markdown; it names no folder of this machine.

    Args:
        run_dir: Run folder, whose report and record are read; both may be missing.
        config: Configuration of the run.
        record: Record of the model that was exported last.
        records: Records of all exported models, by file name, as `export.json` has them.
    """
    report = _report(run_dir)
    lines = [
        f"# {markdown_text(record.spec.provenance.run)}",
        "",
        _summary(record.spec, report),
        "",
        *("## Use", "", *_use(record), ""),
        *("## Files", "", *_files(records), ""),
        *("## Training", "", *_training(run_dir, config, record.spec), ""),
        *("## Scores", "", *_scores(record, report), ""),
        *("## Licences", "", *_licenses(config, record.spec)),
    ]
    return "\n".join(lines) + "\n"


def _summary(spec: ArtifactSpec, report: dict[str, Any]) -> str:
    score = f", mIoU {percent(report['miou'])} % on {report['num_images']} validation images" if report else ""
    return (
        f"Semantic segmentation of RGB images into {len(spec.classes)} classes: encoder "
        f"{markdown_text(spec.encoder)}, decoder {markdown_text(spec.decoder)}{score}. Made with gmtool "
        f"{spec.provenance.gmtool_version}."
    )


def _use(record: ArtifactRecord) -> list[str]:
    spec = record.spec
    size = "any height and width, any number of images of one size"
    if spec.input.shape is not None:
        size = f"this shape alone: {'x'.join(map(str, (*spec.input.shape, 3)))}"
    output = spec.outputs[0]
    mask = "mask" if output == "mask" else "logits.argmax(axis=1)"
    lines = [
        f"Input `{spec.input.name}`: uint8 [N, H, W, 3], RGB as decoded, {size}. Nothing has to be normalised, "
        "scaled or padded. Intended for images like those of the training data: same camera, scene, resolution; "
        "try others first.",
        "",
    ]
    if not record.file.endswith(".onnx"):
        where = "on the GPU that it was built for"
        if record.file.endswith(IR_SUFFIX):
            where = f"on processors; it needs its files {Path(record.file).stem}.bin and {record.file}.json"
        return [*lines, f'`gmtool.load("{record.file}").predict("photo.jpg").mask`, {where}.']
    opened = [f'session = onnxruntime.InferenceSession("{record.file}", providers=["CPUExecutionProvider"])']
    if spec.precision == "int8":
        lines += ["Without the option that is set here an x86 processor without VNNI computes other masks.", ""]
        opened = [
            "options = onnxruntime.SessionOptions()",
            'options.add_session_config_entry("{}", "{}")'.format(*EXACT_INT8),
            opened[0].replace(", providers", ", options, providers"),
        ]
    return [
        *lines,
        "```python",
        "import numpy as np, onnxruntime, PIL.Image",
        "",
        *opened,
        'image = np.asarray(PIL.Image.open("photo.jpg").convert("RGB"))',
        f'({output},) = session.run(["{output}"], {{"{spec.input.name}": image[None]}})',
        f"print(np.unique({mask}))  # class indices, see below",
        "```",
    ]


def _files(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| file | precision | MB | mIoU % | drop from PyTorch, points | sha256 |",
        "|---|---|---:|---:|---:|---|",
    ]
    for name, record in records.items():
        score = next((proof["score"] for proof in reversed(record["proofs"]) if proof["score"]), None)
        miou, drop = ("-", "-") if score is None else (percent(score["miou"]), f"{score['drop_points']:.2f}")
        size = record["bytes"] / 1e6
        lines.append(f"| {name} | {record['precision']} | {size:.1f} | {miou} | {drop} | `{record['sha256']}` |")
    return [*lines, "", "Measured at the export; `export.md` has all of it, and `gmtool verify FILE` repeats it."]


def _training(run_dir: Path, config: TrainConfig, spec: ArtifactSpec) -> list[str]:
    data, origin = config.data, spec.provenance
    seconds = read_record(run_dir).seconds
    took = f"{seconds / 60:.1f} minutes" if seconds else "time not recorded"
    return [
        f"- data: {markdown_text(Path(str(data.root)).name)}, labeled images of "
        f"{markdown_text(Path(str(data.labeled)).name)}, sha256 of their names "
        f"`{origin.labeled_sha256 or 'not known'}`",
        f"- method: {markdown_text(config.method.name)}; {origin.iteration} iterations, {took}; all settings: "
        "`config.toml` of the run",
        f"- weights sha256 `{origin.weights_sha256}`, torch {origin.torch_version}",
    ]


def _scores(record: ArtifactRecord, report: dict[str, Any]) -> list[str]:
    if not report:
        return ["No report of the run: `gmtool evaluate --model FILE` scores it."]
    protocol, origin = report["protocol"], report["provenance"]
    same = origin["model_sha256"] == record.spec.provenance.weights_sha256
    rows = sorted(report["classes"], key=lambda row: -1.0 if row["iou"] is None else row["iou"])
    weak = [f"{markdown_text(row['name'])} ({percent(row['iou'])} %)" for row in rows if _is_weak(row)]
    unknown = [markdown_text(row["name"]) for row in rows if row["iou"] is None]
    other = "" if same else " These are the last weights of the run; the exported ones are of another step."
    flip = "on" if protocol["flip"] else "off"
    table = [
        f"| {index} | {markdown_text(row['name'])} | {percent(row['iou'])} | {percent(row['accuracy'])} | "
        f"{row['pixels']} |"
        for index, row in enumerate(report["classes"])
    ]
    return [
        f"PyTorch on {report['num_images']} images of {markdown_text(Path(origin['split']).name)} (sha256 of the "
        f"names `{origin['split_sha256']}`), {protocol['resolution']}, scales {protocol['scales']}, flip {flip}: "
        f"mIoU {percent(report['miou'])} %, pixel accuracy {percent(report['pixel_accuracy'])} %.{other}",
        "",
        *_interval(record),
        f"- weak classes (IoU below {100 * WEAK_IOU:.0f} %): {', '.join(weak) or 'none'}",
        f"- classes that the validation images do not show: {', '.join(unknown) or 'none'}",
        "- if the best of several validations was kept, it was chosen on these images, which is optimistic",
        "",
        "| index | class | IoU % | accuracy % | pixels |",
        "|---:|---|---:|---:|---:|",
        *table,
    ]


def _interval(record: ArtifactRecord) -> list[str]:
    """Return a line with the interval of the exported model's own score, if it was scored."""
    score = record.proofs[-1].score if record.proofs else None
    if score is None or score.interval is None:
        return []
    low, high = percent(score.interval.low), percent(score.interval.high)
    return [
        f"- {record.file} on {score.num_images} of the {score.num_listed} images: mIoU {percent(score.miou)} %, "
        f"{100 * score.interval.level:.0f} % interval {low} to {high} % (bootstrap over images)"
    ]


def _is_weak(row: Mapping[str, Any]) -> bool:
    return row["iou"] is not None and row["iou"] < WEAK_IOU


def _licenses(config: TrainConfig, spec: ArtifactSpec) -> list[str]:
    known = [text for name, text in DATA_LICENSES.items() if load_classes(name).names == spec.classes.names]
    encoder = spec.encoder_license or "not known"
    if config.model.encoder_weights != "imagenet":
        encoder = "none: it was trained from random weights" if config.model.init is None else encoder
    return [
        "- The weights are yours: gmtool claims no rights in a model that was trained with it.",
        f"- encoder's published weights: {markdown_text(encoder)}",
        f"- data: {'; '.join(known) or 'not known to gmtool: see its publisher'}",
    ]


def _report(run_dir: Path) -> dict[str, Any]:
    """Return the run's `report.json`; empty if it is missing or damaged."""
    try:
        value = read_json(run_dir / REPORT_NAME)
        needed = {"classes", "protocol", "provenance", "miou", "miou_interval", "num_images", "pixel_accuracy"}
        return value if isinstance(value, dict) and needed <= set(value) else {}
    except (DataError, OSError):
        return {}
