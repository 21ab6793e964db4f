"""OpenTelemetry spans, where its packages and an endpoint are there; else nothing."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pointsman_worker.application.observer import Record

SPAN = "worker.stream_inference"


class NoSpans:
    """Makes none."""

    @contextmanager
    def span(self, caller: Mapping[str, str], record: Record) -> Iterator[None]:
        """Runs its body."""
        yield

    def close(self) -> None:
        """Has nothing to send."""


class Spans:
    """One span for each request, child of the caller's, sent by OTLP over gRPC in the background.

    The endpoint, headers and the rest come from the `OTEL_*` variables, which the exporter reads itself.
    """

    def __init__(self, model: str, backend: str, instance_id: str) -> None:
        self._trace: Any = importlib.import_module("opentelemetry.trace")
        self._propagate: Any = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")
        who = {"service.instance.id": instance_id}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            who["service.name"] = "pointsman-worker"
        self._provider: Any = sdk.TracerProvider(resource=resources.Resource.create(who))
        self._provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        self._tracer: Any = self._provider.get_tracer("pointsman.worker")
        self._model = model
        self._always = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.provider.name": backend,
        }

    @contextmanager
    def span(self, caller: Mapping[str, str], record: Record) -> Iterator[None]:
        """Runs its body in a span below the caller's, and puts the span's own ids into the record."""
        context = self._propagate.TraceContextTextMapPropagator().extract(caller)
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(SPAN, context=context, kind=kind, attributes=self._always)
        ids = span.get_span_context()
        record.trace_id, record.span_id = f"{ids.trace_id:032x}", f"{ids.span_id:016x}"
        record.trace_flags = f"{int(ids.trace_flags):02x}"
        try:
            yield
        finally:
            self._tell(span, record)
            span.end()

    def close(self) -> None:
        """Sends what is left; bounded by the exporter's own time-out."""
        self._provider.shutdown()

    def _tell(self, span: Any, record: Record) -> None:
        span.set_attribute("pointsman.outcome", record.outcome)
        span.set_attribute("pointsman.request_id", record.request_id)
        span.set_attribute("gen_ai.usage.output_tokens", record.tokens)
        if record.first_token is not None:
            span.set_attribute("gen_ai.response.model", self._model)
            span.set_attribute("gen_ai.response.time_to_first_chunk", record.first_token)
        if record.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", record.usage.prompt_tokens)
        if record.resumed_at is not None:
            span.set_attribute("pointsman.resumed_at", record.resumed_at)
        if record.outcome not in ("ok", "cancelled"):
            span.set_attribute("error.type", record.outcome)
            span.set_status(self._trace.StatusCode.ERROR, record.outcome)


def set_up(endpoint: str | None, model: str, backend: str, instance_id: str) -> tuple[Spans | NoSpans, str]:
    """Spans where they can be made, and a warning where they were asked for and cannot."""
    if not endpoint:
        return NoSpans(), ""
    try:
        return Spans(model, backend, instance_id), ""
    except ModuleNotFoundError as error:
        return NoSpans(), f"no spans: `{error.name}` is missing; pip install './deploy/worker[otel]'"
