"""Imports between packages, shape of folders and files, and what the source never contains."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import Cli

ROOT = Path(__file__).parent.parent
SOURCES = [path for part in ("gmtool", "training", "export", "serving") for path in (ROOT / part).rglob("*.py")]


def test_import_contracts_hold() -> None:
    # In a process of its own: it configures logging, which closes the handlers of other packages and their streams
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_and_module_is_in_a_contract() -> None:
    """A room that no contract names could import anything."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name for layer in contracts[0]["layers"] for name in re.split(r"[|:\s]+", layer)}
    core = ROOT / "gmtool"
    found = [*core.glob("[a-z]*.py"), *(path.parent for path in core.glob("*/__init__.py"))]
    rooms = {f"gmtool.{path.stem}" for path in found}
    parts = {"gmtool_training", "gmtool_export", "gmtool_serving"}
    assert layers == rooms | parts
    above = {"gmtool.cli", "gmtool.api", "gmtool.doctor", "gmtool.nn"}
    assert set(contracts[2]["source_modules"]) == rooms - above


def test_nothing_below_knows_the_api_or_the_command_line() -> None:
    above = ("gmtool/cli/", "gmtool/api/", "gmtool/__init__.py", "gmtool/__main__.py")
    below = [path for path in SOURCES if not path.relative_to(ROOT).as_posix().startswith(above)]
    assert len(below) > 100
    found = [path for path in below if re.search(r"gmtool\.(cli|api)\b", path.read_text(encoding="utf-8"))]
    assert not found


MAX_MODULES, MAX_LINES, MAX_FUNCTION_LINES = 16, 350, 60
"""Modules of a folder, lines of a file, lines of nearly all functions without their docstring."""


def test_no_folder_has_more_than_16_modules() -> None:
    folders: dict[str, int] = {}
    for path in SOURCES:
        if path.name != "__init__.py":
            folder = path.parent.relative_to(ROOT).as_posix()
            folders[folder] = folders.get(folder, 0) + 1
    assert not {folder: count for folder, count in folders.items() if count > MAX_MODULES}


def imports() -> dict[str, set[str]]:
    """Return the modules that each module imports, also those in functions."""
    modules = {module_name(path): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= full & set(modules) or {node.module}
        graph[name] &= set(modules) - {name}
    graph["gmtool"] = set()  # it names the API for type checkers alone, and loads it when asked
    return graph


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "gmtool" else parts[1:]).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return the folder of a module; modules beside the rooms of a package are rooms of their own."""
    parts = module.split(".")
    is_package = (ROOT / "gmtool" / parts[-1]).is_dir()
    return ".".join(parts[:2]) if len(parts) > 2 or is_package else module


@pytest.mark.parametrize("of", ["modules", "rooms"])
def test_no_import_circles(of: str) -> None:
    graph = imports()
    if of == "rooms":
        rooms: dict[str, set[str]] = {}
        for module, targets in graph.items():
            room = room_of(module)
            rooms.setdefault(room, set()).update({room_of(target) for target in targets} - {room})
        graph = rooms
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def docstrings() -> Iterator[tuple[str, str]]:
    """Yield (place, docstring) of all modules and classes."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield str(path.relative_to(ROOT)), ast.get_docstring(tree) or ""
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield f"{path.relative_to(ROOT)}:{node.name}", ast.get_docstring(node) or ""


def test_docstrings_of_modules_and_classes_begin_with_a_noun_or_verb() -> None:
    riddles = re.compile(r"(What|Which|Where)\b")
    assert not [place for place, text in docstrings() if riddles.match(text)]


def test_no_file_is_longer_than_350_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_LINES}


def test_fewer_than_1_in_100_functions_are_longer_than_60_lines() -> None:
    lengths = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": code_lines(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {place: lines for place, lines in lengths.items() if lines > MAX_FUNCTION_LINES}
    assert len(long) < 0.01 * len(lengths), long


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    has_docstring = ast.get_docstring(function) is not None
    docstring = function.body[0].end_lineno - function.body[0].lineno + 1 if has_docstring else 0  # type: ignore[operator]
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Modules that execute what they read."""
LOADERS = {"load", "loads", "get_state_dict", "load_state_dict_from_url", "load_url"}
"""Functions of torch and torchvision that unpickle unless they are told not to."""


def pickle_risks(source: str) -> list[str]:
    """Each place of a program that may run a pickle: imports, loads without `weights_only=True`, loads by name."""
    tree = ast.parse(source)
    torch_names = {"torch", "torchvision"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            torch_names |= {alias.asname for alias in node.names if alias.asname and alias.name[:5] == "torch"}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            torch_names |= {alias.asname or alias.name for alias in node.names}
    safe = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
    }
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt) and node not in safe and _is_risk(node, torch_names)
    ]


def _is_risk(node: ast.AST, torch_names: set[str]) -> bool:  # noqa: PLR0911  one case a line
    match node:
        case ast.Import(names=names):
            return any(alias.name.partition(".")[0] in PICKLING for alias in names)
        case ast.ImportFrom(module=str(module), names=names):
            is_torch = module.startswith("torch")
            return module in PICKLING or (is_torch and any(alias.name in LOADERS for alias in names))
        case ast.Attribute(value=value, attr="get_state_dict" | "load_state_dict_from_url" | "load_url"):
            return True
        case ast.Attribute(value=value, attr="load" | "loads"):
            return ast.unparse(value).partition(".")[0] in torch_names
        case ast.Call(func=ast.Name(id="getattr"), args=[target, name, *_]):
            is_torch = ast.unparse(target).partition(".")[0] in torch_names
            return (isinstance(name, ast.Constant) and name.value in LOADERS) or (
                is_torch and not isinstance(name, ast.Constant)
            )
        case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__")):
            return True
        case ast.Call(args=[ast.Constant(value=str(name)), *_]) if name.partition(".")[0] in PICKLING:
            return "import_module" in ast.unparse(node.func)
        case ast.keyword() | ast.Call(keywords=[_, *_]):
            words = node.keywords if isinstance(node, ast.Call) else []
            return any(word.arg == "allow_pickle" and ast.unparse(word.value) != "False" for word in words)
    return False


def test_case_33_and_45_no_load_runs_a_pickle() -> None:
    found = {str(path): risks for path in SOURCES if (risks := pickle_risks(path.read_text(encoding="utf-8")))}
    assert not found
    assert sum("torch.load(" in path.read_text(encoding="utf-8") for path in SOURCES) == 1


@pytest.mark.parametrize(
    "hidden",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch as t\nt.load(path)",
        "import torch\nread = torch.load\nread(path)",
        "from torch import load\nload(path)",
        "from torch import serialization as s\ns.load(path)",
        "import torch\ngetattr(torch, 'load')(path)",
        "import torch\ngetattr(torch, 'lo' + 'ad')(path)",
        "import torch\ntorch.jit.load(path)",
        "weights.get_state_dict(progress=False, check_hash=True)",
        "from torch.hub import load_state_dict_from_url",
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import importlib\nimportlib.import_module('pickle').loads(content)",
        "__import__('pickle').loads(content)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_case_45_a_hidden_load_of_a_pickle_is_found(hidden: str) -> None:
    assert pickle_risks(f"def read(path, content, text, weights):\n    pass\n{hidden}\n")


def test_predicting_leaves_torch_out(toy_model: Path, toy_data: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from gmtool.cli.app import make_app; app = make_app([]); "
        f"app(['predict', {str(toy_data / 'JPEGImages')!r}, '--out', {str(tmp_path / 'masks')!r}, "
        f"'--model', {str(toy_model)!r}, '--device', 'cpu'], standalone_mode=False); "
        "print([name for name in ('torch', 'torchvision', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(list((tmp_path / "masks").glob("*.png"))) == 24


@pytest.mark.parametrize(
    "wrong",
    [
        ["toyy"],
        ["toy", "--set", "optm.lr=1"],
        ["toy", "--set", "optim.lr=-1"],
        ["toy", "--recipe", "pluss"],
        ["toy", "--set", "optim.accumulation=3"],
        ["voc", "--data", "nowhere"],
        ["voc", "--data", "{data}", "--labels", "nowhere.txt"],
        ["voc", "--data", "{data}", "--classes", "nowhere.json"],
        ["voc", "--data", "{data}", "--encoder-weights", "nowhere.pth"],
        ["voc", "--data", "{data}", "--init", "nowhere"],
        ["--resume", "nowhere"],
    ],
)
def test_a_wrong_option_of_train_is_told_before_torch_is_loaded(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, wrong: list[str]
) -> None:
    """Importing torch takes seconds: it must not begin before everything that needs none is checked."""
    arguments = [argument.format(data=toy_data) for argument in wrong]
    monkeypatch.chdir(tmp_path)

    def refuse() -> NoReturn:
        raise AssertionError("torch is loaded")

    monkeypatch.setattr("gmtool.api.training._loading_torch", refuse)
    code, _, err = cli(["train", *arguments])
    assert code in (1, 2)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert not any(tmp_path.iterdir())


def test_checks_of_a_training_import_neither_torch_nor_numpy_for_a_setting() -> None:
    script = (
        "import sys; sys.argv = ['gmtool', 'train', 'toy', '--set', 'optm.lr=1']\n"
        "from gmtool.cli import app\n"
        "try: app.run()\n"
        "except SystemExit as end: print(end.code)\n"
        "print([name for name in ('torch', 'numpy', 'PIL', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1", "[]"]


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


def test_importing_gmtool_is_fast_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, time; started = time.process_time(); import gmtool; took = time.process_time() - started; "
        "heavy = ('numpy', 'PIL', 'torch', 'onnxruntime', 'rich', 'pydantic', 'typer', 'gmtool.api'); "
        "print([name for name in heavy if name in sys.modules], took < 0.05)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


def test_every_public_name_of_gmtool_is_found() -> None:
    import gmtool

    assert set(gmtool.__all__) == {*gmtool._MODULES, "__version__"}
    assert all(getattr(gmtool, name).__doc__ for name in gmtool._MODULES)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gmtool.trian  # type: ignore[attr-defined]  # noqa: B018
