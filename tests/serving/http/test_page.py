"""The page of the service in Chromium: an image dropped, its mask, legend, readout and downloads."""

import asyncio
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import CLASSES, FakeBackend
from gmtool_serving.http import app as application
from gmtool_serving.http.site.pages import PAGE_DIR, read_page
from http_service import Running, gradient, png, serving
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
OPTIONS += "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --window-size=1300,900"
SIZES = {"wide": (24, 36), "large": (90, 160)}

PROBE = Path(__file__).with_name("probe.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    async def probe(_: Request) -> Response:
        return HTMLResponse(PROBE)

    async def image(request: Request) -> Response:
        return Response(png(gradient(*SIZES[request.path_params["name"]])), media_type="image/png")

    async def pause(_: Request) -> Response:
        await asyncio.sleep(0.02)
        return Response()

    extra = [Route("/probe", probe), Route("/test-image/{name}", image), Route("/test-pause", pause)]
    before = list(application.ROUTES)
    application.ROUTES.extend(extra)
    try:
        backends = {"model": FakeBackend(outputs=("mask", "confidence")), "plain": FakeBackend()}
        with serving(backends) as service:
            yield service
    finally:
        application.ROUTES[:] = before


@pytest.fixture(scope="module")
def shown(running: Running, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What Chromium found on the pages, and what it wrote to its console."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    profile = f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"
    address = f"http://127.0.0.1:{running.client.port}/probe"
    command = [CHROMIUM, *OPTIONS.split(), profile, "--virtual-time-budget=60000", "--dump-dom", address]
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None and match[1], done.stderr
    console = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    found = json.loads(html.unescape(match[1]))
    assert "error" not in found, (found["error"], console)
    return found, console


def colors(name: str, *, hidden: int | None = None, min_confidence: float = 0.0) -> list[int]:
    """Return RGBA of the mask that `gmtool predict` gives for an image."""
    prediction = FakeBackend(outputs=("mask", "confidence")).predict(gradient(*SIZES[name])[None])
    mask = prediction.mask[0]
    assert prediction.confidence is not None
    mask = np.where(prediction.confidence[0] / 255 < min_confidence, 255, mask)
    table = np.zeros((256, 4), np.uint8)
    table[:3, :3], table[255, :3], table[[0, 1, 2, 255], 3] = CLASSES.palette, (224, 224, 192), 255
    if hidden is not None:
        table[hidden] = 0
    return [int(value) for value in table[mask].ravel()]


def test_the_mask_of_a_dropped_and_of_a_pasted_image_has_the_pixels_of_predict(
    shown: tuple[dict[str, Any], str],
) -> None:
    for page in shown[0]["pages"]:
        assert page["mask"] == colors("wide")
        assert page["large"] == colors("large")


def test_the_overlay_is_the_image_under_its_mask(shown: tuple[dict[str, Any], str]) -> None:
    for page in shown[0]["pages"]:
        image, overlay, mask = (np.array(page[name]).reshape(24, 36, 4) for name in ("image", "overlay", "mask"))
        np.testing.assert_array_equal(image[..., :3], gradient())
        np.testing.assert_allclose(overlay, 0.45 * image + 0.55 * mask, atol=2)


def test_legend_and_readout_tell_class_share_and_confidence(shown: tuple[dict[str, Any], str]) -> None:
    prediction = FakeBackend(outputs=("mask", "confidence")).predict(gradient()[None])
    assert prediction.confidence is not None
    for page in shown[0]["pages"]:
        assert page["legend"] == [["dark", "33 %"], ["middle", "33 %"], ["bright", "33 %"]]
        sure = [f"{100 * int(prediction.confidence[0, 5, x]) / 255:.0f} %" for x in (30, 20)]
        assert page["pointed"] == f"x 30, y 5: bright, confidence {sure[0]}"
        assert page["moved"] == f"x 20, y 5: middle, confidence {sure[1]}"


def test_classes_can_be_hidden_and_unsure_pixels_ignored(shown: tuple[dict[str, Any], str]) -> None:
    for page in shown[0]["pages"]:
        assert page["hidden"] == colors("wide", hidden=2)
        assert page["sure"] == colors("wide", min_confidence=0.5)


def test_a_download_is_what_the_service_answers(shown: tuple[dict[str, Any], str], running: Running) -> None:
    expected = running.client.post("/v1/predict?min_confidence=0.5", png(gradient())).body
    for page in shown[0]["pages"]:
        assert page["saved"] == ["wide.png", list(expected)]


def test_another_model_and_a_refused_image_are_told(shown: tuple[dict[str, Any], str]) -> None:
    for page in shown[0]["pages"]:
        assert page["plain"] == [True, False]
        assert page["refused"] == "not_an_image: bad.png: not an image (of JPEG, PNG, BMP, WEBP, TIFF, GIF)"


def test_the_page_fits_a_telephone_is_dark_where_wanted_and_names_its_controls(
    shown: tuple[dict[str, Any], str],
) -> None:
    for page in shown[0]["pages"]:
        assert page["overflow"] <= 0
        assert page["unnamed"] == []
        assert (sum(map(int, re.findall(r"\d+", page["color"])[:3])) < 150) == (page["scheme"] == "dark")


def test_the_pages_fetch_nothing_from_elsewhere_and_break_no_policy(shown: tuple[dict[str, Any], str]) -> None:
    found, console = shown
    expected = ("422", "will-read-frequently")  # the refused image; the probe itself
    assert [line for line in console.splitlines() if not any(words in line for words in expected)] == []
    assert [page["outside"] for page in found["pages"]] == [[], []]
    assert "POST /v1/predict" in found["docs"] and "GET /metrics" in found["docs"]


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_a_page_is_one_file_whose_policy_names_its_own_script_alone(name: str) -> None:
    text, policy = read_page(name)
    assert re.findall(r"""(?:src|href)=["']([^"']*)""", text) in (
        ["data:,", "/docs"],
        ["data:,", "/", "/openapi.json"],
    )
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text)
    assert not re.search(r"""\son\w+=|\sstyle=""", text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert len(text.encode()) < 60_000
    assert {path.name for path in Path(PAGE_DIR).iterdir()} == {"index.html", "docs.html"}
