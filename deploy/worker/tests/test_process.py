"""The process itself: started as people start it, asked over the network, ended by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman.inference.v1 import inference_pb2_grpc as wire_grpc

from fake_consul import FakeConsul
from fake_openai import fake_openai, says
from worlds import WAIT, request

SERVICE = "pointsman.inference.v1.InferenceService"
SECRET = "a-prompt-nobody-may-log"


class Worker:
    """One process. Its log lines are read as they come."""

    def __init__(self, **environment: str) -> None:
        told = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
        told |= {"MODEL_NAME": "demo", "LISTEN_ADDR": "127.0.0.1:0", "METRICS_ADDR": "127.0.0.1:0"}
        told |= {"PYTHONDONTWRITEBYTECODE": "1", **environment}
        command = [sys.executable, "-m", "pointsman_worker"]
        self.process = subprocess.Popen(command, env=told, stderr=subprocess.PIPE, text=True)
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.raw.append(line)
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))

    def said(self, message: str) -> dict[str, Any]:
        """The first line with this message, once it came."""
        wait_for(lambda: any(line["message"] == message for line in self.lines) or self.process.poll() is not None)
        found = [line for line in self.lines if line["message"] == message]
        assert found, "".join(self.raw)
        return found[0]

    def ended(self) -> int:
        """The exit status."""
        status = self.process.wait(WAIT)
        self._reader.join(WAIT)
        return status

    def get(self, path: str) -> tuple[int, str]:
        """A page of the HTTP port."""
        address = self.said("serving")["http"][0]
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=WAIT) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextlib.contextmanager
def running(**environment: str) -> Iterator[Worker]:
    worker = Worker(**environment)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()


@contextlib.contextmanager
def calling(worker: Worker) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(worker.said("serving")["grpc"]) as channel:
        yield channel


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def health(channel: grpc.Channel, service: str = SERVICE) -> str:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_it_serves_tells_how_it_is_and_ends_well_at_a_signal() -> None:
    with running(INSTANCE_ID="w-1") as worker, calling(worker) as channel:
        chunks = list(wire_grpc.InferenceServiceStub(channel).StreamInference(request("a b c"), timeout=WAIT))
        assert "".join(chunk.text for chunk in chunks) == "a b c"
        assert health(channel) == health(channel, "") == "SERVING"
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        assert worker.get("/ready")[0] == 200
        status, page = worker.get("/health")
        assert (status, json.loads(page)["checks"]["backend"]) == (200, "ok")
        metrics = worker.get("/metrics")[1]
        assert 'pointsman_worker_requests_total{model="demo",outcome="ok"} 1.0' in metrics
        assert 'pointsman_worker_tokens_total{model="demo",type="completion"} 3.0' in metrics
        assert worker.get("/else")[0] == 404
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0
        line = worker.said("request")
        assert (line["model"], line["instance_id"], line["request_id"]) == ("demo", "w-1", "request-1")
        assert (line["outcome"], line["tokens"]) == ("ok", 3)


def test_a_run_finishes_while_it_drains_and_new_calls_go_elsewhere() -> None:
    with running(TOKEN_DELAY_MS="100", BACKEND="hash") as worker, calling(worker) as channel:
        stub = wire_grpc.InferenceServiceStub(channel)
        call = stub.StreamInference(request(max_tokens=15), timeout=WAIT)
        chunks = [next(call)]
        worker.process.send_signal(signal.SIGTERM)
        worker.said("draining")
        assert health(channel) == "NOT_SERVING"
        status, page = worker.get("/ready")
        assert (status, json.loads(page)["checks"]["admission"]) == (503, "draining")
        assert worker.get("/health")[0] == 200
        assert stub.Describe(wire.DescribeRequest(), timeout=WAIT).draining
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.StreamInference(request(), timeout=WAIT))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        chunks += list(call)
        assert chunks[-1].finish_reason == "length"
        assert sum(chunk.token_count for chunk in chunks) == 15
        assert worker.ended() == 0
        assert worker.said("stopped")["all_finished"] is True


@pytest.mark.parametrize("how", ["the time runs out", "a second signal"])
def test_draining_ends_what_does_not_end(how: str) -> None:
    seconds = "0.5" if how == "the time runs out" else "60"
    with running(TOKEN_DELAY_MS="50", BACKEND="hash", DRAIN_SECONDS=seconds) as worker, calling(worker) as channel:
        call = wire_grpc.InferenceServiceStub(channel).StreamInference(request(max_tokens=10_000), timeout=WAIT * 3)
        next(call)
        worker.process.send_signal(signal.SIGTERM)
        worker.said("draining")
        if how == "a second signal":
            worker.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert worker.ended() == 0
        assert worker.said("stopped")["all_finished"] is False


def test_it_is_in_consul_while_it_serves() -> None:
    consul = FakeConsul(token="t0ken")
    told = {"CONSUL_HTTP_ADDR": consul.url, "CONSUL_HTTP_TOKEN": "t0ken", "INSTANCE_ID": "w-1"}
    with running(**told, ADVERTISE_ADDR="worker-1:50055") as worker:
        wait_for(lambda: consul.reports)
        service = consul.services["w-1"]
        assert (service["Name"], service["Address"], service["Port"]) == ("llm-demo", "worker-1", 50055)
        assert (service["Meta"]["model"], service["Meta"]["protocol"]) == ("demo", "grpc")
        wait_for(lambda: 'pointsman_worker_registered{model="demo"} 1.0' in worker.get("/metrics")[1])
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0
        assert consul.services == {}
        assert not any("t0ken" in line for line in worker.raw)
    consul.down()


def test_without_its_backend_it_says_so_and_lives() -> None:
    with running(BACKEND="openai", OPENAI_BASE_URL="http://127.0.0.1:1/v1") as worker, calling(worker) as channel:
        assert health(channel) == "NOT_SERVING"
        assert worker.get("/health")[0] == 200
        status, page = worker.get("/ready")
        assert status == 503
        assert "cannot be reached" in json.loads(page)["checks"]["backend"]
        with pytest.raises(grpc.RpcError) as refused:
            list(wire_grpc.InferenceServiceStub(channel).StreamInference(request(), timeout=WAIT))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_no_prompt_no_answer_and_no_key_is_ever_in_a_log() -> None:
    key = "sk-nobody-may-log-this"
    broken = says(b"data: {oops " + SECRET.encode() + b"\n\n")
    async with fake_openai(broken) as fake:
        told = {"BACKEND": "openai", "OPENAI_BASE_URL": fake.url, "OPENAI_API_KEY": key, "LOG_LEVEL": "debug"}
        with running(**told) as worker:
            address = (await asyncio.to_thread(worker.said, "serving"))["grpc"]
            async with grpc.aio.insecure_channel(address) as channel:
                stub: wire_grpc.InferenceServiceAsyncStub = wire_grpc.InferenceServiceStub(channel)
                bad = request(SECRET, extra_json=json.dumps({"n": SECRET}))
                for asked in (request(SECRET), bad):
                    with pytest.raises(grpc.aio.AioRpcError):
                        [chunk async for chunk in stub.StreamInference(asked, timeout=WAIT)]
            worker.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(worker.ended) == 0
            text = "".join(worker.raw)
            outcomes = [line["outcome"] for line in worker.lines if line["message"] == "request"]
            assert outcomes == ["backend_failed", "invalid"]
            assert "BackendFailed at openai_words.py:" in text
            assert SECRET not in text
            assert key not in text


@pytest.mark.parametrize(
    ("told", "status", "words"),
    [
        ({"MODEL_NAME": ""}, 2, "MODEL_NAME: not set"),
        ({"CONCURRENCY": "lots"}, 2, "CONCURRENCY: `lots`"),
        ({"BACKEND": "vllm"}, 2, "BACKEND=vllm needs the package `vllm`"),
        ({"METRICS_ADDR": "no.such.host.invalid:1"}, 1, "METRICS_ADDR"),
    ],
)
def test_a_start_that_cannot_be_is_one_clear_line(told: dict[str, str], status: int, words: str) -> None:
    with running(**told) as worker:
        assert worker.ended() == status
        assert len(worker.raw) == 1
        assert worker.raw[0].startswith(f"pointsman-worker: {words}")


def test_a_signal_ends_it_while_its_model_loads(tmp_path: Path) -> None:
    for name in ("vllm", "vllm/engine", "vllm/v1", "vllm/v1/engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for name in ("sampling_params", "v1/engine/exceptions", "v1/engine/async_llm"):
        (tmp_path / "vllm" / f"{name}.py").touch()
    loads = "import sys, time\ndef AsyncEngineArgs(**_):\n"
    loads += """    print('{"message": "loads"}', file=sys.stderr, flush=True)\n    time.sleep(60)\n"""
    (tmp_path / "vllm/engine/arg_utils.py").write_text(loads)
    with running(BACKEND="vllm", PYTHONPATH=str(tmp_path)) as worker:
        worker.said("loads")
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0


def test_a_collector_that_is_gone_holds_nobody_up() -> None:
    with running(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1") as worker, calling(worker) as channel:
        list(wire_grpc.InferenceServiceStub(channel).StreamInference(request(), timeout=WAIT))
        began = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ended() == 0
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("name", ["LISTEN_ADDR", "METRICS_ADDR"])
def test_a_taken_port_is_one_clear_line(name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with running(**{name: address}) as worker:
            assert worker.ended() == 1
            assert len(worker.raw) == 1
            assert worker.raw[0].startswith(f"pointsman-worker: {name}")
            assert address in worker.raw[0]


def test_a_probe_says_whether_the_worker_is_ready() -> None:
    def probe(address: str) -> int:
        told = {"MODEL_NAME": "demo", "METRICS_ADDR": address}
        command = [sys.executable, "-m", "pointsman_worker", "--probe"]
        return subprocess.run(command, env=told, timeout=WAIT, check=False).returncode

    with running(BACKEND="openai", OPENAI_BASE_URL="http://127.0.0.1:1/v1") as worker:
        assert probe(worker.said("serving")["http"][0]) == 1
    with running() as worker:
        address = worker.said("serving")["http"][0]
        assert probe(address) == 0
    assert probe(address) == 1


@pytest.mark.parametrize(("argument", "status"), [("--help", 0), ("--version", 0), ("--model", 2)])
def test_arguments_are_few(argument: str, status: int) -> None:
    command = [sys.executable, "-m", "pointsman_worker", argument]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert ran.returncode == status
    assert "pointsman-worker" in ran.stdout + ran.stderr
