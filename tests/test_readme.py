"""The README's commands, run in its order, as they stand there; training is cut short."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import TOY, Cli

from gmtool.toy import generate_toy

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
CONSOLE = re.findall(r"^\$ gmtool (.*)$", README, flags=re.MULTILINE)
SHORT = {
    "toy": ["--iterations", "8"],
    "folder": ["--iterations", "2", "--set", "data.crop_px=48", "--set", "data.workers=0"],
}


def my_data(root: Path) -> None:
    """The folder that "Your own images" describes."""
    generate_toy(root.parent / "source", TOY)
    source = root.parent / "source"
    val = (source / "ImageSets/Segmentation/val.txt").read_text().split()
    for kind, folder in (("images", "JPEGImages"), ("masks", "SegmentationClass")):
        for path in sorted((source / folder).iterdir()):
            target = root / kind / ("val" if path.stem in val else "train") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    shutil.copy(source / "classes.json", root)
    shutil.copy(source / "splits/labeled.txt", root)


def test_every_command_of_the_readme_works(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    my_data(tmp_path / "my-data")
    assert len(CONSOLE) >= 6
    for line in CONSOLE:
        arguments = shlex.split(line)
        if arguments[0] == "train":
            arguments += SHORT[arguments[1]]
        if arguments[0] == "export":  # after so few steps the network knows hardly any class
            arguments.append("--allow-few-classes")
        code, _, err = cli(arguments)
        assert code == 0, f"gmtool {line}\n{err}"
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert names["mask"].shape == (1, 96, 128)  # type: ignore[attr-defined]


def test_every_named_setting_exists_with_the_default_that_is_written() -> None:
    from gmtool.settings import build_config

    config = build_config({"data.root": "data"})
    rows = re.findall(r"^\| (`[a-z_]+\.[a-z_0-9`., ]+) \| ([^|]+) \|", README, flags=re.MULTILINE)
    assert len(rows) >= 10
    for names, defaults in rows:
        plain = re.sub(r" \(.*?\)", "", defaults)
        for name, default in zip(names.split(", "), plain.split(", "), strict=True):
            section, key = name.strip("`").split(".")
            value = getattr(getattr(config, section), key)
            assert str(value).lower() == default.strip("` "), name


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (Path(__file__).parent.parent / link).exists(), link
