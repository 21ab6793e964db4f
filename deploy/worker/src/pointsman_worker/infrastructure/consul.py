"""Consul's agent, as far as a worker needs it: register, report, deregister.

A TTL check, not a gRPC check: a worker behind a container's network reaches the agent more often than the agent reaches
it, and one that hangs stops reporting. Only the standard library: three small calls need no client.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from pointsman_worker.application.presence import RegistryDown, RegistryLost
from pointsman_worker.domain.naming import service_name
from pointsman_worker.infrastructure import settings

TTL_SECONDS = 15
"""A worker that says nothing for so long counts as dead."""
REPORT_SECONDS = TTL_SECONDS / 3
"""Two reports may get lost."""
FORGET_AFTER = "10m"
"""When Consul itself removes a worker that died without leaving."""
CALL_SECONDS = 5.0
ANSWER_BYTES_MAX = 64 * 1024
OUTPUT_CHARACTERS_MAX = 200
UNKNOWN = ("unknown check", "unknown service", "does not have associated ttl")
"""How an older agent says that it does not know a worker; a newer one says 404."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What Consul is told. `meta` values are exact; only the service's name is bent to what DNS can carry."""

    instance_id: str
    model: str
    address: settings.Address
    meta: Mapping[str, str]

    @property
    def check_id(self) -> str:
        """The TTL check's id."""
        return f"{self.instance_id}:ttl"

    def body(self) -> dict[str, Any]:
        """The JSON that registers it."""
        return {
            "ID": self.instance_id,
            "Name": service_name(self.model),
            "Address": self.address.host,
            "Port": self.address.port,
            "Meta": {"model": self.model, "protocol": "grpc", **self.meta},
            "Check": {
                "CheckID": self.check_id,
                "Name": "worker reports",
                "TTL": f"{TTL_SECONDS}s",
                "DeregisterCriticalServiceAfter": FORGET_AFTER,
            },
        }


class ConsulAgent:
    """Speaks to one agent. Calls run in a thread and end within `CALL_SECONDS` for each step on the network.

    Raises `BadSettings` where its certificates cannot be read.
    """

    def __init__(self, where: settings.Consul, what: Registration) -> None:
        self._url = urlsplit(where.url)
        self._token = where.token
        self._what = what
        self._tls = _tls(where) if self._url.scheme == "https" else None
        self._shows = bool(where.cert)

    async def register(self) -> None:
        """Makes the worker known; again is the same as once."""
        try:
            await self._put("/v1/agent/service/register", self._what.body())
        except RegistryLost as error:
            raise RegistryDown("consul answered 404: CONSUL_HTTP_ADDR names something else") from error

    async def report(self, trouble: str) -> None:
        """Renews the TTL: passing, or critical with the reason."""
        status = {"Status": "critical" if trouble else "passing", "Output": trouble[:OUTPUT_CHARACTERS_MAX]}
        await self._put(f"/v1/agent/check/update/{quote(self._what.check_id, safe='')}", status)

    async def deregister(self) -> None:
        """Takes the worker off. One that was never there is off as well."""
        try:
            await self._put(f"/v1/agent/service/deregister/{quote(self._what.instance_id, safe='')}", None)
        except RegistryLost:
            return

    async def _put(self, path: str, body: dict[str, Any] | None) -> None:
        try:
            status, answer = await asyncio.to_thread(self._call, path, body)
        except ssl.SSLCertVerificationError as error:
            why = "its certificate proves nothing to us; CONSUL_CACERT names its authority"
            raise RegistryDown(f"consul is not believed: {error.verify_message}: {why}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            # It hears that we show nothing when the connection stands already, and closes it.
            asked = self._tls is not None and not self._shows and not isinstance(error, ConnectionRefusedError)
            hint = "; where it asks who calls, set CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY" if asked else ""
            raise RegistryDown(f"consul cannot be reached: {type(error).__name__}{hint}") from error
        if status == 404 or (status == 500 and any(words in answer.lower() for words in UNKNOWN)):
            raise RegistryLost
        if status in (401, 403):
            raise RegistryDown(f"consul answered {status}: CONSUL_HTTP_TOKEN may not write this service")
        if status != 200:
            raise RegistryDown(f"consul answered {status}")

    def _call(self, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["X-Consul-Token"] = self._token
        connection = self._connection()
        try:
            text = None if body is None else json.dumps(body)
            connection.request("PUT", f"{self._url.path}{path}", text, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(ANSWER_BYTES_MAX).decode(errors="replace")
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._tls is not None:
            return http.client.HTTPSConnection(host, self._url.port, timeout=CALL_SECONDS, context=self._tls)
        return http.client.HTTPConnection(host, self._url.port or 8500, timeout=CALL_SECONDS)


def _tls(where: settings.Consul) -> ssl.SSLContext:
    """Whom an agent over TLS must prove to be, and what it is shown. Raises `BadSettings` naming the variable."""
    context = ssl.create_default_context()
    try:
        if where.ca:
            context.load_verify_locations(where.ca)
    except (OSError, ssl.SSLError) as error:
        raise settings.BadSettings(f"CONSUL_CACERT: no PEM file of authorities: {error.strerror or error}") from error
    try:
        if where.cert:
            # A key behind a password would be asked for at a terminal that nobody sits at.
            context.load_cert_chain(where.cert, where.key, password="")
    except (OSError, ssl.SSLError) as error:
        names = "CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY"
        raise settings.BadSettings(f"{names}: no PEM files that fit: {error.strerror or error}") from error
    return context
