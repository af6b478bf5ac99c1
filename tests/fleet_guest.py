"""A guest of a host of a fleet, on storage that all of its hosts reach: a remote's namespace, and an image in Ceph."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fleet_storage import RealHost, StorageWorld

from nvmuser.bench.measure.migrant import Migrant
from nvmuser.guest.registry import registry

NVMUSER, NAME = Path(sys.executable).parent / "nvmuser", "box"


async def nvmuser(host: RealHost, *arguments: str) -> tuple[int, str, str]:
    """The command line on a host: status, stdout, stderr."""
    argv = [str(NVMUSER), "--state-dir", str(host.state.root), *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@dataclass
class FleetGuest:
    """A guest, wherever it runs."""

    world: StorageWorld

    @property
    def running(self) -> list[str]:
        """Hosts where a QEMU of it runs."""
        hosts = self.world.hosts.items()
        return [name for name, host in hosts if any(one.running for one in registry(host.state).list())]

    @property
    def here(self) -> str:
        """The one host where it runs."""
        [name] = self.running
        return name

    async def start(self, host: str) -> None:
        """Boot it on a host that has its controllers."""
        machine = ("--via", "libvfio", "--memory", "512M", "--no-hugepages", "--controller", "r", "--controller", "i")
        status, _, err = await nvmuser(self.world.hosts[host], "guest", "start", NAME, *machine)
        assert status == 0, err

    async def run(self, command: str, *, input: bytes = b"") -> str:
        """Run a command in it."""
        async with registry(self.world.hosts[self.here].state).agent(NAME) as agent:
            return (await agent.run(command, input=input, timeout=200, check=True)).stdout.decode()

    async def boot_id(self) -> str:
        return (await self.run("cat /proc/sys/kernel/random/boot_id")).strip()

    @property
    def load(self) -> Migrant:
        """What writes and reads in it, on both disks."""
        return Migrant(self.run)


@contextlib.asynccontextmanager
async def a_guest(world: StorageWorld, host: str) -> AsyncIterator[FleetGuest]:
    """One that runs on a host, on a remote's namespace (`r`) and an image (`i`)."""
    await world.declare(host, *world.remote("r"))
    await world.declare(host, *world.image("i"))
    guest = FleetGuest(world)
    await guest.start(host)
    try:
        yield guest
    finally:
        for one in world.hosts.values():
            for record in registry(one.state).list():
                await registry(one.state).discard(record.name)
