"""Spans, read back from a collector that speaks OTLP over gRPC."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from pointsman_worker.infrastructure import spans

from worlds import echo, request, serving, until

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_a_span_is_a_child_of_the_callers_and_its_ids_are_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    made, missing = spans.set_up(url, "demo", "echo", "w-1")
    assert missing == ""
    async with serving(echo(), spans=made) as world:
        parent = f"00-{TRACE}-{CALLER}-01"
        metadata = (("traceparent", parent), ("tracestate", "vendor=1,other=2"), ("x-session-id", "s-1"))
        await world.ask(request("a b"), metadata=metadata)
        await world.fails(request(model="other"))
        await until(lambda: len(world.records) == 2)
        made.close()
        good, bad = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
        assert (good.name, good.trace_id.hex(), good.parent_span_id.hex()) == (spans.SPAN, TRACE, CALLER)
        assert good.trace_state == "vendor=1,other=2"
        assert (world.records[0].trace_id, world.records[0].span_id) == (TRACE, good.span_id.hex())
        told = {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in good.attributes}
        assert 0 < told.pop("gen_ai.response.time_to_first_chunk") < 5
        assert told == {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "demo",
            "gen_ai.provider.name": "echo",
            "gen_ai.response.model": "demo",
            "gen_ai.usage.input_tokens": 2,
            "gen_ai.usage.output_tokens": 2,
            "pointsman.outcome": "ok",
            "pointsman.request_id": "request-1",
        }
        assert (bad.status.message, bad.parent_span_id) == ("unknown_model", b"")
        assert ("error.type", "unknown_model") in [(pair.key, pair.value.string_value) for pair in bad.attributes]
        assert not any("s-1" in str(span) for span in collector.spans), "a session is nobody's affair"
    server.stop(0)


def test_without_its_packages_there_are_none_and_a_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    made, missing = spans.set_up("http://127.0.0.1:4317", "demo", "echo", "w-1")
    assert isinstance(made, spans.NoSpans)
    assert "deploy/worker[otel]" in missing
    assert spans.set_up(None, "demo", "echo", "w-1")[1] == ""
