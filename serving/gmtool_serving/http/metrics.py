"""Prometheus metrics of the service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from gmtool_serving.http.models import ServedModel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics in a registry of their own: two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gmtool_requests", "Answered requests.", ["route", "method", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "gmtool_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "gmtool_images",
            "Images by outcome: ok, or the code of the failure.",
            ["model", "code"],
            registry=registry,
        )
        self.batch_images = Histogram(
            "gmtool_batch_images", "Images of a batch.", ["model"], buckets=SIZES, registry=registry
        )
        self.decode_seconds = Histogram(
            "gmtool_decode_seconds", "Decoding of an image.", buckets=SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "gmtool_queue_seconds", "Wait of a decoded image for the model.", buckets=SECONDS, registry=registry
        )
        self.compute_seconds = Histogram(
            "gmtool_compute_seconds", "Inference of a batch.", ["model"], buckets=SECONDS, registry=registry
        )
        self.encode_seconds = Histogram(
            "gmtool_encode_seconds", "Encoding of a mask.", ["format"], buckets=SECONDS, registry=registry
        )

    def batch_done(self, model: ServedModel, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_images.labels(model.name).observe(images)
        self.compute_seconds.labels(model.name).observe(seconds)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when the metrics are."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in a format that the client accepts, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type
