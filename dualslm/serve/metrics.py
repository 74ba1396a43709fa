"""Prometheus metrics of one server (ours)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily

from dualslm.serve.fairness import Queue
from dualslm.serve.service import Service

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters and histograms of one server, and gauges that are read when somebody asks.

    Args:
        service: source of the encoder's and the backend's figures.
        queue: source of the numbers of running and waiting requests.

    Attributes:
        registry: all metrics of this server.
        requests: requests by route and status.
        tokens: positions read and reused, tokens drawn.
        first_text: seconds from the request to the first text of its reply.
        whole_reply: seconds from the request to the end of its reply.
        disconnects: replies whose client left before their end.
    """

    def __init__(self, service: Service, queue: Queue) -> None:
        self.service = service
        self.queue = queue
        # not prometheus_client's global registry, where a second server in the same process would collide
        self.registry = CollectorRegistry()
        make = {"registry": self.registry, "namespace": "dualslm"}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **make)  # type: ignore[arg-type]
        self.tokens = Counter("tokens", "Positions read, positions reused, tokens drawn", ["kind"], **make)  # type: ignore[arg-type]
        self.first_text = Histogram("first_piece_seconds", "From request to first text", buckets=BUCKETS_S, **make)  # type: ignore[arg-type]
        self.whole_reply = Histogram(
            "reply_seconds",
            "From request to the end of a reply",
            buckets=BUCKETS_S,
            **make,  # type: ignore[arg-type]
        )
        self.disconnects = Counter("left", "Replies whose client left", **make)  # type: ignore[arg-type]
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, as Prometheus asks for them."""
        gauges: Mapping[str, float] = {
            "requests_running": self.queue.running,
            "requests_waiting": self.queue.waiting,
            "recordings_encoded": self.service.audio_cache.encoded,
            "encoder_batches": self.service.batches,
            **self.service.backend.state(),
        }
        for name, value in gauges.items():
            yield GaugeMetricFamily(f"dualslm_{name}", name.replace("_", " "), value)
