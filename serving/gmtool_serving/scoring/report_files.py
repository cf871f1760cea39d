"""Write the files of a score: report, tables, comparison."""

from __future__ import annotations

from pathlib import Path

from gmtool.files import write_atomically
from gmtool.report.comparison import Comparison, comparison_markdown
from gmtool.report.html import comparison_html, report_html
from gmtool.report.report import IoUReport, format_json
from gmtool.report.tables import save_report
from gmtool_serving.scoring.evaluate import Task, find_examples


def write_report(report: IoUReport, task: Task | None, out: Path) -> Path:
    """Write `report.json`, `.md`, `.html`, `classes.csv` and `images.csv`; return the HTML's path.

    With `task`, the worst and the median images are predicted once more, for their pictures.
    """
    out.mkdir(parents=True, exist_ok=True)
    save_report(report, out)  # first: pictures may fail
    page = out / "report.html"
    write_atomically(page, report_html(report, [] if task is None else find_examples(task, report)))
    return page


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.json`, `.md` and `.html`; return the HTML's path."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "comparison.json", format_json(comparison.to_dict()) + "\n")
    write_atomically(out / "comparison.md", comparison_markdown(comparison))
    page = out / "comparison.html"
    write_atomically(page, comparison_html(comparison))
    return page
