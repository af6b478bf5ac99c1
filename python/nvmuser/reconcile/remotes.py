"""Where the paths of remotes lead, under which name we go there, and why one does not lead there.

Owns the resolution of names: at each act of the engine, since what SPDK gets is an address. Which paths are attached
and taken away is `nvmuser.reconcile.plan`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nvmuser.hostfs import host_identity, reservation_keys
from nvmuser.hostfs.host_identity import HostIdentity
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import KEEP_ALIVE_S, Remote
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile import fabrics
from nvmuser.reconcile.actual import Actual, RemoteController

_RESOLVE_S = 5.0
_CONNECT_S = 2.0
_RESOLVERS = ThreadPoolExecutor(4, thread_name_prefix="resolver")
"""Of their own: one that hangs must not hold up what else waits for a thread."""


@dataclass(frozen=True)
class Routes:
    """What is known of the network paths to remotes when a plan is made."""

    host: HostIdentity | None = None
    """Who we are to them; None: SPDK's choice."""
    addresses: Mapping[RemotePath, tuple[str, ...]] = field(default_factory=dict)
    """Of each path by name: its addresses, the one to take first."""
    unresolved: Mapping[RemotePath, str] = field(default_factory=dict)
    """Paths by names that cannot be resolved, and why."""
    sessions: Mapping[Key, str] = field(default_factory=dict)
    """Of each remote: the host identifier of this process, which is the same on all of its paths."""

    def host_for(self, remote: Remote) -> HostIdentity | None:
        """Who we are to a remote."""
        return replace(self.host, id=self.sessions.get(remote.key, self.host.id)) if self.host else None

    def to(self, path: RemotePath) -> tuple[str, ...]:
        """The addresses of a path; none when its name cannot be resolved."""
        return (path.literal,) if path.literal else self.addresses.get(path, ())


def attached(path: RemotePath, present: RemoteController | None, routes: Routes) -> set[tuple[str, int]]:
    """Which of the paths that SPDK has are this one, as SPDK writes them."""
    wanted = routes.to(path)
    there = present.paths if present else ()
    return {(address, port) for address, port in there if port == path.port and _shortest(address) in wanted}


@dataclass(frozen=True)
class Way:
    """How a remote is reached at this moment."""

    remote: str
    path: str
    """As it was declared; where a name leads elsewhere by now, the address."""
    address: str
    port: int
    connected: bool
    states: tuple[str, ...] = ()
    """In which the remote says its namespaces are by this path (ANA): optimized, non_optimized, inaccessible,
    persistent_loss, change. Empty where it says nothing, or there is no connection."""
    keep_alive_s: int = KEEP_ALIVE_S

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        there = str(RemotePath(self.address, self.port))
        at = f" at {there}" if there != self.path else ""
        how = " and ".join(self.states).replace("_", "-")
        state = f"connected{', ' if how else ''}{how}" if self.connected else "no connection"
        patience = f" (keep-alive {self.keep_alive_s} s)" if self.keep_alive_s != KEEP_ALIVE_S else ""
        return f"{self.remote}: {self.path}{at}, {state}{patience}"


def ways(desired: Desired, actual: Actual, routes: Routes) -> Iterator[Way]:
    """Of every remote that SPDK has."""
    for remote in desired.remotes():
        present = actual.remotes.get(remote.in_spdk)
        for address, port in present.paths if present else ():
            declared = (str(path) for path in remote.paths if (address, port) in attached(path, present, routes))
            name = next(declared, str(RemotePath(address, port)))
            assert present is not None
            connected = (address, port) not in present.down
            states = present.states.get((address, port), ()) if connected else ()
            yield Way(remote.name, name, address, port, connected, states, remote.keep_alive_s)


def _shortest(address: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))
    return address


async def explore(desired: Desired, actual: Actual, state: StateDir) -> Routes:
    """Resolve every name. Where several addresses are possible, the first that takes a connection is preferred.

    :raises SetupError: who we are to remotes is not known.
    """
    if not desired.remotes():
        return Routes()
    host = host_identity.load(state)
    paths = {path: remote for remote in desired.remotes() for path in remote.paths if not path.literal}
    found = await asyncio.gather(*(_resolve(path) for path in paths))
    addresses: dict[RemotePath, tuple[str, ...]] = {}
    unresolved: dict[RemotePath, str] = {}
    for path, result in zip(paths, found, strict=True):
        if isinstance(result, str):
            unresolved[path] = result
        else:
            addresses[path] = result
    known = Routes(host, addresses)
    for path, remote in paths.items():
        if len(addresses.get(path, ())) > 1:
            addresses[path] = await _preferred(path, actual.remotes.get(remote.in_spdk), known)
    return Routes(host, addresses, unresolved, _sessions(desired, actual, state, host))


def _sessions(desired: Desired, actual: Actual, state: StateDir, host: HostIdentity) -> dict[Key, str]:
    """Each process is a host of its own to a remote, so that reservations tell it from its predecessor."""
    keys, sessions = reservation_keys.load(state), dict[Key, str]()
    for remote in desired.remotes():
        present = actual.remotes.get(remote.in_spdk)
        # Where SPDK does not say under which it is attached, that was this installation's own.
        sessions[remote.key] = (present.host_id or host.id) if present else keys.session(host.id)
    return sessions


async def _preferred(path: RemotePath, present: RemoteController | None, known: Routes) -> tuple[str, ...]:
    """The addresses of a path, the one to take first: one that takes a connection. One with a connection stays, one
    without is left for another that takes one."""
    found, there = known.to(path), attached(path, present, known)
    if present and there - present.down:
        return found
    first = await answering(found, path.port)
    if there:
        return first or found
    return first + tuple(address for address in found if address not in first)


async def _resolve(path: RemotePath) -> tuple[str, ...] | str:
    """Its addresses in the order of preference of RFC 6724, or why there are none."""
    loop = asyncio.get_running_loop()
    ask = functools.partial(socket.getaddrinfo, path.address, path.port, type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await loop.run_in_executor(_RESOLVERS, ask)
    except TimeoutError:
        return f"no answer from the resolver within {_RESOLVE_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


async def answering(addresses: tuple[str, ...], port: int) -> tuple[str, ...]:
    """Those with a listener."""

    async def takes(address: str) -> bool:
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(address, port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    answers = await asyncio.gather(*map(takes, addresses))
    return tuple(address for address, answer in zip(addresses, answers, strict=True) if answer)


def unresolved(paths: Iterable[RemotePath], routes: Routes) -> str:
    """Which of these paths lead nowhere, and why; empty when all are resolved."""
    return "; ".join(f"path {path}: cannot resolve {path.address}: {routes.unresolved[path]}"
                     for path in paths if path in routes.unresolved)  # fmt: skip


async def why_not(remote: Remote, address: str, port: int, host: HostIdentity) -> str:
    """Why a path could not be attached, from the remote itself; empty when it has no objection."""
    answer = await fabrics.ask(address, port, remote.nqn, host.nqn, host.id)
    text = answer.text
    if remote.psk and answer.stage != "unreachable":
        text = "no TLS with it: it knows another key than --psk, or uses no TLS"
    elif answer.stage == "authentication" and remote.dhchap_key:
        text = "authentication failed: it and this host do not have the same keys (--dhchap-key, --dhchap-ctrlr-key)"
    return text and f"path {RemotePath(address, port)}: {text}"
