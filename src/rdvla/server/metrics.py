"""What the server counts, in Prometheus' text format."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RECURRENCE_BUCKETS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)


class Metrics:
    """The server's counters, gauges and histograms, in a registry of their own."""

    def __init__(self) -> None:
        """Register everything at zero."""
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "rdvla_requests", "Requests answered with actions, by layout.", ["layout"], registry=registry
        )
        self.errors = Counter(
            "rdvla_errors", "Requests answered with an error, by its code.", ["code"], registry=registry
        )
        self.refused = Counter(
            "rdvla_refused_connections", "Connections refused, by reason.", ["reason"], registry=registry
        )
        self.abandoned = Counter("rdvla_abandoned", "Requests whose client left before the answer.", registry=registry)
        self.latency = Histogram(
            "rdvla_request_seconds",
            "From a request's arrival to its reply.",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.inference = Histogram(
            "rdvla_inference_seconds", "Time of the policy per batch.", buckets=LATENCY_BUCKETS, registry=registry
        )
        self.waiting = Histogram(
            "rdvla_queue_seconds", "Time a request waited for the policy.", buckets=LATENCY_BUCKETS, registry=registry
        )
        self.recurrences = Histogram(
            "rdvla_recurrences", "Core iterations per decision.", buckets=RECURRENCE_BUCKETS, registry=registry
        )
        self.batch_size = Histogram(
            "rdvla_batch_size", "Requests decided together.", buckets=BATCH_BUCKETS, registry=registry
        )
        self.queue = Gauge("rdvla_queue_length", "Requests waiting for the policy.", registry=registry)
        self.connections = Gauge("rdvla_connections", "Open websocket connections.", registry=registry)
        self.ready = Gauge(
            "rdvla_ready", "1 once the warm-up decision was made, 0 before and while stopping.", registry=registry
        )

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
