"""OpenAPI description and metrics against the service that they describe."""

from collections.abc import Callable, Iterable
from typing import Any

import jsonschema  # type: ignore[import-untyped]
from fakes import FakeBackend
from gmtool_serving.http.app import ROUTES
from gmtool_serving.http.site.openapi import openapi_value
from gmtool_serving.http.wanted import ANSWER_FORMATS, PARAMETERS
from http_service import gradient, png, serving
from openapi_spec_validator import validate
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

IMAGE = png(gradient())


def test_the_description_is_valid_and_names_every_route() -> None:
    value = openapi_value()
    validate(value)
    routes = {route.path for route in ROUTES} | {"/healthz", "/readyz", "/metrics"}
    assert set(value["paths"]) == routes - {"/", "/docs"}
    for operation in ("/v1/predict", "/v1/predict-batch"):
        parameters = value["paths"][operation]["post"]["parameters"]
        assert [parameter["name"] for parameter in parameters] == list(PARAMETERS)
        assert parameters[1]["schema"]["enum"] == list(ANSWER_FORMATS)


def resolved(value: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in value:
        for part in value["$ref"].split("/")[1:]:
            document = document[part]
        return document
    return value


def test_answers_have_the_described_schema() -> None:
    document = openapi_value()
    responses = document["paths"]["/v1/predict"]["post"]["responses"]
    backend = FakeBackend(outputs=("mask", "confidence"))
    with serving({"m": backend}) as running:
        for body, status in ((IMAGE, "200"), (b"text", "422"), (b"", "400")):
            reply = running.client.post("/v1/predict?format=json&confidence=true", body)
            schema = resolved(responses[status]["content"]["application/json"]["schema"], document)
            assert reply.status == int(status)
            jsonschema.validate(reply.json, {**schema, "additionalProperties": False})


def test_metrics_count_requests_batches_and_times() -> None:
    with serving({"m": FakeBackend()}) as running:
        assert [running.client.post("/v1/predict", body).status for body in (IMAGE, IMAGE, b"text")] == [
            200,
            200,
            422,
        ]
        running.client.get("/no/such/path")
        reply = running.client.get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        found = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(reply.body.decode())
            for sample in family.samples
        }
        assert found["gmtool_requests_total", "200", "POST", "predict"] == 2
        assert found["gmtool_requests_total", "422", "POST", "predict"] == 1
        assert found["gmtool_requests_total", "404", "GET", "none"] == 1
        assert found["gmtool_images_total", "m", "not_an_image"] == 1
        assert found["gmtool_batch_images_count", "m"] == found["gmtool_batch_images_sum", "m"] == 2
        assert found["gmtool_decode_seconds_count",] == 3
        assert found["gmtool_compute_seconds_count", "m"] == found["gmtool_encode_seconds_count", "png"] == 2
        assert (found["gmtool_ready",], found["gmtool_queue_images",], found["gmtool_queue_limit",]) == (1, 0, 64)
        parse: Callable[[str], Iterable[Metric]] = openmetrics.text_string_to_metric_families
        open_metrics = running.client.get("/metrics", Accept="application/openmetrics-text")
        assert "gmtool_requests" in {family.name for family in parse(open_metrics.body.decode())}
