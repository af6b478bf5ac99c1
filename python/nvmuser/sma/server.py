"""The process that serves SMA: where it listens, who may call, and how an error is answered.

Owns gRPC's server. Who somebody is and what they may is the API's: the same tokens, certificates and roles.
"""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from nvmuser import grpc_server
from nvmuser.api import auth
from nvmuser.api.auth import Peer, Principal
from nvmuser.api.host import Host
from nvmuser.api.problems import Problem, of_error
from nvmuser.api.rate import Rate
from nvmuser.api.tls import Tls
from nvmuser.errors import ConflictError, NvmuserError, UsageError
from nvmuser.sma.devices import Devices, Refused
from nvmuser.sma.messages import CALLS, CLASSES, SERVICE

PORT = 8080
"""SPDK's."""
_REQUEST_MAX = 1 << 20
_CALLS = 256
"""At the same time; further ones are refused."""
_STRANGERS = 10.0
_READS = "GetQosCapabilities"

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "FAILED_PRECONDITION",
    412: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    507: "RESOURCE_EXHAUSTED",
}
"""The API's status of an error → gRPC's."""

log = logging.getLogger(__name__)


def _credentials(tls: Tls) -> Any:
    """With `client_ca`, nobody connects without a certificate that it has signed: gRPC's server either demands one or
    does not ask for it.

    :raises UsageError: a file cannot be read.
    """
    try:
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        ca = tls.client_ca.read_bytes() if tls.client_ca else None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


class _Agent:
    """:param loopback: who comes from this machine's own addresses without credentials is an operator."""

    def __init__(self, host: Host, devices: Devices, per_s: float, *, loopback: bool) -> None:
        self._host = host
        self._devices = devices
        self._rate = Rate(per_s, 2 * per_s)
        self._strangers = Rate(_STRANGERS, 10 * _STRANGERS)
        self._loopback = loopback

    def handlers(self) -> Any:
        methods = {call: self._handler(call) for call in CALLS}
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _handler(self, call: str) -> Any:
        act = getattr(self._devices, _snake(call))

        async def handle(request: Any, context: Any) -> Any:
            return await self._answer(call, act, request, context)

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=CLASSES[f"{call}Request"].FromString,
            response_serializer=CLASSES[f"{call}Response"].SerializeToString,
        )

    async def _answer(
        self, call: str, act: Callable[[Any, Principal], Awaitable[Any]], request: Any, context: Any
    ) -> Any:
        try:
            who = await self._enter(context, "viewer" if call == _READS else "operator")
            return await act(request, who)
        except Refused as error:
            code, text = error.code, str(error)
        except Problem as error:
            code, text = _CODES.get(error.status, "INTERNAL"), error.detail
        except (NvmuserError, OSError) as error:
            problem = of_error(error)
            code, text = _CODES.get(problem.status, "INTERNAL"), problem.detail
        except Exception as error:
            log.exception("%s", call)
            code, text = "INTERNAL", f"{type(error).__name__}: {error}"
        await context.abort(getattr(grpc.StatusCode, code), text)

    async def _enter(self, context: Any, role: str) -> Principal:
        """:raises Problem: they may not, or not so often."""
        peer = _peer(context)
        headers = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        try:
            principal = auth.identify(peer, headers, await self._host.credentials())
        except Problem:
            if not (self._loopback and _is_loopback(peer.address) and "authorization" not in headers):
                self._wait(self._strangers, peer.address)
                raise
            principal = Principal("loopback", "operator", peer.address)
        self._wait(self._rate, principal.name)
        auth.check(principal, role)
        return principal

    @staticmethod
    def _wait(rate: Rate, who: str) -> None:
        if rate.wait(who):
            raise Problem(429, "rate", f"more requests than are taken of {who}: wait")


def _snake(call: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in call).removeprefix("_")


def _peer(context: Any) -> Peer:
    """On a UNIX socket, its mode has let in root and ourselves alone."""
    kind, _, rest = str(context.peer()).partition(":")
    if kind == "unix":
        return Peer("unix", os.geteuid())
    certificates = context.auth_context().get("x509_pem_cert", ())
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificates[0].decode())).hexdigest() if certificates else ""
    return Peer(rest.rpartition(":")[0].strip("[]").replace("%5B", "").replace("%5D", ""), None, digest)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _bind(server: Any, place: str, tls: Tls | None) -> str:
    """:raises ConflictError: another process listens there."""
    if place.startswith("unix:"):
        path = Path(place.removeprefix("unix:")).absolute()
        grpc_server.listen_unix(server, path, f"--listen {place}")
        return f"unix:{path}"
    try:
        port = server.add_secure_port(place, _credentials(tls)) if tls else server.add_insecure_port(place)
    except RuntimeError as error:
        raise ConflictError(f"--listen {place}: another process listens there, or it is not ours") from error
    return f"{place.rpartition(':')[0]}:{port}"


async def serve(
    host: Host, devices: Devices, place: str, tls: Tls | None, per_s: float, started: Callable[[str], None], *,
    loopback: bool = False,
) -> int:  # fmt: skip
    """Serve until SIGTERM or SIGINT. Returns the number of the signal.

    :param place: `unix:PATH` or `ADDRESS:PORT`; without TLS, one that others cannot reach.
    :param started: called with the place when calls are taken.
    :raises ConflictError: another process listens there.
    """
    options = [("grpc.max_receive_message_length", _REQUEST_MAX), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_CALLS)
    server.add_generic_rpc_handlers((_Agent(host, devices, per_s, loopback=loopback).handlers(),))
    shown = _bind(server, place, tls)
    async with host:
        return await grpc_server.run(server, lambda: started(shown))
