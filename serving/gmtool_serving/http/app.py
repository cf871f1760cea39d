"""The ASGI application: routes, pages, health, and errors as JSON."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from gmtool_serving.http import routes
from gmtool_serving.http.errors import ClientGoneError, RefusalError, error_value
from gmtool_serving.http.gate import Gate
from gmtool_serving.http.service import Service
from gmtool_serving.http.site import pages

ROUTES = [
    Route("/", pages.index),
    Route("/docs", pages.docs),
    Route("/openapi.json", pages.openapi),
    Route("/v1/predict", routes.predict, methods=["POST"]),
    Route("/v1/predict-batch", routes.predict_batch, methods=["POST"]),
    Route("/v1/models", routes.models),
    Route("/v1/models/{name}", routes.model),
    Route("/v1/samples", routes.samples),
    Route("/v1/samples/{number}", routes.sample),
]


def make_app(service: Service) -> ASGIApp:
    """Return the application of a service."""
    handlers = {
        RefusalError: _refused,
        ClientGoneError: _gone,
        HTTPException: _http_error,
        Exception: _bug,
    }
    health = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)]
    app = Starlette(routes=[*ROUTES, *health], exception_handlers=handlers)
    app.state.service = service
    return Gate(app, service.options, service.metrics)


async def healthz(request: Request) -> Response:
    """Answer `GET /healthz`: the process is alive."""
    del request
    return JSONResponse({"status": "alive"})


async def readyz(request: Request) -> Response:
    """Answer `GET /readyz`: 200 once every model has run, until the service is told to stop."""
    service: Service = request.app.state.service
    if service.is_ready:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "stopping" if service.is_warm else "warming up"}, 503, {"Retry-After": "1"})


async def metrics(request: Request) -> Response:
    """Answer `GET /metrics`."""
    service: Service = request.app.state.service
    content, media_type = service.metrics.text(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": media_type})


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return error.response()


def _gone(_: Request, error: Exception) -> Response:
    del error
    return Response(status_code=499)  # nobody reads it; metrics and log do


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
    text = f"{request.method} {request.url.path[:200]}: {error.detail}: see /docs"
    return JSONResponse(error_value(code, text), error.status_code, error.headers)


def _bug(_: Request, error: Exception) -> Response:
    # The server prints the traceback
    return JSONResponse(error_value("bug", f"{type(error).__name__}: see the service's stderr"), 500)
