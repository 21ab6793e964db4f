"""What the environment says, checked before anything starts."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

BACKENDS = ("echo", "hash", "openai", "vllm", "transformers")
MODEL_CHARACTERS_MAX = 200
"""Model names are a few dozen characters; a registry's metadata takes 512."""
ID_CHARACTERS_MAX = 128

T = TypeVar("T")


class BadSettings(Exception):
    """A variable is missing or wrong. The text is one line that names it and says what to do; never its secret."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Consul:
    """Where Consul's agent is. What is empty is not used.

    Over `https://`: `ca` is a PEM file of authorities to believe beside the system's own; `cert` and `key`, which come
    together, are what an agent is shown that asks who calls.
    """

    url: str
    token: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class OpenAI:
    """Which OpenAI-compatible server to ask, for which model. `api_key` may be empty.

    `continues` names what the server runs, where it continues the answers of others that run the same; else empty.
    """

    base_url: str
    api_key: str
    model: str
    idle_seconds: float
    continues: str = ""


@dataclass(frozen=True, slots=True)
class Local:
    """What a backend in this process loads. `args` go to the library as they are."""

    path: str
    revision: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """All of it. Durations in seconds."""

    model: str
    backend: str
    listen: Address
    http: tuple[Address, ...]
    concurrency: int
    queue: int
    drain_seconds: float
    request_seconds: float
    token_delay: float
    openai: OpenAI
    local: Local
    consul: Consul | None
    instance_id: str
    advertise: Address | None
    log_level: str
    log_format: str
    otlp_endpoint: str | None


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """Reads the environment. Raises `BadSettings` at the first variable that is wrong."""
    env = _Environment(os.environ if environment is None else environment)
    model = env.get("MODEL_NAME", "", _model)
    return Settings(
        model=model,
        backend=env.get("BACKEND", "echo", _one_of(BACKENDS)),
        listen=env.get("LISTEN_ADDR", "0.0.0.0:50055", _address),
        http=_http(env),
        concurrency=env.get("CONCURRENCY", "16", _whole(1, 10_000)),
        queue=env.get("QUEUE", "64", _whole(0, 100_000)),
        drain_seconds=env.get("DRAIN_SECONDS", "30", _number(0, 86_400)),
        request_seconds=env.get("REQUEST_SECONDS", "3600", _number(0.1, 86_400)),
        token_delay=env.get("TOKEN_DELAY_MS", "0", _number(0, 60_000)) / 1000,
        openai=OpenAI(
            base_url=env.get("OPENAI_BASE_URL", "https://api.openai.com/v1", _url),
            api_key=env.get("OPENAI_API_KEY", "", _secret),
            model=env.get("OPENAI_MODEL", model, _model),
            idle_seconds=env.get("OPENAI_IDLE_SECONDS", "120", _number(0.1, 86_400)),
            continues=env.get("OPENAI_CONTINUES", "", _optional(_model)) or "",
        ),
        local=Local(
            path=env.get("MODEL_PATH", model, _model),
            revision=env.get("MODEL_REVISION", "", _plain),
            args=env.get("BACKEND_ARGS", "{}", _object),
        ),
        consul=_consul(env),
        instance_id=env.get("INSTANCE_ID", f"{socket.gethostname()}-{secrets.token_hex(4)}", _id),
        advertise=env.get("ADVERTISE_ADDR", "", _optional(_reachable)),
        log_level=env.get("LOG_LEVEL", "info", _one_of(("debug", "info", "warn", "warning", "error"))),
        log_format=env.get("LOG_FORMAT", "json", _one_of(("json", "text"))),
        otlp_endpoint=env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "", _optional(_url)),
    )


class _Environment:
    """Reads one variable at a time. An empty variable counts as absent, as compose files leave them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def get(self, name: str, default: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(self._values.get(name, "").strip() or default)
        except ValueError as error:
            raise BadSettings(f"{name}: {error}") from None

    def has(self, name: str) -> bool:
        return bool(self._values.get(name, "").strip())


def _http(env: _Environment) -> tuple[Address, ...]:
    """Where /health, /ready and /metrics are: at METRICS_ADDR, and at HEALTH_ADDR where that is another."""
    metrics = env.get("METRICS_ADDR", "0.0.0.0:9464", _address)
    if not env.has("HEALTH_ADDR"):
        return (metrics,)
    health = env.get("HEALTH_ADDR", "", _address)
    return (health,) if health == metrics or not env.has("METRICS_ADDR") else (health, metrics)


def _consul(env: _Environment) -> Consul | None:
    url = env.get("CONSUL_HTTP_ADDR", "", _optional(_consul_url))
    token = env.get("CONSUL_HTTP_TOKEN", "", _secret)
    ca = env.get("CONSUL_CACERT", "", _plain)
    cert = env.get("CONSUL_CLIENT_CERT", "", _plain)
    key = env.get("CONSUL_CLIENT_KEY", "", _plain)
    if not (url or "").startswith("https://"):
        # Beside http:// they are meant for other programs.
        ca = cert = key = ""
    if bool(cert) != bool(key):
        there, missing = ("CERT", "KEY") if cert else ("KEY", "CERT")
        raise BadSettings(f"CONSUL_CLIENT_{there}: goes with CONSUL_CLIENT_{missing}, which is not set")
    return Consul(url, token, ca, cert, key) if url else None


def _model(text: str) -> str:
    if not text:
        raise ValueError("not set; give the name of the model that this worker serves")
    if len(text) > MODEL_CHARACTERS_MAX or not text.isprintable():
        raise ValueError(f"give at most {MODEL_CHARACTERS_MAX} printable characters")
    return text


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("give printable characters")
    return text


def _id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", text) or len(text) > ID_CHARACTERS_MAX:
        raise ValueError(f"give at most {ID_CHARACTERS_MAX} of A-Z, a-z, 0-9 and ._:-")
    return text


def _secret(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError("holds what no header can carry; give printable ASCII")
    return text


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65_535 or not host.isprintable():
        raise ValueError(f"`{text}` is no address; give HOST:PORT, as 0.0.0.0:50055")
    return Address(host or "0.0.0.0", int(port))


def _reachable(text: str) -> Address:
    address = _address(text)
    if address.host in ("0.0.0.0", "::") or address.port == 0:
        raise ValueError(f"`{text}` cannot be called by others; give the host and port they reach")
    return address


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no URL; give http:// or https://, a host, and the path if there is one")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("give the URL without credentials, query or fragment")
    _ = parts.port
    return text.rstrip("/")


def _consul_url(text: str) -> str:
    return _url(text if "://" in text else f"http://{text}")


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError('give a JSON object, as {"dtype": "bfloat16"}')
    return found


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError(f"`{text}` is unknown; give one of {', '.join(names)}")
        return text.lower()

    return parse


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"`{text}` does not fit; give a whole number from {least} to {most}")
        return int(text)

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise ValueError(f"`{text}` does not fit; give a number from {least} to {most}")
        return value

    return parse


def _optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    def parsed(text: str) -> T | None:
        return parse(text) if text else None

    return parsed
