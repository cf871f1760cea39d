"""Query and Accept header of a request: model, format, tiles, confidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from starlette.requests import Request

from gmtool.errors import GmtoolError, did_you_mean
from gmtool_serving.backends.tiles import Tiling, parse_tiling, require_logits
from gmtool_serving.http.errors import RefusalError, bad_request
from gmtool_serving.http.models import ServedModel
from gmtool_serving.outputs.formats import FormatName, check_formats

AnswerFormat = Literal["png", "cityscapes", "trainids", "color", "overlay", "coco", "npz", "json"]
ANSWER_FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)
MEDIA_TYPES: dict[AnswerFormat, str] = {
    **{"png": "image/png", "cityscapes": "image/png", "trainids": "image/png", "color": "image/png"},
    **{
        "overlay": "image/jpeg",
        "coco": "application/json",
        "npz": "application/x-npz",
        "json": "application/json",
    },
}
ACCEPTED: dict[str, AnswerFormat] = {
    "image/png": "png",
    "image/jpeg": "overlay",
    "application/json": "json",
    "application/x-npz": "npz",
}
"""Format of each media type in an Accept header; the first is the default."""
PARAMETERS = ("model", "format", "confidence", "min_confidence", "tile", "overlap")
BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Wanted:
    """Wishes of a request."""

    model: ServedModel
    format: AnswerFormat
    confidence: bool
    """Add the confidence of each pixel to the JSON answer."""
    min_confidence: float | None
    """Pixels below it, in [0, 1], are ignored."""
    tiling: Tiling | None

    @property
    def output(self) -> FormatName | None:
        """Format of `gmtool predict`; None for JSON."""
        return None if self.format == "json" else "voc" if self.format == "png" else self.format


def read_wanted(request: Request, models: Mapping[str, ServedModel], *, by_accept: bool = True) -> Wanted:
    """Return what a request asks for; the first model and a palette PNG unless told.

    Args:
        request: Its query and, without `format`, its Accept header.
        models: Models by name.
        by_accept: Whether the Accept header chooses the format; a batch's chooses its container.

    Raises:
        RefusalError: 400 for a bad value, 404 for an unknown model, 406 for an Accept header without a known type.
    """
    query = dict(request.query_params)
    for name in query:
        if name not in PARAMETERS:
            raise bad_request(f"unknown parameter {name[:80]!r}{did_you_mean(name, PARAMETERS)}")
    model = _model(query.get("model"), models)
    format_ = _format(query["format"]) if "format" in query else _accepted(request, by_accept=by_accept)
    wanted = Wanted(
        model,
        format_,
        _boolean("confidence", query.get("confidence", "false")),
        _share("min_confidence", query.get("min_confidence")),
        _tiling(query, model),
    )
    _refuse_misfit(wanted)
    return wanted


def formats_of(model: ServedModel) -> list[AnswerFormat]:
    """Return the formats that fit the classes and outputs of a model."""
    found = []
    for name in ANSWER_FORMATS:
        try:
            _refuse_misfit(Wanted(model, name, confidence=False, min_confidence=None, tiling=None))
        except RefusalError:
            continue
        found.append(name)
    return found


def _model(name: str | None, models: Mapping[str, ServedModel]) -> ServedModel:
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        raise RefusalError(404, "unknown_model", f"no model {name[:80]!r}{did_you_mean(name, models)}")
    return models[name]


def _format(name: str) -> AnswerFormat:
    for known in ANSWER_FORMATS:
        if name == known:
            return known
    raise bad_request(f"unknown format {name[:80]!r}{did_you_mean(name, ANSWER_FORMATS)}")


def _accepted(request: Request, *, by_accept: bool) -> AnswerFormat:
    """Return the format of the media type that the client likes best (RFC 9110, 12.5.1)."""
    header = request.headers.get("accept", "") if by_accept else ""
    liked = sorted(_media_ranges(header), key=lambda entry: -entry[1])
    for media_type, quality in liked:
        prefix = media_type.removesuffix("*") if media_type.endswith("/*") else None
        for known, name in ACCEPTED.items():
            if quality > 0 and (media_type in (known, "*/*") or (prefix and known.startswith(prefix))):
                return name
    if liked:
        raise RefusalError(
            406, "not_acceptable", f"Accept: {header[:200]}; known: {', '.join(ACCEPTED)}, or ?format="
        )
    return "png"


def _media_ranges(header: str) -> list[tuple[str, float]]:
    found = []
    for entry in filter(str.strip, header.split(",")):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            found.append((media_type, float(quality)))
        except ValueError:
            found.append((media_type, 0.0))
    return found


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise bad_request(f"{name}={text[:80]}: expected true or false")
    return BOOLEANS[text.lower()]


def _share(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise bad_request(f"{name}={text[:80]}: expected a number from 0 to 1")
    return value


def _tiling(query: Mapping[str, str], model: ServedModel) -> Tiling | None:
    overlap = query.get("overlap")
    if overlap is not None and not (overlap.isdecimal() and len(overlap) < 9):
        raise bad_request(f"overlap={overlap[:80]}: expected a number of pixels")
    try:
        tiling = parse_tiling(query.get("tile"), None if overlap is None else int(overlap))
        if tiling is not None:
            require_logits(model.backend)
    except GmtoolError as error:
        raise bad_request(str(error).replace(model.backend.model, f"model {model.name}")) from error
    return tiling


def _refuse_misfit(wanted: Wanted) -> None:
    """Refuse what the model or the format cannot give."""
    model = wanted.model
    if (wanted.confidence or wanted.min_confidence is not None) and not model.has_confidence:
        raise bad_request(
            f"model {model.name} gives no confidence: export it with gmtool export --output mask+confidence"
        )
    if wanted.confidence and wanted.format not in ("json", "npz"):
        raise bad_request(f"confidence=true: format {wanted.format} has no place for it: use json or npz")
    if wanted.output is not None:
        try:
            check_formats((wanted.output,), model.backend.spec.classes, model.backend.spec.outputs)
        except GmtoolError as error:
            raise bad_request(str(error)) from error
