"""The pages as Chromium shows them: nothing fetched, nothing cut off, on a wide screen and on a telephone."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from example_reports import ONE, TWO

from gmtool.classes import ClassSet, load_classes, voc_palette
from gmtool.report.comparison import compare
from gmtool.report.html import comparison_html, report_html
from gmtool.report.image_scores import ScoreCollector
from gmtool.report.pictures import Example
from gmtool.report.report import IoUReport

WIDTHS = (390, 1280)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """
<body><pre id="found"></pre><script>
const found = [];
const look = event => {
  const frame = event.target;
  if (!frame.contentDocument) return;
  const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
  found.push({
    page: frame.dataset.page, scheme: frame.dataset.scheme,
    width: frame.clientWidth, overflow: root.scrollWidth - frame.clientWidth,
    requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
    broken: [...page.images].filter(image => !image.naturalWidth).length, images: page.images.length,
    scripts: page.scripts.length, title: page.title,
    cells: [...page.querySelectorAll(".matrix td")].map(cell => [
      view.getComputedStyle(cell).backgroundColor, view.getComputedStyle(cell).color]),
    page_color: view.getComputedStyle(page.body).backgroundColor,
  });
  document.getElementById("found").textContent = JSON.stringify(found);
};
document.addEventListener("load", look, true);  // before the frames begin to load
</script>
"""


def example(kind: str, *, picture: bool = True, side: int = 900) -> Example:
    random = np.random.default_rng(3)
    labels = random.integers(0, 3, (side // 100, side // 60)).repeat(100, 0).repeat(60, 1).astype(np.uint8)
    image = random.integers(0, 255, (*labels.shape, 3), dtype=np.uint8) if picture else None
    return Example("image 0", kind, 0.5, image, labels, np.roll(labels, 7))


def of_classes(classes: ClassSet) -> IoUReport:
    """A report with as many classes as a data set has, each confused with others."""
    random = np.random.default_rng(1)
    count = len(classes)
    matrix = random.integers(0, 9, (count, count)) + np.diag(random.integers(50, 900, count))
    collector = ScoreCollector(count)
    for index in range(3):
        collector.add(f"a very long name of an image in a folder/{index:040d}", "hash", matrix * (index + 1))
    return replace(ONE, classes=classes, confusion=matrix * 6, images=collector.scores(), boundary=None)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    many = ClassSet(tuple(f"class {index}" for index in range(150)), voc_palette(150), tuple(range(150)))
    return {
        "small": report_html(ONE, [example("worst"), example("median", picture=False, side=200)]),
        "cityscapes": report_html(of_classes(load_classes("cityscapes"))),
        "many": report_html(of_classes(many)),
        "bare": report_html(replace(ONE, images=None, boundary=None)),
        "comparison": comparison_html(compare(ONE, [TWO])),
        "three": comparison_html(compare(ONE, [TWO, ONE])),
    }


@pytest.fixture(scope="module")
def shown(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What Chromium found in each page at each width, and what it wrote to its console."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("pages")
    frames = "".join(
        f'<iframe data-page="{name}" data-scheme="{scheme}" srcdoc="{html.escape(page)}" '
        f'style="width:{width}px;height:900px;border:0;color-scheme:{scheme}"></iframe>'
        for name, page in pages.items()
        for width, scheme in ((390, "dark"), (1280, "light"))
    )
    probe = folder / "probe.html"
    probe.write_text(PROBE + frames, encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += " --disable-component-update --disable-sync --enable-logging=stderr --v=0 --window-size=1400,900"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [CHROMIUM, *options.split(), profile, "--virtual-time-budget=5000", "--dump-dom", str(probe)]
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stderr
    console = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return json.loads(html.unescape(match[1])), console


def test_pages_fit_a_telephone_and_a_wide_screen(
    shown: tuple[list[dict[str, Any]], str], pages: dict[str, str]
) -> None:
    found, _ = shown
    assert {(page["page"], page["width"]) for page in found} == {
        (name, width) for name in pages for width in WIDTHS
    }
    assert {(page["page"], page["width"]): page["overflow"] for page in found if page["overflow"] > 0} == {}


def test_pages_fetch_nothing_run_nothing_and_complain_of_nothing(shown: tuple[list[dict[str, Any]], str]) -> None:
    found, console = shown
    assert console == ""
    for page in found:
        assert [name for name in page["requests"] if not name.startswith("data:")] == []
        assert (page["scripts"], page["broken"]) == (0, 0)
    assert {page["page"]: page["images"] for page in found} == {
        "small": 7, "cityscapes": 0, "many": 1, "bare": 0, "comparison": 0, "three": 0
    }  # fmt: skip


def luminance(color: list[float]) -> float:
    """Return the relative luminance of an sRGB colour in [0, 1] (WCAG 2)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def srgb(css: str) -> list[float]:
    """Return what Chromium computed, rgb() or oklab(), in [0, 1]."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", css.split("(")[1])][:3]
    if css.startswith("rgb"):
        return [number / 255 for number in numbers]
    assert css.startswith("oklab"), css
    lightness, a, b = numbers
    cone = [lightness + 0.3963377774 * a + 0.2158037573 * b, lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b]  # fmt: skip
    matrix = [[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
              [-0.0041960863, -0.7034186147, 1.7076147010]]  # fmt: skip
    linear = np.clip(np.array(matrix) @ np.array(cone) ** 3, 0, 1)
    return [12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055 for value in linear]


def test_a_page_is_dark_where_the_reader_wants_it_dark(shown: tuple[list[dict[str, Any]], str]) -> None:
    for page in shown[0]:
        assert (luminance(srgb(page["page_color"])) < 0.1) == (page["scheme"] == "dark")


def test_the_numbers_of_a_confusion_matrix_can_be_read(shown: tuple[list[dict[str, Any]], str]) -> None:
    cells = [cell for page in shown[0] for cell in page["cells"]]
    assert len(cells) == 2 * (12 + 19 * 19 + 12)
    for background, ink in cells:
        dark, light = sorted((luminance(srgb(background)), luminance(srgb(ink))))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (background, ink)


def test_a_page_is_small_and_whole_by_itself(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        assert len(page.encode()) < 3_000_000, name
        assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script|https?://""", page), name
        assert "Content-Security-Policy" in page
    escaped = report_html(replace(ONE, failed=("<script>alert(1)</script>: damaged",)))
    assert "<script" not in escaped and "&lt;script&gt;alert(1)" in escaped


def test_pictures_are_bounded_and_ignored_pixels_are_no_mistakes() -> None:
    from gmtool.report.pictures import panels

    shape = (600, 1200)
    ignored = np.full(shape, 255, dtype=np.uint8)
    image = np.full((*shape, 3), 100, dtype=np.uint8)
    shown = panels(Example("x", "worst", 0.1, image, ignored, np.zeros(shape, dtype=np.uint8)), ONE.classes)
    assert [panel.title for panel in shown] == ["image", "ground truth", "prediction", "mistakes"]
    assert {(panel.width, panel.height) for panel in shown} == {(380, 190)}
    assert shown[0].uri == shown[1].uri == shown[2].uri  # nothing to tint
    wrong = panels(Example("x", "worst", 0.1, image, ignored * 0, np.ones(shape, np.uint8)), ONE.classes)
    assert wrong[3].uri != shown[3].uri
