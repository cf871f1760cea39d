"""Static pages of the service, with a content-security policy that names their own script and style alone."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from gmtool_serving.http.site.openapi import openapi_value

PAGE_DIR = Path(__file__).parent / "static"


async def index(request: Request) -> Response:
    """Answer `GET /`: the page to try a model."""
    del request
    return _page("index.html")


async def docs(request: Request) -> Response:
    """Answer `GET /docs`: the OpenAPI description as a page."""
    del request
    return _page("docs.html")


async def openapi(request: Request) -> Response:
    """Answer `GET /openapi.json`."""
    del request
    return JSONResponse(openapi_value())


def _page(name: str) -> Response:
    text, policy = read_page(name)
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


@cache
def read_page(name: str) -> tuple[str, str]:
    """Return a page and its content-security policy: no script, style, font or connection from elsewhere."""
    text = (PAGE_DIR / name).read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(text, "script"),
        "style-src": _hashes(text, "style"),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'self'",
    }
    return text, "; ".join(f"{name} {value}" for name, value in policy.items())


def _hashes(text: str, tag: str) -> str:
    """Return the sources of all elements of a tag in a page, each by the hash of its content."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in found]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
