"""Names from outside: what a terminal, Markdown, HTML and a spreadsheet make of them."""

import csv
import html
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from example_reports import ONE, TWO
from markdown_it import MarkdownIt

from gmtool import console
from gmtool.classes import ClassSet, voc_palette
from gmtool.escaping import csv_text, markdown_text, printable
from gmtool.report.comparison import compare, comparison_markdown
from gmtool.report.html import report_html
from gmtool.report.report import IoUReport
from gmtool.report.tables import save_report

NAMES = (
    "plain_name-01 (2).png",
    "a|b",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[link](http://x)",
    "![picture](http://x/y.png)",
    "*bold* _slanted_ ~~gone~~ `code`",
    "# heading",
    "- item",
    "1. item",
    "&lt;&amp;",
    "back\\slash \\| \\`",
    "``two``",
)
CONTROL = "\x1b[2J\x1b[31mred\r\n\x07\x9b1m\u202eexe.\u2066"


def hostile_report(names: tuple[str, str, str]) -> IoUReport:
    """Return a report in which everything from outside is called as one of the names."""
    assert ONE.images is not None
    origin = replace(ONE.provenance, model=names[0], split=names[1], backend=names[2])
    return replace(
        ONE,
        classes=ClassSet(names, voc_palette(3), (0, 1, 2)),
        provenance=origin,
        images=replace(ONE.images, ids=(names[0], names[1])),
        failed=(f"{names[0]}: {names[1]} is damaged",),
        left_out=(f"{names[2]}: nothing",),
    )


def text_of(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup)).strip()


def test_case_54_a_terminal_gets_no_control_character() -> None:
    assert printable("é 日\u3000本 \u202f.png") == "é 日\u3000本 \u202f.png"
    assert printable("a\x1b[31m\nb\t\x7f\x9b\u2028\u202e") == r"a\x1b[31m\nb\t\x7f\x9b\u2028\u202e"
    assert printable(os.fsdecode(b"\xff\xfe.jpg")) == r"\xff\xfe.jpg"
    assert printable("\ud800").isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_case_54_markdown_shows_a_name_as_it_is(name: str) -> None:
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for template in ("- {}", "# mIoU on {}", "| class | n |\n|---|---|\n| {} | 1 |", "worst: {} 12.0, b 13.0"):
        plain = renderer.render(template.format("plain"))
        assert "plain" in plain
        rendered = renderer.render(template.format(markdown_text(name)))
        assert rendered.replace(html.escape(name, quote=False).replace('"', "&quot;"), "plain") == plain


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d"])
def test_case_54_a_name_is_no_formula(sign: str) -> None:
    assert csv_text(f"{sign}HYPERLINK(A1)") == f"'{sign}HYPERLINK(A1)"
    assert csv_text(f"a{sign}b") == f"a{sign}b"


@pytest.mark.parametrize(
    "names",
    [
        ("<script>alert(1)</script>", "=cmd|'/C calc'!A0", "a|b\n# forged\n\x1b[31m"),
        (os.fsdecode(b"\xff"), f"-{CONTROL}", "@x"),
    ],
)
def test_case_54_reports_escape_every_name(tmp_path: Path, names: tuple[str, str, str]) -> None:
    report = hostile_report(names)
    save_report(report, tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    page = report_html(report)
    for text in (markdown, page, (tmp_path / "images.csv").read_text(), (tmp_path / "classes.csv").read_text()):
        assert printable(text.replace("\n", "")) == text.replace("\n", "")
    assert "<script" not in page and "<script" not in markdown
    assert "# forged" not in markdown.splitlines()
    page.encode()
    table = MarkdownIt("commonmark").enable("table").render(markdown)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table)
    assert [text_of(cell) for cell in cells[::6]] == [printable(name) for name in names]
    for file, column in (("classes.csv", "name"), ("images.csv", "id")):
        with (tmp_path / file).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert [row[column] for row in rows] == [csv_text(name) for name in names[: len(rows)]]
        assert not any(str(value).startswith(("=", "+", "-", "@")) for row in rows for value in row)
    assert json.loads((tmp_path / "report.json").read_text())["provenance"]["split"] == names[1]


def test_case_54_a_comparison_escapes_names() -> None:
    other = replace(TWO, provenance=replace(TWO.provenance, model="runs/<b>|x"))
    text = comparison_markdown(compare(ONE, [other]))
    assert "| &lt;b&gt;\\|x | 37.50 |" in text and "<b>" not in text


def test_case_54_remarks_and_results_cannot_be_forged(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    console.remark("failed: a\x1b[2J\nerror: forged")
    console.result("one\x1b[2J\ntwo [bold] :dog:")
    out, err = capfd.readouterr()
    assert err == "failed: a\\x1b[2J\\nerror: forged\n"
    assert out == "one\\x1b[2J\ntwo [bold] :dog:\n"


def test_case_54_messages_of_a_command_show_names_escaped(cli: Cli, toy_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a\x1b[2J\nerror: forged.jpg").write_text("text")
    arguments = ["predict", folder, "--model", toy_model, "--device", "cpu", "--workers", "0"]
    code, out, err = cli([*arguments, "--out", tmp_path / "out\nforged"])
    assert code == 1
    assert "\x1b" not in out + err
    assert f"failed: {folder}/a\\x1b[2J\\nerror: forged.jpg: not an image" in err
    assert not [line for line in (out + err).splitlines() if line.startswith(("error", "forged"))]
    code, _, err = cli(["predict", tmp_path / "no\x1b\nthing", "--out", tmp_path / "out"])
    assert (code, len(err.splitlines())) == (1, 1)
    assert "no\\x1b\\nthing" in err


def test_class_names_in_tables_are_no_markup(cli: Cli, tmp_path: Path) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"names": ["[/red]", "\x1b[31m:dog:"]}))
    code, out, err = cli(["info", classes])
    assert code == 0, err
    assert "[/red]" in out and "\\x1b[31m:dog:" in out
