"""Commands, settings and links of README.md and docs/*.md."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import TOY, Cli

from gmtool.data.toy import generate_toy

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NARROW = ["--set", "model.encoder=toy", "--set", "model.decoder_channels=32", "--encoder-weights", "none"]
SHORT = {
    "toy": ["--iterations", "8", "--set", "model.decoder_channels=32"],
    "my-data": ["--set", "probe.steps=10", "--set", "probe.head=hidden", *NARROW],
    "folder": ["--iterations", "2", "--set", "data.crop_px=48", "--set", "data.workers=0", *NARROW],
}
"""Options by which a documented training takes seconds, offline."""


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(page: str) -> list[str]:
    """Return the lines of console blocks that begin with `$ gmtool`, without it."""
    return re.findall(r"^\$ gmtool (.*)$", read(page), flags=re.MULTILINE)


def my_data(root: Path) -> None:
    """Write the folder that "Your own images" describes."""
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
    of_readme, of_data = commands("README.md"), commands("docs/data.md")
    assert len(of_readme) >= 10
    assert len(of_data) >= 2
    assert "doctor" in of_readme  # its own test runs it: it takes as long as all the others
    for line in (line for line in of_readme + of_data if line != "doctor"):
        arguments = shlex.split(line)
        if arguments[0] == "train":
            arguments += SHORT[arguments[1]]
        if arguments[0] == "export":  # after so few steps the network knows hardly any class
            arguments.append("--allow-few-classes")
        code, _, err = cli(arguments)
        assert code == 0, f"gmtool {line}\n{err}"
    snippets = re.findall(r"```python\n(.*?)```", read("docs/export.md"), flags=re.DOTALL)
    (snippet,) = (text for text in snippets if "onnxruntime.InferenceSession" in text)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert names["mask"].shape == (1, 96, 128)  # type: ignore[attr-defined]


def test_every_named_setting_exists_with_the_default_that_is_written() -> None:
    from gmtool.settings import build_config

    config = build_config({"data.root": "data"})
    rows = re.findall(
        r"^\| (`[a-z_]+\.[a-z_0-9`., ]+) \| ([^|]+) \|", read("docs/training.md"), flags=re.MULTILINE
    )
    assert len(rows) >= 20
    for names, defaults in rows:
        plain = re.sub(r" \(.*?\)", "", defaults)
        for name, default in zip(names.split(", "), plain.split(", "), strict=True):
            section, key = name.strip("`").split(".")
            value = getattr(getattr(config, section), key)
            assert str(value).lower() == default.strip("` "), name


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/method.md"])
def test_every_named_module_exists(page: str) -> None:
    named = set(re.findall(r"`([a-z]+/[\w/]+\.py)`", read(page)))
    assert len(named) >= 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    links = re.findall(r"\]\(([^)\s#]+)\)", read("README.md"))
    assert {path.relative_to(ROOT).as_posix() for path in PAGES[1:]} <= set(links)


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 220
