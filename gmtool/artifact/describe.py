"""Describe files of gmtool (`gmtool info`) without torch, a runtime or a GPU; hashes are checked first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gmtool.artifact.checkpoints import Checkpoint, checked_file, read_checkpoint_file
from gmtool.artifact.openvino_ir import IR_SUFFIX, read_ir
from gmtool.artifact.run_record import read_record
from gmtool.artifact.runs import CHECKPOINT_DIR, CONFIG_NAME
from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.spec import ArtifactSpec
from gmtool.artifact.spec_facts import file_size, percent, short_hash, spec_facts, validated
from gmtool.artifact.tensorrt_plan import FLAVOUR_TITLES, PLAN_SUFFIX, PlanSpec, read_plan
from gmtool.classes import ClassSet
from gmtool.config import ENCODERS
from gmtool.errors import ArtifactError
from gmtool.files import sha256_of_file
from gmtool.json_toml import read_json, shown

Kind = Literal["onnx", "openvino", "plan", "checkpoint", "run", "report", "export", "classes"]
TITLES: dict[Kind, str] = {
    "onnx": "ONNX model",
    "openvino": "OpenVINO model",
    "plan": "TensorRT plan",
    "checkpoint": "checkpoint",
    "run": "training run",
    "report": "report of a score",
    "export": "record of exports",
    "classes": "classes",
}
MAX_ONNX_BYTES = 2**31
"""Largest protobuf message."""
MAX_JSON_BYTES = 2**28
KNOWN = (
    "an ONNX model, an OpenVINO .xml, a .plan, a run folder, a checkpoint, a report.json, an export.json or a "
    "classes.json"
)


@dataclass(frozen=True)
class Description:
    """Facts about a file, as text and as JSON."""

    kind: Kind
    path: Path
    facts: Mapping[str, str]
    """Facts as text by name, in display order."""
    classes: ClassSet | None
    value: dict[str, Any]
    """All facts as JSON values."""


def describe(path: Path) -> Description:
    """Return the description of a file; its kind is recognised by its content.

    Raises:
        GmtoolError: File missing, not written by gmtool, damaged, or changed.
    """
    if path.is_dir():
        return _describe_run(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; expected {KNOWN}")
    if path.suffix == PLAN_SUFFIX:
        return _describe_plan(path)
    if path.suffix == IR_SUFFIX:
        return _describe_ir(path)
    if path.suffix == ".safetensors":
        return _describe_weights(path)
    if path.suffix == ".json":
        return _describe_json(path)
    return _describe_onnx(path)


def _describe_onnx(path: Path) -> Description:
    size = path.stat().st_size
    if size >= MAX_ONNX_BYTES:
        raise ArtifactError(f"{path} has {size / 2**30:.1f} GiB, too large for an ONNX file; expected {KNOWN}")
    spec = read_sealed_spec(path.read_bytes(), where=path)
    sha256 = sha256_of_file(path)
    facts = {
        "file": f"{file_size(size)}, sha256 {short_hash(sha256)}",
        "checked": "unchanged since it was exported",
        **spec_facts(spec),
    }
    return Description("onnx", path, facts, spec.classes, {"sha256": sha256, "bytes": size, **_spec_value(spec)})


def _describe_plan(path: Path) -> Description:
    plan = read_plan(path)
    assert plan.spec is not None  # only plans opened with trust have none
    size = len(plan.content)
    facts = {
        "file": f"{file_size(size)}, sha256 {short_hash(plan.sha256)}",
        "checked": "the plan that its sidecar describes",
        **_plan_facts(plan.spec),
        **spec_facts(plan.artifact),
    }
    sidecar = {**json.loads(plan.spec.to_json()), "artifact": _spec_value(plan.artifact)}
    value = {"sha256": plan.sha256, "bytes": size, **sidecar}
    return Description("plan", path, facts, plan.artifact.classes, value)


def _describe_ir(path: Path) -> Description:
    ir = read_ir(path)
    size, spec = len(ir.xml) + len(ir.weights), ir.spec.artifact
    facts = {
        "file": f"with its .bin {file_size(size)}, sha256 of both {short_hash(ir.sha256)}",
        "checked": "unchanged since it was exported",
        "converted": f"by OpenVINO {ir.spec.version}, from ONNX, sha256 {short_hash(ir.spec.onnx_sha256)}",
        **spec_facts(spec),
    }
    return Description(
        "openvino", path, facts, spec.classes, {"sha256": ir.sha256, "bytes": size, **_spec_value(spec)}
    )


def _plan_facts(spec: PlanSpec) -> dict[str, str]:
    where = [f"compute capability {', '.join(spec.compute_capabilities)}", spec.platform]
    if spec.gpu is not None:
        where.append(f"built on {spec.gpu}")
    also = [
        text
        for text, applies in (
            ("other GPUs from Ampere on", spec.hardware_compatible),
            ("later versions of TensorRT", spec.version_compatible),
        )
        if applies
    ]
    workspace = "the builder's default" if spec.workspace_bytes is None else file_size(spec.workspace_bytes)
    return {
        "runs with": f"{FLAVOUR_TITLES[spec.flavour]} {spec.version}",
        "runs on": ", ".join(where),
        **({"also for": ", ".join(also)} if also else {}),
        **{f"profile {index}": str(profile) for index, profile in enumerate(spec.profiles)},
        "workspace": workspace,
        "built": spec.created,
        "built from": f"an ONNX model, sha256 {short_hash(spec.onnx_sha256)}",
    }


def _spec_value(spec: ArtifactSpec) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(spec.to_json())
    return value


def _describe_run(folder: Path) -> Description:
    paths = sorted((folder / CHECKPOINT_DIR).glob("*.json"))
    if not (folder / CONFIG_NAME).is_file() or not paths:
        raise ArtifactError(
            f"{folder} is not a run folder: expected {CONFIG_NAME} and {CHECKPOINT_DIR}/*.json in it"
        )
    checkpoints = {path: read_checkpoint_file(path) for path in paths}
    for path, checkpoint in checkpoints.items():
        checked_file(path, checkpoint.weights, checkpoint.sha256)
    models = sorted((*folder.glob("export/*.onnx"), *folder.glob(f"export/*{PLAN_SUFFIX}")))
    first = next(iter(checkpoints.values()))
    facts = {
        "checked": "all weights and descriptions have the hashes that their checkpoints say",
        **_run_facts(folder),
        **_network_facts(first),
        **{path.stem: _score(checkpoint) for path, checkpoint in checkpoints.items()},
        "exported": ", ".join(path.name for path in models) or "nothing yet",
    }
    value = {
        "record": asdict(read_record(folder)),
        "checkpoints": {path.stem: _checkpoint_value(checkpoint) for path, checkpoint in checkpoints.items()},
        "exported": [str(path) for path in models],
    }
    return Description("run", folder, facts, first.classes, value)


def _run_facts(folder: Path) -> dict[str, str]:
    """Return what the record of a run says; nothing of a run without one."""
    record = read_record(folder)
    images = f"{record.labeled} labeled, {record.unlabeled} unlabeled, {record.val} validation images"
    memory = f", {file_size(record.memory_bytes)} of memory" if record.memory_bytes else ""
    memory += f", {file_size(record.gpu_bytes)} on the GPU" if record.gpu_bytes else ""
    facts = {
        "recipe": record.recipe,
        "data": f"{record.kind + ': ' if record.kind else ''}{images}" if record.labeled is not None else "",
        "started": record.started,
        "trained": f"{record.seconds:.0f} s{memory}" if record.seconds else "",
        "versions": ", ".join(record.versions),
    }
    return {name: text for name, text in facts.items() if text}


def _describe_checkpoint(path: Path) -> Description:
    checkpoint = read_checkpoint_file(path)
    weights = checked_file(path, checkpoint.weights, checkpoint.sha256)
    goes_on = "nothing: training cannot go on from it"
    if checkpoint.state is not None and checkpoint.state_sha256 is not None:
        checked_file(path, checkpoint.state, checkpoint.state_sha256)
        goes_on = f"{checkpoint.state}: training can go on from it"
    facts = {
        "file": f"{weights.name}, {file_size(weights.stat().st_size)}, sha256 {short_hash(checkpoint.sha256)}",
        "checked": "its files and its own content have the hashes that it says",
        **_network_facts(checkpoint),
        "score": _score(checkpoint),
        "state": goes_on,
        "labeled": f"sha256 of the images' names {short_hash(checkpoint.labeled_sha256)}",
    }
    return Description("checkpoint", path, facts, checkpoint.classes, _checkpoint_value(checkpoint))


def _describe_weights(path: Path) -> Description:
    """Describe the checkpoint of a weights file."""
    for beside in sorted(path.parent.glob("*.json")):
        if path.name in (read_checkpoint_file(beside).weights, read_checkpoint_file(beside).state):
            return _describe_checkpoint(beside)
    raise ArtifactError(f"{path}: no checkpoint JSON in its folder names it")


def _network_facts(checkpoint: Checkpoint) -> dict[str, str]:
    model = checkpoint.model
    stride = model.output_stride or _own_stride(model.encoder)
    if model.decoder == "guidedmix":
        blocks = [name for name, there in (("1", model.non_local_1), ("2", model.non_local_2)) if there]
        decoder = f"non-local blocks {' and '.join(blocks) or 'none'}"
    else:
        decoder = f"{model.decoder_channels} hidden channels" if model.decoder_channels else "linear"
    return {
        "network": f"encoder {model.encoder}, output stride {stride}, input scale {model.input_scale:g}",
        "decoder": f"{model.decoder}, {decoder}",
        "weights from": model.init or model.encoder_weights,
    }


def _own_stride(encoder: str) -> str:
    """Return the output stride of an encoder where the settings name none."""
    return "8" if encoder in ENCODERS else "its own"


def _score(checkpoint: Checkpoint) -> str:
    return f"iteration {checkpoint.iteration}, {validated(checkpoint.miou)}"


def _checkpoint_value(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint as JSON values, without the training state."""
    value = asdict(checkpoint) | {"classes": checkpoint.classes.to_dict()}
    del value["training"]
    return value


def _describe_json(path: Path) -> Description:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ArtifactError(f"{path} is {file_size(path.stat().st_size)}: expected {KNOWN}")
    value = read_json(path, error=ArtifactError, what="JSON, or cut short")
    keys = set(value) if isinstance(value, dict) else set()
    if {"weights", "iteration"} <= keys:
        return _describe_checkpoint(path)
    if {"plan_sha256", "artifact"} <= keys:
        return _describe_plan(path.with_suffix(""))
    try:
        if {"confusion_matrix", "provenance"} <= keys:
            return _describe_report(path, value)
        if "artifacts" in keys:
            return _describe_exports(path, value)
        if "names" in keys:
            classes = ClassSet.from_dict(value, where=str(path))
            return Description("classes", path, {"classes": str(len(classes))}, classes, classes.to_dict())
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged: {shown(str(error))}") from error
    raise ArtifactError(f"{path} is not a file of gmtool: expected {KNOWN}")


def _describe_report(path: Path, value: dict[str, Any]) -> Description:
    origin, failed = value["provenance"], value["failed"]
    facts = {
        "mIoU": f"{percent(value['miou'])} % on {origin['split']}",
        "pixel accuracy": f"{percent(value['pixel_accuracy'])} %",
        "images": f"{value['num_images']} scored, {len(failed)} failed",
        **{f"IoU {row['name']}": f"{percent(row['iou'])} %" for row in value["classes"]},
        "model": f"{origin['model']}, sha256 {short_hash(origin['model_sha256'])}",
        "computed by": f"{origin['backend']}, {origin['precision']}",
        "split": f"sha256 of the images' names {short_hash(origin['split_sha256'])}",
        "labeled": f"sha256 of the images' names {short_hash(origin['labeled_sha256'])}",
        "written by": f"gmtool {value['gmtool_version']}",
    }
    return Description("report", path, facts, None, value)


def _describe_exports(path: Path, value: dict[str, Any]) -> Description:
    """Describe the `export.json` of a folder of exported models."""
    facts = {}
    for name, record in value["artifacts"].items():
        model = path.with_name(name)
        if not model.is_file():
            state = "missing"
        else:
            state = "unchanged" if sha256_of_file(model) == record["sha256"] else "changed"
        facts[name] = f"{record['spec']['precision']}, {file_size(record['bytes'])}, {state}"
    return Description("export", path, facts, None, value)
