"""A real OpenTelemetry collector: it takes spans over gRPC from every role and passes them on to the test."""

import gzip
import shutil
import socket
import sysconfig
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from harness import Process, free_port, until

BODY_MAX = 8 << 20  # A batch has some kilobytes.


@dataclass
class Span:
    """One span, as the collector passed it on."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    state: str
    failed: bool
    seconds: float
    said: dict
    events: dict = field(default_factory=dict)


def _values(pairs):
    """Attributes as a dictionary."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _span(service, wire):
    return Span(
        service=service,
        name=wire.name,
        kind=Wire.SpanKind.Name(wire.kind).removeprefix("SPAN_KIND_").lower(),
        trace=wire.trace_id.hex(),
        id=wire.span_id.hex(),
        parent=wire.parent_span_id.hex(),
        state=wire.trace_state,
        failed=wire.status.code == Status.STATUS_CODE_ERROR,
        seconds=(wire.end_time_unix_nano - wire.start_time_unix_nano) / 1e9,
        said=_values(wire.attributes),
        events={event.name: _values(event.attributes) for event in wire.events},
    )


class _Desk(BaseHTTPRequestHandler):
    """Takes what the collector passes on: OTLP over HTTP."""

    def do_POST(self):
        length = int(self.headers["content-length"])
        assert length <= BODY_MAX, length
        body = self.rfile.read(length)
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        spans = [
            _span(_values(resource.resource.attributes)["service.name"], wire)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for wire in scope.spans
        ]
        with self.server.lock:
            self.server.spans += spans
            self.server.bytes.append(body)
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Says nothing."""


class Collector:
    """Rotel. It holds spans for a tenth of a second, and keeps none."""

    def __init__(self, world):
        self._desk = ThreadingHTTPServer(("127.0.0.1", 0), _Desk)
        self._desk.lock, self._desk.spans, self._desk.bytes = threading.Lock(), [], []
        threading.Thread(target=self._desk.serve_forever, daemon=True).start()
        self.port = free_port()
        arguments = ["start", "--otlp-grpc-endpoint", f"127.0.0.1:{self.port}"]
        arguments += ["--otlp-http-endpoint", f"127.0.0.1:{free_port()}", "--batch-timeout", "100ms"]
        arguments += ["--exporter", "otlp", "--otlp-exporter-protocol", "http"]
        arguments += ["--otlp-exporter-endpoint", f"http://127.0.0.1:{self._desk.server_port}"]
        self._process = Process("collector", arguments, world.logs / "collector.log", program=_program())
        until("the collector listens", self._listens)

    def _listens(self):
        assert self._process.alive(), self._process.said()[-2000:]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def env(self):
        """What makes a role send its spans here, and soon."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def spans(self):
        """All that have come."""
        with self._desk.lock:
            return list(self._desk.spans)

    def bytes(self):
        """The same as it came over the line."""
        with self._desk.lock:
            return b"".join(self._desk.bytes)

    def trace(self, request, count):
        """The spans of the trace of a request of the gateway's, once there are so many."""

        def whole():
            all_of_them = self.spans()
            roots = [s for s in all_of_them if s.said.get("pointsman.request_id") == request and s.kind == "server"]
            found = [s for s in all_of_them if roots and s.trace == roots[0].trace]
            return found if len(found) >= count else None

        found = until(f"{count} spans of {request}", whole)
        assert len(found) == count, found
        return found

    def close(self):
        """Ends it."""
        self._process.kill()
        self._desk.shutdown()
        self._desk.server_close()


def _program():
    """Where its package has it."""
    program = Path(sysconfig.get_path("purelib")) / "rotel" / "rotel-agent"
    found = program if program.exists() else shutil.which("rotel-agent")
    assert found, "rotel is missing: run these tests by `cargo xtask test --only python-sdk`"
    return found
