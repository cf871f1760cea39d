"""Who may import whom, and what may never be in the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
SOURCES = [path for part in ("gmtool", "training", "export", "serving") for path in (ROOT / part).rglob("*.py")]


def test_import_contracts_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out


def test_every_core_module_is_in_the_contract() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    core = set(contracts[0]["layers"][-1].replace(" ", "").split(":"))
    modules = {f"gmtool.{path.stem}" for path in (ROOT / "gmtool").glob("*.py") if path.stem[0] != "_"}
    assert core == modules
    assert set(contracts[2]["source_modules"]) == modules


def test_case_33_no_load_runs_a_pickle() -> None:
    calls = 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load"):
                calls += 1
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
    assert calls == 1


def test_predicting_leaves_torch_out(toy_model: Path, toy_data: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from gmtool.cli.app import make_app; app = make_app([]); "
        f"app(['predict', {str(toy_data / 'JPEGImages')!r}, '--out', {str(tmp_path / 'masks')!r}, "
        f"'--model', {str(toy_model)!r}, '--device', 'cpu'], standalone_mode=False); "
        "print([name for name in ('torch', 'torchvision', 'onnx', 'lightning_fabric') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(list((tmp_path / "masks").glob("*.png"))) == 24


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from gmtool.cli.app import make_app; app = make_app([]); "
        "app(['--help'], standalone_mode=False); "
        "print([name for name in ('numpy', 'PIL', 'torch', 'rich', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_imports_no_other() -> None:
    script = (
        "import sys; from gmtool.cli.app import make_app; make_app(['info', 'FILE']); "
        "print(sorted(name for name in ('train', 'info', 'data') if 'gmtool.cli.' + name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['info']"


def test_no_benchmark_hides_a_module_of_python() -> None:
    """A program's folder comes first where Python looks for modules."""
    folder = Path(__file__).parent.parent / "benchmarks"
    programs = list(folder.rglob("*.py"))
    assert len(programs) >= 5
    assert not {path.stem for path in programs} & sys.stdlib_module_names
