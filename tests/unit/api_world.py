"""The API in this process, on a state directory without a target, and who asks it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from nvmuser.api.app import application
from nvmuser.api.auth import Peer
from nvmuser.api.host import Host
from nvmuser.paths import StateDir
from nvmuser.store import Store
from nvmuser.store.credentials import ROLES, new_token
from nvmuser.store.events import Event

STRANGER = Peer("192.0.2.1")


@dataclass
class ApiWorld:
    """One API. `peer` is the other end of connections to it."""

    state: StateDir
    app: Any
    tokens: dict[str, str]
    peer: Peer = STRANGER
    begun: int = len(ROLES)
    """The number of the last event before anything was asked."""
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def client(self, role: str = "", **headers: str) -> httpx.AsyncClient:
        """Of somebody with this role; empty: with nothing to show."""
        shown = {"Authorization": f"Bearer {self.tokens[role]}"} if role else {}
        transport = httpx.ASGITransport(self._with_peer, raise_app_exceptions=False)
        one = httpx.AsyncClient(transport=transport, base_url="http://api", headers=shown | headers)
        self.clients.append(one)
        return one

    def changes(self) -> list[Event]:
        """Events, after those of the tokens that there are to begin with."""
        with Store(self.state.store) as store:
            return store.events(self.begun)

    async def _with_peer(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope, "state": {"peer": self.peer}}, receive, send)


@contextlib.asynccontextmanager
async def api_world(root: Path, per_s: float = 1e6) -> AsyncIterator[ApiWorld]:
    """An API on a new state directory."""
    host = Host(StateDir(root / "st"))
    tokens = {}
    for role in ROLES:
        tokens[role], kept = new_token(role, role, 0)
        host.store.add_credential(kept)
    app = application(host, per_s)
    async with app.router.lifespan_context(app):
        world = ApiWorld(host.state, app, tokens)
        yield world
        for client in world.clients:
            await client.aclose()
