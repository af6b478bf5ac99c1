"""Two deployments, which stand for two hosts, and a guest that moves between them while it writes and reads.

What runs in the guest meanwhile is started in its background: its agent's session ends with each move.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.migrant import DISK, Migrant
from nvmuser.guest.registry import registry
from nvmuser.rpc import Client
from nvmuser.supervisor import daemon
from nvmuser.supervisor.spdk import Options

NVMUSER = Path(sys.executable).parent / "nvmuser"
NAME = "traveller"
DISKS = ("one", "two")


@dataclass
class Travel:
    """A guest, and where it is."""

    a: Deployment
    b: Deployment
    here: Deployment

    @property
    def elsewhere(self) -> Deployment:
        return self.b if self.here is self.a else self.a

    async def run(self, command: str, limit: float = 200, *, input: bytes = b"") -> str:
        """Run a command in the guest, where it is now."""
        async with registry(self.here.state).agent(NAME) as agent:
            result = await agent.run(command, input=input, timeout=limit, check=True)
            return result.stdout.decode()

    async def boot_id(self) -> str:
        return (await self.run("cat /proc/sys/kernel/random/boot_id")).strip()

    async def cli(self, *arguments: str) -> tuple[int, str, str]:
        """`nvmuser guest migrate` from where the guest is to where it is not."""
        process = await self.begin(*arguments)
        out, err = await process.communicate()
        if not process.returncode:
            self.here = self.elsewhere
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        there = str(self.elsewhere.state.root)
        argv = [str(NVMUSER), "--state-dir", str(self.here.state.root), "guest", "migrate", NAME, "--to", there]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*argv, *arguments, stdout=pipe, stderr=pipe)

    async def boot(self, *options: str, hugepages: bool = False) -> None:
        """Start the guest here, where its controllers are."""
        controllers = (word for name in DISKS for word in ("--controller", name))
        machine = ("--via", "libvfio", "--cpus", "2", "--memory", "512M", *(() if hugepages else ("--no-hugepages",)))
        status, _, err = await nvmuser(self.here, "guest", "start", NAME, *controllers, *machine, *options)
        assert status == 0, err

    async def end(self) -> None:
        """End its QEMU, wherever it is."""
        for guests in (registry(self.a.state), registry(self.b.state)):
            for record in guests.list():
                await guests.discard(record.name)

    def running(self) -> list[Deployment]:
        """Where a QEMU of it runs."""
        return [one for one in (self.a, self.b) if any(guest.running for guest in registry(one.state).list())]

    @property
    def load(self) -> Migrant:
        """What runs in it."""
        return Migrant(self.run)

    async def check(self) -> None:
        """Everything written is there, everything read is in memory as it was read."""
        seen = await self.load.finish()
        assert (seen.io_errors, seen.bad_blocks, seen.memory_mismatches) == (0, 0, 0)


async def nvmuser(deployment: Deployment, *arguments: str) -> tuple[int, str, str]:
    """The command line, on a deployment: status, stdout, stderr."""
    argv = [str(NVMUSER), "--state-dir", str(deployment.state.root), *arguments]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def openers(path: Path) -> set[int]:
    """The processes that have a file open."""
    wanted, found = os.stat(path), set[int]()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), wanted):
                        found.add(int(pid))
    return found


async def only_here(travel: Travel) -> None:
    """Each volume is open in the target where the guest is, and nowhere else."""
    target = (await travel.here.control.call("status"))["target"]["pid"]
    root = travel.a.state.root.parent
    assert [openers(root / name) for name in DISKS] == [{target}] * len(DISKS)
    assert [record.name for record in registry(travel.elsewhere.state).list()] == []


async def until_copying(travel: Travel) -> None:
    """Memory is on its way."""
    async with asyncio.timeout(60):
        while True:
            guests = (await travel.here.control.call("status"))["guests"]
            if guests and all(guest["moving"] for guest in guests):
                return


async def kill(struck: Deployment, victim: str) -> None:
    """Kill one process of a deployment: `target`, `endpoint`, `supervisor` (another is started), or `qemu`."""
    if victim == "supervisor":
        process = struck.control.hold_peer()
        process.signal(signal.SIGKILL)
        # It holds the state directory until it has ended.
        await process.ended.wait()
        process.close()
        await struck.control.aclose()
        await asyncio.to_thread(daemon.start, struck.state, Options(profile="eco"))
        struck.control = await Client.connect(struck.state.control_socket, timeout=60)
        return
    if victim == "qemu":
        pids = [record.pid for record in registry(struck.state).list()]
    else:
        pids = [(await struck.control.call("status"))[victim]["pid"]]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def travelling(root: Path) -> AsyncIterator[Travel]:
    """Two deployments in `root`, and a guest in the first, with two controllers and two CPUs."""
    eco = Options(profile="eco")
    async with Deployment.start(root / "a", eco) as a, Deployment.start(root / "b", eco) as b:
        for name in DISKS:
            (root / name).write_bytes(b"")
            os.truncate(root / name, DISK)
            await a.disk(name, root / name)
        travel = Travel(a, b, a)
        try:
            await travel.boot()
            yield travel
        finally:
            await travel.end()
            for one in (a, b):
                await one.control.aclose()  # another supervisor's, if the first was killed
