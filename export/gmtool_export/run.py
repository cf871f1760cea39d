"""Exporting a run: load its checkpoint, write the ONNX model once it is proven, and record the proof."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from gmtool import __version__
from gmtool.config import ModelConfig
from gmtool.datasets import load_split
from gmtool.errors import CheckpointError, DataError, GmtoolError
from gmtool.files import sha256_of_file, write_atomically
from gmtool.nn.checkpoint import Checkpoint, CheckpointName, load_network
from gmtool.runs import CONFIG_NAME, EXPORT_DIR
from gmtool.settings import load_config
from gmtool.spec import ArtifactSpec, ModelProvenance
from gmtool.splits import IMAGE_SUFFIXES
from gmtool_export.onnx import export_onnx
from gmtool_export.parity import ParityRow, check_parity


@dataclass(frozen=True)
class ExportResult:
    """What was written, and the proof."""

    path: Path
    spec: ArtifactSpec
    parity: list[ParityRow]
    seconds: float


def export_run(run_dir: Path, *, name: CheckpointName, image_dir: Path | None) -> ExportResult:
    """Write `export/model_fp32.onnx` and `export/export.json` into a run folder.

    Args:
        run_dir: A trained run.
        name: Which of its checkpoints.
        image_dir: Images to prove the model on; default: the run's validation images.

    Raises:
        GmtoolError: No such run, damaged weights, no images, or the exported model differs; nothing was
            written under a final name.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"run folder {run_dir} does not exist")
    started = time.monotonic()
    network, checkpoint = load_network(run_dir, name)
    image_paths = _parity_images(run_dir, image_dir)
    spec = _spec(run_dir, checkpoint)
    model = export_onnx(network, spec)
    parity = check_parity(network, model, image_paths)
    path = run_dir / EXPORT_DIR / f"model_{spec.precision}.onnx"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, model)
    record = {
        "file": path.name,
        "sha256": sha256_of_file(path),
        "bytes": len(model),
        "checkpoint": name,
        "spec": json.loads(spec.to_json()),
        "parity": [asdict(row) for row in parity],
    }
    write_atomically(path.parent / "export.json", json.dumps(record, indent=1) + "\n")
    return ExportResult(path, spec, parity, time.monotonic() - started)


def _parity_images(run_dir: Path, image_dir: Path | None) -> list[Path]:
    if image_dir is not None:
        paths = sorted(path for path in image_dir.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise DataError(f"--images {image_dir}: no image in it")
        return paths
    try:
        config = load_config(run_dir / CONFIG_NAME)
        return [sample.image_path for sample in load_split(config.data, "val", config.data.val).samples]
    except GmtoolError as error:
        raise DataError(
            f"the run's validation images are needed to prove the model ({error}): or give --images DIR"
        ) from error


def _spec(run_dir: Path, checkpoint: Checkpoint) -> ArtifactSpec:
    return ArtifactSpec(
        classes=checkpoint.classes,
        precision="fp32",
        encoder=checkpoint.model.encoder,
        output_stride=checkpoint.model.output_stride,
        attention_stride=_attention_stride(checkpoint.model),
        outputs=("mask",),
        provenance=ModelProvenance(
            run=run_dir.resolve().name,
            iteration=checkpoint.iteration,
            miou=checkpoint.miou,
            weights_sha256=checkpoint.sha256,
            gmtool_version=__version__,
            torch_version=str(torch.__version__),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            labeled_sha256=checkpoint.labeled_sha256,
        ),
    )


def _attention_stride(model: ModelConfig) -> int | None:
    if model.non_local_2:
        return model.output_stride // 2
    return model.output_stride if model.non_local_1 else None
