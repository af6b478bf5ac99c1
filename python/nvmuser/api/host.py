"""One host as the API sees it: what is wanted, from the store; what is, from the supervisor and from SPDK.

Owns the connections, and how old what is shown of SPDK may be: a request never waits for a comparison of a thousand
objects. Changes go through the supervisor, as the command line's do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvmuser.api.shared import Shared
from nvmuser.errors import NvmuserError, RpcConnectionError, StaleError, TargetNotRunning
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.outcome import Outcome
from nvmuser.rpc.client import Client
from nvmuser.rpc.server import REQUEST_MAX
from nvmuser.store import Store
from nvmuser.store.credentials import Credential
from nvmuser.store.events import Actor
from nvmuser.supervisor import control

FRESH_S = 2.0
"""How often what SPDK has is compared with what is wanted, while somebody asks."""
_ASKED_S = 30.0
_DEADLINE = 60.0


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment; empty where no supervisor or no target answers."""

    at: float = 0.0
    """Seconds since the epoch."""
    facts: dict[str, Any] = field(default_factory=dict)
    drift: dict[str, Any] = field(default_factory=dict)
    actual: Actual | None = None
    error: str = ""
    otherwise: str = "unknown"
    """The state of what is not among `states`."""

    def states(self) -> dict[str, str]:
        """Of objects, by their keys as text: in-sync, drifted, missing."""
        names = {"in_sync": "in-sync", "drifted": "drifted", "missing": "missing"}
        return {key: word for field, word in names.items() for key in self.drift.get(field, ())}


class Host:
    """One state directory. A context manager."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.store = Store(state.store)
        self.sample = Sample()
        self.states: dict[str, str] = {}
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._reading = Shared(self._read)
        self._asked = 0.0
        self._wake = asyncio.Event()
        self._sampler: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Host:
        self._sampler = asyncio.create_task(self._keep_fresh())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._sampler:
            self._sampler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampler
        if self._client:
            await self._client.aclose()
        self.store.close()

    # -- what is wanted --------------------------------------------------------------------------------------

    async def desired(self) -> Desired:
        """What is wanted, with everything that was committed before this was called."""
        return (await self._reading())[0]

    async def credentials(self) -> list[Credential]:
        """Who may use the API; as fresh as that."""
        return (await self._reading())[1]

    def _read(self) -> tuple[Desired, list[Credential]]:
        return self.store.load(), self.store.credentials()

    async def submit(self, change: Change, actor: Actor) -> Outcome:
        """Change what is wanted.

        :raises NvmuserError: nothing has changed.
        """
        client = await self.supervisor()
        try:
            outcome = await control.submit(self.state, change, actor, client)
        except RpcConnectionError:
            await self._drop()
            raise
        for key in change.keys:
            self.states[str(key)] = "pending" if outcome.pending else "in-sync"
        return outcome

    async def rename(self, key: Key, name: str, actor: Actor) -> Outcome:
        """Give an object another name.

        :raises NvmuserError: nothing has changed.
        """
        return await control.rename(self.state, key, name, actor)

    async def alter(
        self, key: Key, alteration: Callable[[Desired, AnyObject], Change], actor: Actor
    ) -> tuple[Change, Outcome]:
        """Change one object, starting from how it is; again when somebody else was faster.

        :raises NvmuserError: nothing has changed.
        """
        while True:
            desired = await self.desired()
            change = alteration(desired, desired.get(key))
            try:
                return change, await self.submit(change, actor)
            except StaleError:
                continue

    # -- what is ---------------------------------------------------------------------------------------------

    async def supervisor(self) -> Client | None:
        """The connection to the supervisor; None where there is none."""
        async with self._connecting:
            if self._client is None or self._client.closed:
                try:
                    self._client = await Client.connect(
                        self.state.control_socket, timeout=_DEADLINE, max_request=REQUEST_MAX
                    )
                except RpcConnectionError as error:
                    self._client = None
                    if not isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
                        raise
            return self._client

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client:
            await client.aclose()

    async def ask(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Call a method of the supervisor, as long as it takes.

        :raises TargetNotRunning: there is none.
        """
        if client := await self.supervisor():
            return await client.call(method, params, timeout=None)
        return await control.ask(self.state, method, params)

    async def look(self) -> Sample:
        """See how things are, now."""
        try:
            facts, drift = await asyncio.gather(self.ask("status"), self.ask("drift"))
            volumes = (await self.desired()).volumes()
            # Of all others, what is declared and the machine's files say the same.
            tells_more = any(not volume.size or volume.pool for volume in volumes)
            actual = await control.actual(self.state) if tells_more else None
            self.sample = Sample(time.time(), facts, drift, actual)
        except TargetNotRunning as error:
            self.sample = Sample(time.time(), error=str(error), otherwise="pending")
        except (NvmuserError, OSError) as error:
            self.sample = Sample(time.time(), error=str(error))
        self.states = self.sample.states()
        return self.sample

    def touch(self) -> None:
        """Somebody is interested in how things are."""
        self._asked = time.monotonic()
        self._wake.set()

    async def fresh(self) -> Sample:
        """How things were at most a little ago; the first one waits for it."""
        self.touch()
        if time.time() - self.sample.at > _ASKED_S:
            await self.look()
        return self.sample

    async def _keep_fresh(self) -> None:
        while True:
            if time.monotonic() - self._asked > _ASKED_S:
                self._wake.clear()
                await self._wake.wait()
            began = time.monotonic()
            await self.look()
            # Comparing thousands of objects costs the supervisor something, which it needs for changes.
            await asyncio.sleep(max(FRESH_S, 10 * (time.monotonic() - began)))
