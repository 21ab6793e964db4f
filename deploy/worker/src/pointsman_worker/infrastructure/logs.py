"""Log lines: a JSON object each, or plain text for people. Never a prompt, an answer, a key, or an error's text."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from pointsman_worker.application.observer import Record

NAME = "pointsman.worker"
"""The only logger whose lines are ours."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "warning": logging.WARNING}
_QUIET = ("grpc", "httpx", "httpcore", "asyncio", "opentelemetry")


def set_up(level: str, form: str, model: str, instance_id: str) -> None:
    """Sends all log lines to standard error. Libraries may warn, but not quote what they were given."""
    handler = logging.StreamHandler(sys.stderr)
    always = {"model": model, "instance_id": instance_id}
    handler.setFormatter(JsonLines(always) if form == "json" else TextLines(always))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger(NAME).setLevel(LEVELS.get(level, logging.ERROR))
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def event(level: int, text: str, **fields: object) -> None:
    """Writes one line."""
    logging.getLogger(NAME).log(level, text, extra={"fields": fields})


class RequestLog:
    """One line for each request, at its end."""

    def request_ended(self, record: Record) -> None:
        """Writes it: a warning where the worker or its backend is at fault, else for information."""
        fields: dict[str, object] = {
            "session_id": record.session_id,
            "request_id": record.request_id,
            "outcome": record.outcome,
            "tokens": record.tokens,
            "duration_ms": round(record.duration * 1000, 1),
            "trace_id": record.trace_id,
            "span_id": record.span_id,
            "cause": record.cause,
        }
        if record.first_token is not None:
            fields["ttft_ms"] = round(record.first_token * 1000, 1)
        if record.retries is not None:
            fields["retries"] = record.retries
        if record.resumed_at is not None:
            fields["resumed_at"] = record.resumed_at
        ours = record.outcome in ("backend_failed", "credentials_refused", "unavailable")
        told = {name: value for name, value in fields.items() if value != ""}
        event(logging.WARNING if ours else logging.INFO, "request", **told)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, always: dict[str, str]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {"timestamp": _when(record), "level": record.levelname.lower(), **self._always}
        line["message"] = _what(record)
        line.update(getattr(record, "fields", {}))
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """For reading along."""

    def __init__(self, always: dict[str, str]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        return f"{_when(record)} {record.levelname:7} {_what(record)} {fields}".rstrip()


def _when(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _what(record: logging.LogRecord) -> str:
    """The message. Of a library's line only who said it and what was raised: its text may quote a request."""
    if record.name == NAME:
        return record.getMessage()
    kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
    return f"a line of {record.name} at {record.filename}:{record.lineno} {kind}".rstrip()
