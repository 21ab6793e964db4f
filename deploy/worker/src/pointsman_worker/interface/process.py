"""The worker's life: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from http import HTTPStatus

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pointsman.inference.v1 import inference_pb2 as wire
from pointsman.inference.v1 import inference_pb2_grpc as wire_grpc
from pointsman_worker import __version__
from pointsman_worker.application.gate import Gate
from pointsman_worker.application.inference import Inference
from pointsman_worker.application.observer import Observers
from pointsman_worker.application.presence import Presence
from pointsman_worker.domain.backend import Backend, StartFailed
from pointsman_worker.infrastructure import consul, logs, spans
from pointsman_worker.infrastructure.metrics import Metrics
from pointsman_worker.infrastructure.settings import Address, Settings
from pointsman_worker.interface.http import Answer, Http, as_json
from pointsman_worker.interface.servicer import Servicer

SERVICE = wire.DESCRIPTOR.services_by_name["InferenceService"].full_name
MESSAGE_BYTES_MAX = 32 * 1024 * 1024
"""A conversation with some pictures in it."""
CALLS_SPARE = 256
"""Calls beside the requests: health, reflection, and those that are about to be told that it is full."""
TROUBLE_SECONDS = 5.0
"""How often the backend is looked at."""
SPANS_SECONDS = 3.0
"""For the last spans; a collector that is gone holds nobody up."""
STOP_SECONDS = 1.0
"""For calls that were told to end to do so."""
GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # Two workers at one port are a mistake, not a load balancer.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # Gateways ping idle connections more often
    ("grpc.keepalive_permit_without_calls", 1),  # than the library's five minutes allow.
)


class Process:
    """Everything that serves, put together."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._gate = Gate(settings.concurrency, settings.queue)
        self._metrics = Metrics(settings.model, self._gate)
        self._spans, self._spans_missing = spans.set_up(
            settings.otlp_endpoint, settings.model, settings.backend, settings.instance_id
        )
        observer = Observers(logs.RequestLog(), self._metrics)
        self._worker = Inference(settings.model, backend, self._gate, observer, settings.request_seconds)
        self._health = health.aio.HealthServicer()
        self._presence: Presence | None = None
        self._trouble = ""

    async def run(self) -> None:
        """Serves until a signal says stop. Raises `StartFailed` where it cannot begin."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._backend.close)
            await self._backend.start()
            stop = _signals()
            http = Http({"/health": self._health_page, "/ready": self._ready_page, "/metrics": self._metrics_page})
            stack.push_async_callback(http.close)
            ports = [await _listen(http, address) for address in self._settings.http]
            server = self._server()
            port = await _bind(server, self._settings.listen)
            await self._look()
            await server.start()
            watcher = asyncio.create_task(self._watch())
            stack.callback(watcher.cancel)
            self._join(port)
            self._say_started(port, ports)
            await stop.wait()
            await self._stop(server, stop)

    def _server(self) -> grpc.aio.Server:
        most = self._settings.concurrency + self._settings.queue + CALLS_SPARE
        server = grpc.aio.server(options=GRPC_OPTIONS, maximum_concurrent_rpcs=most)
        wire_grpc.add_InferenceServiceServicer_to_server(Servicer(self._worker, self._spans), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    async def _stop(self, server: grpc.aio.Server, stop: asyncio.Event) -> None:
        """No more calls, what runs finishes, then the ports close. A second signal ends the waiting."""
        logs.event(logging.INFO, "draining", running=self._gate.running, seconds=self._settings.drain_seconds)
        await self._health.enter_graceful_shutdown()
        stop.clear()
        drain = asyncio.create_task(self._worker.drain(self._settings.drain_seconds))
        if self._presence is not None:
            await self._presence.leave()
        again = asyncio.create_task(stop.wait())
        await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
        finished = drain.done() and drain.result()
        if not finished:
            self._worker.expelled.set()
        await server.stop(STOP_SECONDS)
        for task in (drain, again):
            task.cancel()
        closing = threading.Thread(target=self._spans.close, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, SPANS_SECONDS)
        logs.event(logging.INFO, "stopped", all_finished=finished)

    def _join(self, port: int) -> None:
        if self._settings.consul is None:
            return
        traits = self._backend.traits
        what = consul.Registration(
            self._settings.instance_id,
            self._settings.model,
            self._advertised(port),
            {"backend": traits.name, "fingerprint": traits.fingerprint, "version": __version__},
        )
        agent = consul.ConsulAgent(self._settings.consul, what)
        self._presence = Presence(agent, self._current_trouble, self._registration_changed, consul.REPORT_SECONDS)
        self._presence.start()

    def _advertised(self, port: int) -> Address:
        """Where others reach it: as told, else the address it listens at, else this machine's own."""
        if self._settings.advertise is not None:
            return self._settings.advertise
        host = self._settings.listen.host
        return Address(_own_address() if host in ("0.0.0.0", "::") else host, port)

    def _registration_changed(self, registered: bool, why: str) -> None:
        self._metrics.registered.set(float(registered))
        logs.event(logging.WARNING if why and why != "left" else logging.INFO, "registry", known=registered, why=why)

    async def _current_trouble(self) -> str:
        return self._trouble

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TROUBLE_SECONDS)
            await self._look()

    async def _look(self) -> None:
        """Asks the backend how it is, and tells health and metrics."""
        try:
            trouble = await self._backend.trouble()
        except Exception as error:  # noqa: BLE001 - who looks after the backend must outlive whatever it does
            trouble = f"the backend cannot be asked: {type(error).__name__}"
        if trouble != self._trouble:
            logs.event(logging.WARNING if trouble else logging.INFO, "backend", trouble=trouble)
        self._trouble = trouble
        self._metrics.ready.set(float(not trouble))
        status = health_pb2.HealthCheckResponse.NOT_SERVING if trouble else health_pb2.HealthCheckResponse.SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _say_started(self, port: int, ports: list[int]) -> None:
        if self._spans_missing:
            logs.event(logging.WARNING, self._spans_missing)
        address = str(Address(self._settings.listen.host, port))
        http = [str(Address(at.host, port)) for at, port in zip(self._settings.http, ports, strict=True)]
        logs.event(
            logging.INFO, "serving", grpc=address, http=http, backend=self._backend.traits.name, version=__version__
        )

    def _health_page(self) -> Answer:
        """Alive, as long as it answers: what restarting cannot heal is no reason to restart it."""
        return as_json(HTTPStatus.OK, self._page())

    def _ready_page(self) -> Answer:
        page = self._page()
        return as_json(HTTPStatus.OK if page["healthy"] else HTTPStatus.SERVICE_UNAVAILABLE, page)

    def _page(self) -> dict[str, object]:
        ready = not self._trouble and not self._gate.draining
        checks = {
            "backend": self._trouble or "ok",
            "admission": "draining" if self._gate.draining else "ok",
            "registry": "none" if self._presence is None else "ok" if self._presence.registered else "unknown to it",
        }
        return {
            "status": "ok" if ready else "degraded",
            "healthy": ready,
            "service": "worker",
            "version": __version__,
            "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
            "checks": checks,
        }

    def _metrics_page(self) -> Answer:
        return HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", self._metrics.page()


def _signals() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _listen(http: Http, address: Address) -> int:
    try:
        return await http.start(address)
    except OSError as error:
        raise StartFailed(f"METRICS_ADDR, HEALTH_ADDR: cannot listen at {address}: {error.strerror}") from error


async def _bind(server: grpc.aio.Server, address: Address) -> int:
    try:
        return server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise StartFailed(f"LISTEN_ADDR: cannot listen at {address}: is another process there?") from error


def _own_address() -> str:
    """The address that this machine sends from. Asks the routing table; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # An address kept for documentation (RFC 5737): never a host.
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address
