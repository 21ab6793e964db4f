"""`pointsman.inference.v1.InferenceService`, spoken."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman.inference.v1 import inference_pb2_grpc as wire_grpc
from pointsman_worker import __version__
from pointsman_worker.application.inference import Inference
from pointsman_worker.application.observer import Record
from pointsman_worker.domain import failures, label
from pointsman_worker.domain.model import Chunk
from pointsman_worker.domain.tracing import trace_headers, trace_ids
from pointsman_worker.infrastructure.spans import NoSpans, Spans
from pointsman_worker.interface import convert

RETRY_AFTER = "retry-after-ms"
ID_CHARACTERS_MAX = 128
"""How much of a caller's id goes into a log."""
STATUSES: Mapping[type[failures.Failure], grpc.StatusCode] = {
    failures.InvalidQuestion: grpc.StatusCode.INVALID_ARGUMENT,
    failures.UnknownModel: grpc.StatusCode.NOT_FOUND,
    failures.Full: grpc.StatusCode.RESOURCE_EXHAUSTED,
    failures.Unavailable: grpc.StatusCode.UNAVAILABLE,
    failures.Draining: grpc.StatusCode.UNAVAILABLE,
    failures.CannotResume: grpc.StatusCode.FAILED_PRECONDITION,
    failures.CredentialsRefused: grpc.StatusCode.PERMISSION_DENIED,
    failures.DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    failures.BackendFailed: grpc.StatusCode.INTERNAL,
}

Context = Any
"""`grpc.aio.ServicerContext`; the generated base class knows a union with the blocking one, which this never is."""


class Servicer(wire_grpc.InferenceServiceServicer):
    """Answers calls by way of `Inference`."""

    def __init__(self, worker: Inference, spans: Spans | NoSpans) -> None:
        self._worker = worker
        self._spans = spans

    # The generated type knows generators alone.
    async def StreamInference(self, request: wire.StreamInferenceRequest, context: Context) -> None:  # type: ignore[override]
        """Generates one answer.

        Writes by itself and is no generator: a cancelled call then raises here, wherever it stands, and stops the
        backend before anything else happens.
        """
        metadata = _metadata(context)
        record = Record(
            request_id=_loggable(request.request_id),
            session_id=label.session_id(metadata.get(label.SESSION, "")),
            retries=label.retries(metadata.get(label.ATTEMPT, "")),
        )
        traceparent = metadata.get("traceparent", "")
        record.trace_id, record.span_id = trace_ids(traceparent)
        record.trace_flags = traceparent[53:55] or record.trace_flags

        async def send(chunk: Chunk) -> None:
            await context.write(convert.response(chunk))

        try:
            state = metadata.get("tracestate", "")
            with self._spans.span(trace_headers(traceparent if record.trace_id else "", state), record):
                # With spans, whoever is called hears of this worker's own.
                own = f"00-{record.trace_id}-{record.span_id}-{record.trace_flags}" if record.trace_id else ""
                await self._answer((request, trace_headers(own, state)), context, send, record)
        except failures.Failure as failure:
            await _abort(context, failure)

    async def Describe(self, request: wire.DescribeRequest, context: Context) -> wire.DescribeResponse:
        """What this worker serves, what it can do, and how busy it is."""
        traits = self._worker.backend.traits
        return wire.DescribeResponse(
            models=[self._worker.model],
            backend=traits.name,
            fingerprint=traits.fingerprint,
            resumes_seeded=traits.resumes_seeded,
            load=convert.load(self._worker.load()),
            draining=self._worker.gate.draining,
            version=__version__,
        )

    async def _answer(
        self, asked: tuple[wire.StreamInferenceRequest, dict[str, str]], context: Context, send: Any, record: Record
    ) -> None:
        try:
            question = convert.question(*asked)
        except failures.InvalidQuestion as failure:
            self._worker.refused(record, failure)
            raise
        await self._worker.answer(question, context.time_remaining(), send, record)


async def _abort(context: Context, failure: failures.Failure) -> NoReturn:
    """Ends the call with the status of the failure. Always raises."""
    more: tuple[tuple[str, str], ...] = ()
    if isinstance(failure, failures.Full | failures.Draining):
        more = ((RETRY_AFTER, str(failure.retry_after_ms)),)
    await context.abort(STATUSES[type(failure)], str(failure), more)
    raise asyncio.CancelledError


def _metadata(context: Context) -> dict[str, str]:
    """The caller's metadata that is text."""
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}


def _loggable(text: str) -> str:
    return "".join(letter for letter in text[:ID_CHARACTERS_MAX] if letter.isprintable())
