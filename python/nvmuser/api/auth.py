"""Who makes a request, and what they may do: peer credentials on a UNIX socket, a client certificate, a bearer token.

Nothing is open by default. A request that shows several counts as its certificate or its token, before the socket's
peer. What is kept of secrets is `nvmuser.store.credentials`'.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvmuser.api.problems import Problem
from nvmuser.store.credentials import ROLES, Credential, digest
from nvmuser.store.events import Actor

_REALM = {"WWW-Authenticate": 'Bearer realm="nvmuser"'}


@dataclass(frozen=True)
class Peer:
    """The other end of a connection, as the transport knows it.

    :param address: an IP address, or `unix`.
    :param uid: of the process on a UNIX socket, else None.
    :param certificate: SHA-256 of the client's certificate, which the CA has signed; empty: none.
    """

    address: str
    uid: int | None = None
    certificate: str = ""


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    name: str
    role: str
    source: str

    @property
    def actor(self) -> Actor:
        return Actor(self.name, self.source)

    def may(self, role: str) -> bool:
        """Whether they may do what needs this role."""
        return ROLES.index(self.role) >= ROLES.index(role)


def identify(peer: Peer, headers: Mapping[str, str], known: Sequence[Credential]) -> Principal:
    """:raises Problem: nobody that we know."""
    if header := headers.get("authorization", ""):
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Problem(401, "unauthenticated", "Authorization: Bearer TOKEN is expected", headers=_REALM)
        return _of("token", digest(token.strip().encode("utf-8", "surrogateescape")), peer, known)
    if peer.certificate:
        return _of("certificate", peer.certificate, peer, known)
    if peer.uid is not None and peer.uid in (0, os.geteuid()):
        return Principal(f"user {_user(peer.uid)}", "admin", peer.address)
    who = f"user {_user(peer.uid)} needs a token" if peer.uid is not None else "a token is needed"
    raise Problem(401, "unauthenticated", f"{who}: `nvmuser token create`", headers=_REALM)


def _of(kind: str, mark: str, peer: Peer, known: Sequence[Credential]) -> Principal:
    for one in known:
        if (one.kind, one.digest) == (kind, mark) and not one.expired:
            return Principal(f"{kind} {one.name}", one.role, peer.address)
    raise Problem(401, "unauthenticated", f"the {kind} is not known here, or has expired", headers=_REALM)


def check(principal: Principal, role: str) -> None:
    """:raises Problem: they may not do what needs this role."""
    if not principal.may(role):
        raise Problem(403, "forbidden", f"{principal.name} is {principal.role}: this needs {role}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
