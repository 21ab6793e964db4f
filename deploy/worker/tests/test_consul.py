"""Presence in Consul: known while it lives, known again when it was forgotten, gone when it left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pointsman_worker.application.presence import LEAVE_SECONDS, Presence, RegistryDown
from pointsman_worker.infrastructure.consul import ConsulAgent, Registration
from pointsman_worker.infrastructure.settings import Address, BadSettings, Consul

from fake_consul import FakeConsul
from worlds import until

MODEL = "Qwen/Qwen2.5-7B"


def agent(url: str, token: str = "") -> ConsulAgent:
    meta = {"backend": "echo", "version": "1", "fingerprint": "f"}
    what = Registration("worker/1", MODEL, Address("10.0.0.7", 50055), meta)
    return ConsulAgent(Consul(url, token), what)


class World:
    """A presence whose worker's trouble a test can set."""

    def __init__(self, url: str, token: str = "") -> None:
        self.trouble = ""
        self.said: list[tuple[bool, str]] = []
        self.presence = Presence(
            agent(url, token), self._trouble, lambda known, why: self.said.append((known, why)), 0.02, 0.02
        )

    async def _trouble(self) -> str:
        return self.trouble


@contextlib.asynccontextmanager
async def present(url: str, token: str = "") -> AsyncIterator[World]:
    world = World(url, token)
    world.presence.start()
    try:
        yield world
    finally:
        await world.presence.leave()


async def test_a_worker_is_known_under_its_model_and_leaves() -> None:
    consul = FakeConsul()
    async with present(consul.url):
        await until(lambda: consul.reports)
        assert consul.services == {
            "worker/1": {
                "ID": "worker/1",
                "Name": "llm-Qwen-Qwen2-5-7B",
                "Address": "10.0.0.7",
                "Port": 50055,
                "Meta": {"model": MODEL, "protocol": "grpc", "backend": "echo", "version": "1", "fingerprint": "f"},
                "Check": {
                    "CheckID": "worker/1:ttl",
                    "Name": "worker reports",
                    "TTL": "15s",
                    "DeregisterCriticalServiceAfter": "10m",
                },
            }
        }
        assert consul.reports[0] == ("worker/1:ttl", "passing", "")
    assert consul.services == {}
    consul.down()


async def test_trouble_makes_the_check_critical_and_its_end_passing_again() -> None:
    consul = FakeConsul()
    async with present(consul.url) as world:
        world.trouble = "the backend is gone " + "x" * 500
        await until(lambda: consul.reports and consul.reports[-1][1] == "critical")
        assert len(consul.reports[-1][2]) == 200
        world.trouble = ""
        await until(lambda: consul.reports[-1][1] == "passing")
    consul.down()


async def test_a_consul_that_forgot_is_told_again() -> None:
    consul = FakeConsul()
    async with present(consul.url) as world:
        await until(lambda: consul.reports)
        consul.lose()
        await until(lambda: consul.services)
        assert consul.registered == 2
        assert (False, "the registry forgot this worker") in world.said
    consul.down()


async def test_a_consul_that_comes_late_or_back_finds_the_worker() -> None:
    consul = FakeConsul()
    port = consul.port
    consul.down()
    async with present(f"http://127.0.0.1:{port}") as world:
        await until(lambda: len(world.said) > 1)
        assert not world.presence.registered
        consul = FakeConsul(port)
        await until(lambda: consul.services)
        consul.down()
        await until(lambda: not world.presence.registered)
        consul = FakeConsul(port)
        await until(lambda: consul.services)
    assert consul.services == {}
    consul.down()


@pytest.mark.parametrize(("status", "words"), [(500, "500"), (403, "CONSUL_HTTP_TOKEN"), (404, "CONSUL_HTTP_ADDR")])
async def test_a_refusal_is_named_and_tried_again(status: int, words: str) -> None:
    consul = FakeConsul()
    consul.answer_with = status
    async with present(consul.url) as world:
        await until(lambda: len(world.said) > 1)
        assert words in world.said[0][1]
        consul.answer_with = 0
        await until(lambda: world.presence.registered)
    consul.down()


async def test_the_token_is_sent() -> None:
    consul = FakeConsul(token="secret")
    async with present(consul.url, "secret"):
        await until(lambda: consul.services)
    consul.down()
    consul = FakeConsul(token="secret")
    with pytest.raises(RegistryDown, match="CONSUL_HTTP_TOKEN"):
        await agent(consul.url, "wrong").register()
    consul.down()


async def test_leaving_a_consul_that_is_down_does_not_hold_the_worker_up() -> None:
    consul = FakeConsul()
    async with present(consul.url) as world:
        await until(lambda: consul.services)
        consul.down()
        began = time.monotonic()
        await world.presence.leave()
        assert time.monotonic() - began < LEAVE_SECONDS + 1
        assert world.said[-1][1].startswith("left without taking leave")


class SlowRegistry:
    """Writes in a thread, as the agent's client does: what is begun cannot be called back."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.did: list[str] = []

    def _register(self) -> None:
        self.begun.set()
        self.may_end.wait(5)
        self.did.append("register")

    async def register(self) -> None:
        await asyncio.to_thread(self._register)

    async def report(self, _: str) -> None:
        self.did.append("report")

    async def deregister(self) -> None:
        self.did.append("deregister")


async def test_a_registration_under_way_is_not_overtaken_by_the_farewell() -> None:
    async def well() -> str:
        return ""

    registry = SlowRegistry()
    presence = Presence(registry, well, lambda _known, _why: None, 60)
    presence.start()
    await until(registry.begun.is_set)
    leaving = asyncio.create_task(presence.leave())
    await asyncio.sleep(0.05)
    registry.may_end.set()
    await leaving
    await until(lambda: "register" in registry.did)
    assert registry.did[-1] == "deregister"
    assert not presence.registered


def test_certificates_that_cannot_be_read_are_named_with_their_variable(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for where, name in (
        (Consul("https://c", ca="/nowhere/at/all"), "CONSUL_CACERT: "),
        (Consul("https://c", ca=str(nonsense)), "CONSUL_CACERT: "),
        (Consul("https://c", cert=str(nonsense), key=str(nonsense)), "CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY: "),
    ):
        with pytest.raises(BadSettings) as refused:
            ConsulAgent(where, Registration("worker/1", MODEL, Address("10.0.0.7", 50055), {}))
        assert str(refused.value).startswith(name)
