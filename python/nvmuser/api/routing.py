"""An endpoint of the API: how it is asked, what it needs, what it answers. Routes and the OpenAPI document are both
made from these, so that they cannot differ.

Owns what every request has in common: who asks, its parameters, its body, and how an error is answered.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from nvmuser.api import auth, bodies
from nvmuser.api.auth import Peer, Principal
from nvmuser.api.host import Host
from nvmuser.api.problems import MEDIA_TYPE, Problem, of_error
from nvmuser.api.rate import Rate
from nvmuser.errors import NvmuserError

BODY_MAX = 1 << 20
BODY_S = 30.0
"""How long a body may take to come."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parameter:
    """Of the query, or a header.

    :param type: as JSON Schema has it: string, integer, boolean.
    """

    name: str
    type: str
    description: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    where: str = "query"

    def read(self, text: str) -> Any:
        """:raises Problem: it is none of its type."""
        match self.type:
            case "boolean" if text in ("true", "false"):
                return text == "true"
            case "integer" if text.isascii() and text.isdigit() and len(text) < 19:
                value = int(text)
                if self.rules.get("minimum", 0) <= value <= self.rules.get("maximum", value):
                    return value
            case "string" if text:
                return text
        ranges = ", ".join(f"{key} {value}" for key, value in self.rules.items() if key != "default")
        kind = "true or false" if self.type == "boolean" else self.type + (f", {ranges}" if ranges else "")
        raise Problem(400, "usage", f"{self.name}={text[:80]!r}: expected {kind}")


@dataclass(frozen=True)
class Reply:
    """What is answered, as JSON."""

    data: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """One request, whose asker is known and may ask it."""

    request: Request
    host: Host
    principal: Principal
    query: Mapping[str, Any]

    @property
    def path(self) -> Mapping[str, str]:
        return self.request.path_params

    def header(self, name: str) -> str:
        return self.request.headers.get(name, "")

    async def text(self, limit: int = BODY_MAX) -> bytes:
        """The body.

        :raises Problem: it is too large, or does not come.
        """
        found = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in self.request.stream():
                    found += chunk
                    if len(found) > limit:
                        raise Problem(413, "usage", f"the body has more than {limit} bytes")
        except TimeoutError:
            raise Problem(408, "usage", f"the body has not come within {BODY_S:g} s") from None
        except ClientDisconnect:
            raise Problem(400, "usage", "the body has not come: the client hung up") from None
        return bytes(found)

    async def body(self) -> Any:
        """The body as JSON.

        :raises Problem: it is none.
        """
        kind = self.header("content-type").partition(";")[0].strip().lower()
        if kind and kind != "application/json" and not kind.endswith("+json"):
            raise Problem(415, "usage", f"{kind[:80]}: expected application/json")
        return bodies.parse(await self.text())


Handler = Callable[[Call], Awaitable[Reply | Response]]


@dataclass(frozen=True)
class Endpoint:
    """:param role: that it needs; empty: nobody need say who they are.
    :param results: status → schema of the answer.
    :param body: schema of the request's body; None: it has none.
    """

    method: str
    path: str
    handler: Handler
    name: str
    summary: str
    role: str = "viewer"
    parameters: tuple[Parameter, ...] = ()
    body: Mapping[str, Any] | None = None
    results: Mapping[int, Mapping[str, Any]] = field(default_factory=lambda: {200: {}})
    media_type: str = "application/json"

    def read(self, request: Request) -> dict[str, Any]:
        """The parameters of a request.

        :raises Problem: one is unknown, given twice, or wrong.
        """
        known = {one.name: one for one in self.parameters if one.where == "query"}
        found: dict[str, Any] = {one.name: one.rules["default"] for one in known.values() if "default" in one.rules}
        seen: set[str] = set()
        for name, text in request.query_params.multi_items():
            if name not in known:
                raise Problem(400, "usage", f"unknown parameter {name[:80]!r}; known are {', '.join(known) or 'none'}")
            if name in seen:
                raise Problem(400, "usage", f"{name}: given twice")
            seen.add(name)
            found[name] = known[name].read(text)
        return found


@dataclass
class Gate:
    """Lets in who may.

    :param strangers: how many requests an address may make that are refused.
    """

    host: Host
    rate: Rate
    strangers: Rate

    async def enter(self, endpoint: Endpoint, request: Request) -> Principal:
        """:raises Problem: they may not, or not so often."""
        peer: Peer = request.state.peer
        if not endpoint.role:
            return Principal("", "viewer", peer.address)
        try:
            principal = auth.identify(peer, request.headers, await self.host.credentials())
        except Problem:
            self._wait(self.strangers, peer.address)
            raise
        self._wait(self.rate, principal.name)
        auth.check(principal, endpoint.role)
        return principal

    @staticmethod
    def _wait(rate: Rate, who: str) -> None:
        if seconds := rate.wait(who):
            headers = {"Retry-After": str(int(seconds) + 1)}
            raise Problem(429, "rate", f"more requests than are taken of {who}: wait", headers=headers)


async def answer(gate: Gate, endpoint: Endpoint, request: Request) -> Response:
    """Carry out one request."""
    try:
        principal = await gate.enter(endpoint, request)
        found = await endpoint.handler(Call(request, gate.host, principal, endpoint.read(request)))
    except Problem as problem:
        return refused(problem)
    except (NvmuserError, OSError) as error:
        return refused(of_error(error))
    if isinstance(found, Response):
        return found
    return Response(encoded(found.data), found.status, dict(found.headers), media_type="application/json")


def refused(problem: Problem) -> Response:
    """A problem as a response."""
    return Response(encoded(problem.to_json()), problem.status, dict(problem.headers), media_type=MEDIA_TYPE)


def encoded(data: Any) -> bytes:
    """JSON without spaces."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
