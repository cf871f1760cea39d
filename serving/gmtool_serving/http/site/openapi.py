"""OpenAPI description of the service."""

from __future__ import annotations

from typing import Any

from gmtool import __version__
from gmtool_serving.http.wanted import ANSWER_FORMATS, MEDIA_TYPES

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp", "image/gif")
BINARY = {"type": "string", "format": "binary"}
STATUSES = {
    "400": "A parameter or the form is wrong; the message says what is expected.",
    "401": "The token is missing or wrong (`gmtool serve --token`).",
    "403": "The page or the host name is not of this service.",
    "404": "No such model or sample.",
    "406": "None of the media types of the Accept header is known.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, or has too many images.",
    "422": "The image cannot be read or labeled: the code and the text of `gmtool predict`.",
    "500": "The model's runtime failed.",
    "503": "Warming up, stopping, the queue is full, or no mask in time: try again after Retry-After seconds.",
}


def openapi_value() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gmtool serve",
            "version": __version__,
            "description": "Semantic segmentation: an image in, a mask of class indices at its own size out.",
        },
        "paths": {
            "/v1/predict": {"post": _predict()},
            "/v1/predict-batch": {"post": _predict_batch()},
            "/v1/models": {"get": _get("List the models; the first is the default.", "models", [], ["401"])},
            "/v1/models/{name}": {
                "get": _get(
                    "Classes, palette, spec, hash and card of a model.",
                    "model",
                    [_parameter("name", "path", {"type": "string"}, "Name of the model.")],
                    ["401", "404"],
                )
            },
            "/v1/samples": {"get": _get("List the sample images.", "samples", [], ["401"])},
            "/v1/samples/{number}": {
                "get": _get(
                    "A sample image.",
                    "sample",
                    [_parameter("number", "path", {"type": "integer", "minimum": 0}, "Place in the list.")],
                    ["401", "404"],
                    media_type="application/octet-stream",
                )
            },
            "/healthz": {"get": _get("Whether the process is alive.", "healthz", [], [])},
            "/readyz": {"get": _get("Whether every model has run and images are taken.", "readyz", [], ["503"])},
            "/metrics": {"get": _get("Prometheus metrics.", "metrics", [], ["401"], media_type="text/plain")},
            "/openapi.json": {"get": _get("This description.", "openapi", [], [])},
        },
        "components": {
            "schemas": {"Error": _error_schema(), "Labels": _labels_schema()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _predict() -> dict[str, Any]:
    body = {media_type: {"schema": BINARY} for media_type in IMAGE_TYPES}
    form = {"type": "object", "properties": {"image": BINARY}, "required": ["image"]}
    types: dict[str, Any] = {media_type: {"schema": BINARY} for media_type in dict.fromkeys(MEDIA_TYPES.values())}
    types["application/json"] = {"schema": {"$ref": "#/components/schemas/Labels"}}
    return {
        "operationId": "predict",
        "summary": "Label an image.",
        "description": "The body is the image, or a form with it as a file. Accept or `format` choose the answer.",
        "parameters": _parameters(),
        "requestBody": {"required": True, "content": body | {"multipart/form-data": {"schema": form}}},
        "responses": {"200": {"description": "The mask.", "content": types}, **_errors(list(STATUSES))},
    }


def _predict_batch() -> dict[str, Any]:
    files = {"type": "array", "items": BINARY}
    form = {"type": "object", "properties": {"images": files}, "required": ["images"]}
    types = {"application/zip": {"schema": BINARY}, "multipart/mixed": {"schema": {"type": "string"}}}
    return {
        "operationId": "predict_batch",
        "summary": "Label several images.",
        "description": "Files of a form; an archive of masks with manifest.jsonl comes back, or multipart/mixed "
        "if the Accept header says so. Images that fail are in the manifest; if all fail, the status is theirs.",
        "parameters": _parameters(),
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {"200": {"description": "The masks.", "content": types}, **_errors(list(STATUSES))},
    }


def _get(
    summary: str,
    name: str,
    parameters: list[dict[str, Any]],
    errors: list[str],
    *,
    media_type: str = "application/json",
) -> dict[str, Any]:
    schema = {"type": "object"} if media_type == "application/json" else {"type": "string"}
    done = {"description": "Done.", "content": {media_type: {"schema": schema}}}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": done, **_errors(errors)},
    }


def _parameters() -> list[dict[str, Any]]:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    pixels = {"type": "integer", "minimum": 0}
    size = {"type": "string", "pattern": "^[0-9]+(x[0-9]+)?$", "examples": ["512x512"]}
    return [
        _parameter("model", "query", {"type": "string"}, "Name of the model; the first one unless told."),
        _parameter(
            "format",
            "query",
            {"type": "string", "enum": list(ANSWER_FORMATS)},
            "png: palette PNG of class indices; cityscapes, trainids: grey PNG of label ids; color: RGB PNG; "
            "overlay: JPEG of the image under its mask; coco: RLE results; npz: mask and confidence; json: shares "
            "and regions as RLE.",
        ),
        _parameter("confidence", "query", {"type": "boolean"}, "Add the confidence of each pixel (json)."),
        _parameter("min_confidence", "query", share, "Pixels that the model is less sure of are ignored (255)."),
        _parameter("tile", "query", size, "Cut larger images into tiles; needs a model with logits."),
        _parameter("overlap", "query", pixels, "Pixels that tiles share; a quarter unless told."),
    ]


def _parameter(name: str, where: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": text}


def _errors(statuses: list[str]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": STATUSES[status], "content": content} for status in statuses}


def _error_schema() -> dict[str, Any]:
    text = {"type": "string"}
    error = {"type": "object", "properties": {"code": text, "message": text}, "required": ["code", "message"]}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _labels_schema() -> dict[str, Any]:
    whole, number, text = {"type": "integer"}, {"type": "number"}, {"type": "string"}
    size = {"type": "array", "items": whole}
    rle = {"type": "object", "properties": {"size": size, "counts": text}, "description": "COCO's compressed RLE."}
    region = {"index": whole, "name": text, "raw_id": whole, "color": text, "pixels": whole, "share": number}
    classes = {"type": "object", "properties": region | {"confidence": number, "rle": rle}}
    ignored = {"type": "object", "properties": {"pixels": whole, "share": number}}
    confidence = {"type": "object", "properties": {"media_type": text, "base64": text}}
    properties: dict[str, Any] = {
        "image": text,
        "width": whole,
        "height": whole,
        "model": text,
        "model_sha256": text,
    }
    properties |= {"classes": {"type": "array", "items": classes}, "ignored": ignored, "confidence": confidence}
    return {"type": "object", "properties": properties | {"warnings": {"type": "array", "items": text}}}
