"""Log lines and metrics as others read them."""

from __future__ import annotations

import json
import logging

import pytest

from pointsman_worker.application.gate import Gate
from pointsman_worker.application.observer import Record
from pointsman_worker.domain.model import Usage
from pointsman_worker.infrastructure import logs
from pointsman_worker.infrastructure.metrics import Metrics

RECORD = Record("r", "s", "t" * 32, "p" * 16, "ok", "", 5, 2, 1.5, 0.25, Usage(3, 7), retries=1)


class Lines:
    """What went to standard error since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def getvalue(self) -> str:
        return self._capsys.readouterr().err


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Standard error, with the logging of the tests put back afterwards."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    return Lines(capsys)


def test_a_request_is_one_json_line_with_what_is_known(lines: Lines) -> None:
    logs.set_up("info", "json", "demo", "w-1")
    logs.RequestLog().request_ended(RECORD)
    line = json.loads(lines.getvalue())
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "level": "info",
        "model": "demo",
        "instance_id": "w-1",
        "message": "request",
        "session_id": "s",
        "request_id": "r",
        "outcome": "ok",
        "tokens": 5,
        "duration_ms": 1500.0,
        "trace_id": "t" * 32,
        "span_id": "p" * 16,
        "ttft_ms": 250.0,
        "resumed_at": 2,
        "retries": 1,
    }


def test_text_is_for_people_and_levels_hold(lines: Lines) -> None:
    logs.set_up("warning", "text", "demo", "w-1")
    logs.RequestLog().request_ended(RECORD)
    assert lines.getvalue() == ""
    logs.RequestLog().request_ended(Record(outcome="backend_failed", cause="ValueError at x.py:1"))
    assert "WARNING request outcome=backend_failed" in lines.getvalue()


def test_a_librarys_line_is_named_but_not_quoted(lines: Lines) -> None:
    logs.set_up("debug", "json", "demo", "w-1")
    try:
        raise ValueError("a prompt")
    except ValueError:
        logging.getLogger("somebody").exception("failed with a prompt")
    line = lines.getvalue()
    assert "prompt" not in line
    assert "a line of somebody at test_logs.py" in line
    assert "ValueError" in line


def test_metrics_count_and_name_nobody() -> None:
    gate = Gate(4, 4)
    metrics = Metrics("demo", gate)
    metrics.request_ended(RECORD)
    metrics.request_ended(Record(outcome="full"))
    page = metrics.page().decode()
    for line in (
        'pointsman_worker_requests_total{model="demo",outcome="ok"} 1.0',
        'pointsman_worker_requests_total{model="demo",outcome="full"} 1.0',
        'pointsman_worker_tokens_total{model="demo",type="completion"} 5.0',
        'pointsman_worker_tokens_total{model="demo",type="prompt"} 3.0',
        'pointsman_worker_resumed_total{model="demo"} 1.0',
        'pointsman_worker_first_token_seconds_count{model="demo"} 1.0',
        'pointsman_worker_running_max{model="demo"} 4.0',
        'pointsman_worker_draining{model="demo"} 0.0',
    ):
        assert line in page.splitlines()
    gate.drain()
    assert 'pointsman_worker_draining{model="demo"} 1.0' in metrics.page().decode()
