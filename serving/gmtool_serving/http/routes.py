"""Routes of the API: masks of images, models, samples."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gmtool_serving.http.answers import Answer
from gmtool_serving.http.bodies import Upload, uploads
from gmtool_serving.http.errors import ClientGoneError, RefusalError, bad_request, error_value
from gmtool_serving.http.service import Service
from gmtool_serving.http.wanted import Wanted, formats_of, read_wanted

T = TypeVar("T")
MANIFEST = "manifest.jsonl"
"""File in the archive of a batch: a line of JSON for each image."""


async def predict(request: Request) -> Response:
    """Answer `POST /v1/predict`: the mask of one image."""
    service, wanted = _begin(request)
    body = await service.bodies.read(request)
    try:
        (upload,) = await _images(request, body, most=1)
        with service.slots.take(1):
            answer, times = await until_gone(request, service.answer(upload, wanted))
    finally:
        service.bodies.release(body)
    headers = answer.headers | {"Server-Timing": times.header(), "X-Gmtool-Model": quote(wanted.model.name)}
    return Response(answer.content, media_type=answer.media_type, headers=headers)


async def predict_batch(request: Request) -> Response:
    """Answer `POST /v1/predict-batch`: a zip of the masks, or multipart/mixed where the client prefers that."""
    service, wanted = _begin(request, by_accept=False)
    body = await service.bodies.read(request)
    try:
        images = await _images(request, body, most=service.slots.most)
        with service.slots.take(len(images)):
            results = await until_gone(request, _answers(service, images, wanted))
    finally:
        service.bodies.release(body)
    refusals = [result for result in results if isinstance(result, RefusalError)]
    # Of an image alone the client learns as much as from `predict`; the same if no image has a mask
    status = min((refusal.status for refusal in refusals), default=200) if len(refusals) == len(results) else 200
    lines = _manifest(images, results)
    if "multipart/mixed" in request.headers.get("accept", ""):
        return _mixed(lines, results, status)
    return _archive(lines, results, status)


async def models(request: Request) -> Response:
    """Answer `GET /v1/models`."""
    service: Service = request.app.state.service
    return JSONResponse({"models": [model.summary() for model in service.models.values()]})


async def model(request: Request) -> Response:
    """Answer `GET /v1/models/{name}`."""
    service: Service = request.app.state.service
    name = request.path_params["name"]
    if name not in service.models:
        raise RefusalError(404, "unknown_model", f"no model {name[:80]!r}; known: {', '.join(service.models)}")
    found = service.models[name]
    return JSONResponse(found.details() | {"formats": formats_of(found)})


async def samples(request: Request) -> Response:
    """Answer `GET /v1/samples`: names of the images that the page offers."""
    service: Service = request.app.state.service
    return JSONResponse({"samples": [path.name for path in service.samples]})


async def sample(request: Request) -> Response:
    """Answer `GET /v1/samples/{number}`: the file of a sample, by its place in the list."""
    service: Service = request.app.state.service
    number = request.path_params["number"]
    found = [path for place, path in enumerate(service.samples) if str(place) == number]
    if not found:
        raise RefusalError(404, "unknown_sample", f"no sample {number[:80]!r}; there are {len(service.samples)}")
    try:
        content = await asyncio.to_thread(found[0].read_bytes)
    except OSError as error:
        raise RefusalError(404, "unreadable", f"sample {number}: {error.strerror}") from error
    return Response(content, media_type="application/octet-stream")


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which is cancelled if the client closes the connection.

    Raises:
        ClientGoneError: It did.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _begin(request: Request, *, by_accept: bool = True) -> tuple[Service, Wanted]:
    """Refuse what can be refused before the body is read."""
    service: Service = request.app.state.service
    service.bodies.refuse_by_head(request)
    if not service.is_warm:
        raise RefusalError(503, "not_ready", "the models are being warmed up", retry_after_s=1)
    wanted = read_wanted(request, service.models, by_accept=by_accept)
    service.slots.refuse()
    return service, wanted


async def _images(request: Request, body: bytearray, *, most: int) -> list[Upload]:
    if not body:
        raise bad_request("no body: expected an image, or a form with image files")
    return await uploads(request, body, most=most)


async def _answers(service: Service, images: list[Upload], wanted: Wanted) -> list[Answer | RefusalError]:
    async def one(work: Awaitable[tuple[Answer, object]]) -> Answer | RefusalError:
        try:
            return (await work)[0]
        except RefusalError as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(service.answer(image, wanted))) for image in images]
    return [task.result() for task in tasks]


def _manifest(images: list[Upload], results: list[Answer | RefusalError]) -> list[dict[str, Any]]:
    """Return an entry for each image, with a unique name of its file."""
    lines: list[dict[str, Any]] = []
    taken: set[str] = {MANIFEST}
    for number, (image, result) in enumerate(zip(images, results, strict=True)):
        if isinstance(result, RefusalError):
            lines.append({"path": image.name, "status": "failed", "code": result.code, "error": result.message})
            continue
        output = result.name if result.name not in taken else f"{number}-{result.name}"
        taken.add(output)
        lines.append({"path": image.name, "status": "ok", "output": output, "warning": result.warning})
    return lines


def _archive(lines: list[dict[str, Any]], results: list[Answer | RefusalError], status: int) -> Response:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # masks are compressed already
        for line, result in zip(lines, results, strict=True):
            if isinstance(result, Answer):
                archive.writestr(line["output"], result.content)
        archive.writestr(MANIFEST, "".join(json.dumps(line) + "\n" for line in lines))
    headers = {"Content-Disposition": 'attachment; filename="masks.zip"'}
    return Response(buffer.getvalue(), status, headers, media_type="application/zip")


def _mixed(lines: list[dict[str, Any]], results: list[Answer | RefusalError], status: int) -> Response:
    boundary = uuid4().hex
    parts = []
    for line, result in zip(lines, results, strict=True):
        if isinstance(result, Answer):
            kind, content, headers = result.media_type, result.content, result.headers
        else:
            value = error_value(result.code, result.message)
            kind, content, headers = "application/json", json.dumps(value).encode(), {}
        path = json.dumps(line["path"])[1:-1]
        head = {"Content-Type": kind, "Content-Length": str(len(content)), "X-Gmtool-Path": path, **headers}
        lead = f"--{boundary}\r\n" + "".join(f"{name}: {text}\r\n" for name, text in head.items()) + "\r\n"
        parts.append(lead.encode("ascii") + content + b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode("ascii"))
    return Response(b"".join(parts), status, media_type=f"multipart/mixed; boundary={boundary}")
