"""The ASGI application: routes made of the endpoints, and what surrounds them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nvmuser.api import objects, openapi, page
from nvmuser.api.host import Host
from nvmuser.api.metrics import Metrics
from nvmuser.api.operations import Operations
from nvmuser.api.problems import Problem
from nvmuser.api.rate import Rate
from nvmuser.api.routing import Call, Endpoint, Gate, Reply, answer, refused
from nvmuser.api.service import Service
from nvmuser.api.tokens import Tokens
from nvmuser.api.watching import Watching

_STRANGERS = 10.0
"""Requests a second of one address that are refused because nobody knows who asks."""

log = logging.getLogger(__name__)


def endpoints(host: Host, operations: Operations, watching: Watching, *, latencies: bool = False) -> list[Endpoint]:
    """Everything that the API offers."""
    found = [
        *objects.endpoints(operations),
        *objects.attaching(operations),
        *objects.renaming(operations),
        *Tokens(host).endpoints(),
        *Service(host, operations, watching).endpoints(),
        Metrics(host, watching, latencies=latencies).endpoint(),
    ]

    async def show(call: Call) -> Reply:
        return Reply(openapi.document(found))

    async def alive(call: Call) -> Reply:
        return Reply({"alive": True})

    anything = {200: {"type": "object"}}
    found.append(Endpoint("GET", "/openapi.json", show, "show_openapi", "This document.", "", results=anything))
    found.append(Endpoint("GET", "/healthz", alive, "show_health", "Does the API answer?", "", results=anything))
    return found


def described() -> dict[str, Any]:
    """The OpenAPI document, for which no host is needed: its endpoints are not called."""
    nowhere: Any = None
    return openapi.document(endpoints(nowhere, Operations(), Watching(nowhere)))


def application(host: Host, per_s: float = 1000.0, *, latencies: bool = False) -> Starlette:
    """The application of one host, which it opens and closes.

    :param per_s: requests a second that each principal may make.
    :param latencies: metrics have histograms of volumes' latencies.
    """
    operations, watching = Operations(), Watching(host)
    gate = Gate(host, Rate(per_s, 2 * per_s), Rate(_STRANGERS, 10 * _STRANGERS))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with host:
            try:
                yield
            finally:
                await watching.close()

    handlers = {HTTPException: _http, Exception: _defect}
    app = Starlette(
        routes=_routes(gate, endpoints(host, operations, watching, latencies=latencies)),
        lifespan=lifespan,
        exception_handlers=handlers,
    )
    app.state.watching = watching
    return app


def _routes(gate: Gate, found: list[Endpoint]) -> list[Route]:
    """One for each path, so that a method that it has not is answered with those that it has."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in found:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    ours = [Route(path, _handler(gate, methods), methods=list(methods)) for path, methods in by_path.items()]
    return [*page.routes(), *ours]


def _handler(gate: Gate, methods: dict[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await answer(gate, methods["GET" if request.method == "HEAD" else request.method], request)

    return handle


async def _http(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, not a method of it."""
    assert isinstance(error, HTTPException)
    code = {404: "not-found", 405: "usage"}.get(error.status_code, "usage")
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return refused(Problem(error.status_code, code, detail, headers=error.headers or {}))


async def _defect(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return refused(Problem(500, "error", f"{type(error).__name__}: {error}"))
