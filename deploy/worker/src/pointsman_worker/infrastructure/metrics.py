"""Prometheus metrics. Labels: the one model, outcomes of a fixed list; never a user, a session or a key."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from pointsman_worker.application.gate import Gate
from pointsman_worker.application.observer import Record

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DURATION_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counts what happens to one model's requests."""

    def __init__(self, model: str, gate: Gate) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # Series that nobody reads, one for each of ours.
        self._registry = CollectorRegistry()
        self._model = model
        self._requests = Counter(
            "pointsman_worker_requests", "Requests, by how they ended.", ["model", "outcome"], registry=self._registry
        )
        self._tokens = Counter(
            "pointsman_worker_tokens",
            "Tokens: of prompts where the backend counts them, and generated here.",
            ["model", "type"],
            registry=self._registry,
        )
        self._resumed = self._counter("pointsman_worker_resumed", "Answers that another worker had begun.")
        self._duration = self._histogram(
            "pointsman_worker_request_duration_seconds", "From call to end.", DURATION_BUCKETS
        )
        self._first = self._histogram(
            "pointsman_worker_first_token_seconds", "From call to first token.", FIRST_TOKEN_BUCKETS
        )
        self._gauge("pointsman_worker_running", "Requests that run.").set_function(lambda: gate.running)
        self._gauge("pointsman_worker_queued", "Requests that wait.").set_function(lambda: gate.queued)
        self._gauge("pointsman_worker_running_max", "The most requests at once.").set_function(lambda: gate.running_max)
        self._gauge("pointsman_worker_draining", "1 while it takes no more.").set_function(lambda: float(gate.draining))
        self.registered = self._gauge("pointsman_worker_registered", "1 while the registry knows the worker.")
        self.ready = self._gauge("pointsman_worker_backend_ready", "1 while the backend can answer.")

    def request_ended(self, record: Record) -> None:
        """Counts one request."""
        self._requests.labels(self._model, record.outcome).inc()
        self._tokens.labels(self._model, "completion").inc(record.tokens)
        self._duration.observe(record.duration)
        if record.usage is not None:
            self._tokens.labels(self._model, "prompt").inc(record.usage.prompt_tokens)
        if record.first_token is not None:
            self._first.observe(record.first_token)
        if record.resumed_at is not None:
            self._resumed.inc()

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(name, what, ["model"], registry=self._registry).labels(self._model)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(name, what, ["model"], registry=self._registry).labels(self._model)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, what, ["model"], registry=self._registry, buckets=buckets)
        return histogram.labels(self._model)
