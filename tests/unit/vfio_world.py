"""A guest, an endpoint and targets that come and go, in one process: what the tests of sessions stand on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfio_fds import until
from vfio_guest import Client, Driver
from vfio_supervisor import Supervisor
from vfio_target import FakeTarget

from nvmf_vfio.endpoint import Endpoint
from nvmf_vfio.session import Session
from nvmf_vfio.state.registers import CSTS_RDY, OPC_ASYNC_EVENT_REQUEST

do = asyncio.to_thread
"""A guest's calls block, as QEMU's do."""


@dataclass
class World:
    """An endpoint that serves the controllers a and b."""

    directory: Path
    endpoint: Endpoint
    supervisor: Supervisor
    opened: list[Any] = field(default_factory=list)

    def target(self, name: str = "a") -> FakeTarget:
        target = FakeTarget(self.directory / "t" / name / "cntrl")
        self.opened.append(target)
        return target

    def client(self, name: str = "a") -> Client:
        client = Client(self.directory / "g" / name / "cntrl")
        self.opened.append(client)
        return client

    def driver(self, name: str = "a") -> Driver:
        driver = Driver(self.client(name))
        self.opened.append(driver)
        return driver

    @property
    def session(self) -> Session:
        return self.endpoint._sessions["a"]

    async def report(self, state: str, *controllers: str) -> None:
        """:param controllers: whose target it is; none: all of them, as an older supervisor says it."""
        named = {"controllers": list(controllers)} if controllers else {}
        self.supervisor.send("target", state=state, **named)
        # What is sent after it is answered after it.
        await self.supervisor.status()

    async def running(self) -> tuple[FakeTarget, Driver]:
        """A guest whose driver works, with one event request outstanding."""
        target = self.target()
        await self.report("ready")
        driver = self.driver()
        await do(driver.set_up)
        assert await do(driver.csts) == CSTS_RDY
        await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 5)
        return target, driver

    async def lose(self, target: FakeTarget) -> None:
        target.kill()
        await self.report("gone")

    async def recover(self) -> FakeTarget:
        """The next target, with which the guest's session is introduced."""
        target = self.target()
        await self.report("drained")
        await self.report("ready")
        await until(lambda: self.session.status()["online"])
        return target

    def close(self) -> None:
        for opened in self.opened:
            opened.kill() if isinstance(opened, FakeTarget) else opened.close()
        self.endpoint.close()
        self.supervisor.close()
