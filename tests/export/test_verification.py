"""Verification sets: kept at the export, sealed, compared on the machine at hand, by gmtool and by a script."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Cli
from fakes import FakeBackend

import gmtool
from gmtool.artifact.verification import pack, path_beside, places, read_verification
from gmtool.errors import ArtifactError
from gmtool.nn.checkpoint import load_network


@pytest.fixture
def model(toy_model: Path, tmp_path: Path) -> Path:
    """A copy of the exported model and its verification set."""
    for path in (toy_model, path_beside(toy_model)):
        shutil.copy(path, tmp_path)
    return tmp_path / toy_model.name


def spoil(model: Path) -> None:
    """Exchange two classes of a model and leave its metadata, as a wrong runtime or tool might."""
    graph = onnx.load(model)
    for entry in graph.graph.initializer:
        if "classifier" in entry.name:
            values = onnx.numpy_helper.to_array(entry).copy()
            values[[0, 1]] = values[[1, 0]]
            entry.CopyFrom(onnx.numpy_helper.from_array(values, entry.name))
    onnx.save(graph, model)


def test_an_export_keeps_small_images_with_the_masks_and_logits_of_pytorch(toy_model: Path, toy_run: Path) -> None:
    import torch

    from gmtool.nn.model import normalize

    given = read_verification(path_beside(toy_model))
    assert [batch.size for batch in given.batches] == ["1x64x96", "1x97x133", "2x160x224"]
    assert path_beside(toy_model).stat().st_size < 500_000
    network = load_network(toy_run, "best")[0]
    for batch in given.batches:
        with torch.no_grad():
            logits = network(normalize(torch.from_numpy(batch.images).permute(0, 3, 1, 2))).logits.numpy()
        assert (batch.mask == logits.argmax(axis=1)).all()
        flat = np.moveaxis(logits, 1, -1).reshape(-1, logits.shape[1])
        np.testing.assert_allclose(batch.logits, flat[places(batch.mask.size)], rtol=1e-5, atol=1e-5)
    report = json.loads((toy_run / "export/export.json").read_text())["artifacts"][toy_model.name]
    assert given.header.model_sha256 == report["sha256"]
    assert given.header.miou == report["proofs"][0]["score"]["miou"]


def test_the_same_model_passes_and_its_figures_are_printed(model: Path, cli: Cli) -> None:
    code, out, err = cli(["verify", model, "--device", "cpu"])
    assert code == 0, err
    assert out.count("100.0000%   required 99.90%   at export 100.0000%") == 3
    assert "CPUExecutionProvider: pixels with PyTorch's label" in out and "FAILED" not in out
    assert "at export, in onnxruntime" in err
    code, out, _ = cli(["verify", model, "--json"])
    value = json.loads(out)
    assert code == 0 and value["passes"] and value["is_exported_file"]
    assert [shape["agreement"] for shape in value["shapes"]] == [1.0, 1.0, 1.0]


def test_a_model_that_computes_something_else_is_refused_with_exit_code_1(model: Path, cli: Cli) -> None:
    spoil(model)
    code, _, err = cli(["verify", model])
    assert code == 1 and "was changed after it was exported" in err and "--trust" in err
    code, out, err = cli(["verify", model, "--trust"])
    assert code == 1 and "FAILED" in out
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "does not compute here what PyTorch computed" in line and "expected 99.90%" in line
    assert "is not the file model_fp32.onnx that was exported" in err


def test_a_model_that_a_tool_changed_without_harm_is_trusted_on_request(
    model: Path, cli: Cli, toy_data: Path
) -> None:
    graph = onnx.load(model)
    graph.producer_name = "slimmer"
    onnx.save(graph, model)
    assert not gmtool.verify(model, trust=True).is_exported_file
    assert gmtool.verify(model, trust=True).passes
    (photo, *_) = sorted((toy_data / "JPEGImages").iterdir())
    assert gmtool.load(model, trust=True).predict(photo).mask.shape == (48, 64)
    # Without its metadata nothing is known of it
    del graph.metadata_props[:]
    onnx.save(graph, model)
    code, _, err = cli(["verify", model, "--trust"])
    assert code == 1 and "has no gmtool.spec in its metadata" in err


def test_a_set_of_another_model_is_refused(toy_model: Path) -> None:
    from gmtool_serving.verification.run import verify

    beside = path_beside(toy_model)
    with pytest.raises(
        ArtifactError, match=r"belongs to another model: weights .{12}\.\.\., fake\.onnx has 000000"
    ):
        verify(FakeBackend(), read_verification(beside), where=beside)


def test_missing_damaged_and_changed_sets_are_one_line(model: Path, cli: Cli, tmp_path: Path) -> None:
    beside = path_beside(model)
    content = beside.read_bytes()
    given = read_verification(beside)
    # Changed with its seal left
    masks = tuple(replace(batch, mask=np.zeros_like(batch.mask)) for batch in given.batches)
    changed = pack(given.header, masks)
    kept = json.loads(np.load(beside)["header"].tobytes())["seal"]
    arrays = dict(np.load(__import__("io").BytesIO(changed)))
    header = json.loads(arrays["header"].tobytes()) | {"seal": kept}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(tmp_path / "changed.npz", **arrays)
    cases = {
        "cut short": content[: len(content) // 2],
        "empty": b"",
        "changed": (tmp_path / "changed.npz").read_bytes(),
        "other": (tmp_path / "changed.npz").read_bytes().replace(b"header.npy", b"heeder.npy"),
    }
    expected = {"changed": "was changed after it was exported", "other": "no header in it"}
    for name, damaged in cases.items():
        beside.write_bytes(damaged)
        code, out, err = cli(["verify", model])
        assert (code, out) == (1, ""), name
        assert err.count("error: ") == 1 and expected.get(name, "not a verification set") in err, err
    beside.unlink()
    code, _, err = cli(["verify", model])
    assert code == 1 and "no such file; gmtool export writes it beside the model, unless with --no-parity" in err
    code, _, err = cli(["verify", tmp_path / "none.onnx"])
    assert code == 1 and "none.onnx: no such file" in err


def test_the_script_verifies_without_gmtool(model: Path, cli: Cli, tmp_path: Path) -> None:
    script = tmp_path / "check.py"
    code, out, err = cli(["verify", model, "--script", script])
    assert (code, out) == (0, f"{script}\n"), err
    assert "import gmtool" not in script.read_text() and "from gmtool" not in script.read_text()

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", str(script), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(model)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("100.0000% equal, 99.90% required") == 3
    spoil(model)
    done = run(model)
    assert done.returncode == 1 and done.stdout.count("FAILED") >= 1
    assert "is not the file model_fp32.onnx that was exported" in done.stderr
    done = run(model, "--provider", "NoSuchProvider")
    assert done.returncode == 1 and "has no NoSuchProvider" in done.stderr
    done = run(tmp_path / "none.onnx")
    assert done.returncode == 1 and "no such file" in done.stderr


def test_a_run_folder_and_a_checkpoint_name_the_exported_file(toy_run: Path, toy_model: Path, cli: Cli) -> None:
    from gmtool.artifact.lookup import find_model

    assert find_model(toy_run) == toy_model
    assert find_model(toy_run / "checkpoints/best.json") == toy_model
    (weights,) = {json.loads((toy_run / f"checkpoints/{name}.json").read_text())["weights"] for name in ("best",)}
    assert find_model(toy_run / "checkpoints" / weights) == toy_model


def test_a_checkpoint_that_was_not_exported_says_the_command(toy_run: Path, tmp_path: Path) -> None:
    from gmtool.artifact.lookup import find_model

    run = Path(shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))
    checkpoint = run / "checkpoints/best.json"
    with pytest.raises(ArtifactError, match=r"no model was exported from it: run gmtool export .*best\.json"):
        find_model(checkpoint)
