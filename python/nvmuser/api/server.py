"""The process that serves the API: where it listens, and what is known of each connection's other end.

Owns the listening sockets and TLS. Off this machine's own addresses nothing is served without TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nvmuser.api.app import application
from nvmuser.api.auth import Peer
from nvmuser.api.host import Host
from nvmuser.api.tls import Tls
from nvmuser.errors import ConflictError, UsageError
from nvmuser.hostfs.sockets import listen_unix
from nvmuser.model.remote_path import bracketed
from nvmuser.paths import StateDir

PORT = 8460
_HEADERS_S = 10.0
"""How long a request's headers may take: who opens a connection and is silent is not waited for."""
_CONNECTIONS = 2000
_BACKLOG = 1024
_SO_PEERCRED = struct.Struct("3i")

log = logging.getLogger(__name__)


class _Protocol(H11Protocol):
    """HTTP/1.1 that knows its peer, and does not wait for ever."""

    _deadline: asyncio.TimerHandle | None = None
    """Of a request whose headers are not complete."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "peer": _peer(transport)}
        self._deadline = self.loop.call_later(_HEADERS_S, self._too_slow)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._waits:
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_HEADERS_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    @property
    def _waits(self) -> bool:
        """No request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _stop_waiting(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None

    def _too_slow(self) -> None:
        if self._waits and not self.transport.is_closing():
            self.transport.abort()


def _peer(transport: asyncio.Transport) -> Peer:
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family == socket.AF_UNIX:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED.size)
        _, uid, _ = _SO_PEERCRED.unpack(raw)
        return Peer("unix", uid)
    address = (transport.get_extra_info("peername") or ("unknown",))[0]
    over_tls = transport.get_extra_info("ssl_object")
    certificate = over_tls.getpeercert(binary_form=True) if over_tls else None
    return Peer(str(address), None, hashlib.sha256(certificate).hexdigest() if certificate else "")


def listening(listen: str, *, with_tls: bool) -> socket.socket:
    """A listening socket.

    :param listen: `unix:PATH`, `ADDRESS:PORT` or `PORT`, which is on 127.0.0.1.
    :raises UsageError: it is no such place, or open to others without TLS.
    :raises ConflictError: another process listens there.
    """
    if listen.startswith("unix:"):
        if with_tls:
            raise UsageError("a UNIX socket has no TLS: leave --tls-cert out")
        return listen_unix(Path(listen.removeprefix("unix:")).absolute(), 0o666)
    address, port = _place(listen)
    if not ipaddress.ip_address(address).is_loopback and not with_tls:
        raise UsageError(f"--listen {listen}: others can reach that, which needs --tls-cert and --tls-key")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((address, port))
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise ConflictError(f"--listen {listen}: {error.strerror}") from error
    found.setblocking(False)
    return found


def _place(listen: str) -> tuple[str, int]:
    address, colon, port = listen.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    try:
        number = int(port)
        ipaddress.ip_address(address)
    except ValueError:
        places = f"unix:PATH, PORT or ADDRESS:PORT, such as 10.0.0.1:{PORT}"
        raise UsageError(f"--listen {listen}: expected {places}") from None
    if not 0 <= number < 1 << 16:
        raise UsageError(f"--listen {listen}: {number} is no port")
    return address, number


def shown(listener: socket.socket, *, with_tls: bool) -> str:
    """A listener as a client has to name it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = bracketed(name[0])
    return f"http{'s' if with_tls else ''}://{host}:{name[1]}"


async def serve(
    state: StateDir, listeners: Sequence[socket.socket], tls: Tls | None, per_s: float, *, latencies: bool = False
) -> int:
    """Serve until SIGTERM or SIGINT. Returns the number of the signal.

    :param latencies: metrics have histograms of volumes' latencies.
    :raises UsageError: TLS cannot be set up.
    """
    config = uvicorn.Config(
        application(Host(state), per_s, latencies=latencies),
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=1 << 16,
    )
    config.load()
    config.ssl = tls.context() if tls else None
    server, loop = _Server(config), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.end, number)
    await server.serve(sockets=list(listeners))
    return server.ended_by


class _Server(uvicorn.Server):
    """Watchers end with it, so that it need not wait for them."""

    ended_by = 0

    def end(self, number: int) -> None:
        """Begin to end."""
        self.ended_by = number
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the loop's here."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        await app.state.watching.close()
        await super().shutdown(sockets)
