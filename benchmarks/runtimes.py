"""Exported models in other runtimes: loads or not, and share of pixels with PyTorch's label.

    uv run python benchmarks/runtimes.py RUN/export [--only onnxruntime-1.15.0 openvino] [--out runtimes.json]

Each runtime has an environment of its own, which uv makes (onnxruntime-web: npm and node), from the network or the
caches. The images and masks are those of the models' verification sets. OpenCV gets models of one shape (`gmtool
export --shape`); TensorRT-RTX only builds, which needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gmtool.artifact.sealed_onnx import read_sealed_spec
from gmtool.artifact.verification import path_beside, read_verification

CHILD, WEB = Path(__file__).with_name("runtime_child.py"), Path(__file__).with_name("runtime_web.mjs")
OLD_NUMPY = ["--with", "numpy<2"]
RUNTIMES: dict[str, list[str] | None] = {
    "onnxruntime-1.15.0": ["--with", "onnxruntime==1.15.0", *OLD_NUMPY],
    "onnxruntime-1.17.1": ["--with", "onnxruntime==1.17.1", *OLD_NUMPY],
    "onnxruntime-1.20.1": ["--with", "onnxruntime==1.20.1"],
    "onnxruntime": None,
    "onnx-reference": None,
    "openvino": ["--with", "openvino", "--with", "numpy"],
    "opencv-4": ["--with", "opencv-python-headless<5", "--with", "numpy"],
    "opencv": None,
    "tensorrt-rtx": None,
    "onnxruntime-web": [],
}
"""Options of `uv run` by runtime; None runs in this environment."""


def unpack(model: Path, folder: Path) -> list[dict[str, Any]]:
    """Write the images and masks of a model's verification set as raw bytes; return their shapes."""
    shapes = []
    for index, batch in enumerate(read_verification(path_beside(model)).batches):
        (folder / f"images_{index}.bin").write_bytes(batch.images.tobytes())
        (folder / f"mask_{index}.bin").write_bytes(batch.mask.tobytes())
        shapes.append({"name": batch.record.name, "shape": list(batch.images.shape)})
    (folder / "shapes.json").write_text(json.dumps(shapes))
    return shapes


def run(runtime: str, model: Path, data: Path, web: Path) -> dict[str, Any]:
    """Return what a runtime makes of a model: its version and the share of equal pixels a shape, or an error."""
    options = RUNTIMES[runtime]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("VIRTUAL_ENV", None)
    if runtime == "onnxruntime-web":
        command = ["node", str(web / WEB.name), str(model), str(data)]
    elif options is None:
        command = [sys.executable, str(CHILD), runtime, str(model), str(data)]
    else:
        isolated = ["uv", "run", "--no-project", "--isolated", "--python", "3.11", *options]
        command = [*isolated, "python", str(CHILD), runtime, str(model), str(data)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=data, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    return {"error": " ".join((done.stderr.strip() or f"exit code {done.returncode}").split())[-300:]}


def install_web(folder: Path) -> None:
    """Install onnxruntime-web beside a copy of its program, where node looks for it."""
    (folder / WEB.name).write_text(WEB.read_text())
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--silent", "onnxruntime-web"], cwd=folder, check=True, capture_output=True)


def main() -> None:
    """Run the models of the command line in all runtimes; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("export", type=Path)
    parser.add_argument("--only", nargs="*", choices=list(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    models = [path for path in sorted(given.export.resolve().glob("*.onnx")) if path_beside(path).is_file()]
    results = []
    with tempfile.TemporaryDirectory() as place:
        web = Path(place) / "web"
        web.mkdir()
        if "onnxruntime-web" in given.only:
            install_web(web)
        for model in models:
            data = Path(place) / model.stem
            data.mkdir()
            unpack(model, data)
            spec = read_sealed_spec(model.read_bytes(), where=model)
            for runtime in given.only:
                if runtime.startswith("opencv") and spec.input.shape is None:
                    continue
                value = {"model": model.name, "precision": spec.precision, "runtime": runtime}
                value |= run(runtime, model, data, web)
                results.append(value)
                print(line_of(value), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


def line_of(value: dict[str, Any]) -> str:
    """Return a result as a line."""
    title = f"{value['model']:<32} {value['runtime']:<20} {value.get('version', ''):<14}"
    if "error" in value:
        return f"{title} FAILED: {value['error'][-160:]}"
    if not value["equal"]:
        return f"{title} {value['note']}"
    worst = min(value["equal"])
    return f"{title} {100 * worst:8.4f} % equal at the worst of {len(value['equal'])} shapes"


if __name__ == "__main__":
    main()
