"""A domain migrates between two real libvirtds while its guest writes, by nothing but `virsh migrate` and our hook.

The hosts are two deployments; each libvirtd sees its own at the same path, as two machines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from libvirtd import Libvirtd, bootable, libvirtd
from qemus import the_qemu
from travel import nvmuser, openers

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.migrant import DISK, Migrant
from nvmuser.guest import GuestSpec, libvirt, libvirt_hook
from nvmuser.guest.agent import Agent
from nvmuser.guest.spec import MIB
from nvmuser.paths import StateDir
from nvmuser.supervisor import control
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import libvfio
from nvmuser.toolchain.steps import Reporter

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]

DISKS = ("one", "two")
NAME = "box"


@dataclass
class Host:
    """A deployment and a libvirtd."""

    deployment: Deployment
    libvirtd: Libvirtd

    @property
    def claims(self) -> dict[str, str]:
        return dict(libvirt_hook.claims(self.deployment.state))

    @property
    def controllers(self) -> dict[str, bool]:
        """Which are declared here, and whether their volumes are another host's."""
        return {one.name: one.away for one in control.load(self.deployment.state).controllers()}

    async def target(self) -> int:
        """The process of its target."""
        pid: int = (await self.deployment.control.call("status"))["target"]["pid"]
        return pid

    async def guests(self) -> list[dict[str, Any]]:
        """Those of its controllers that are a guest's, or about to be."""
        found: list[dict[str, Any]] = (await self.deployment.control.call("status"))["guests"]
        return found


@dataclass
class Domain:
    """The domain, and where it is."""

    here: Host
    there: Host

    async def run(self, command: str, limit: float = 200, *, input: bytes = b"") -> str:
        """Run a command in the guest, where it is now."""
        async with await Agent.connect(self.here.deployment.state.root / "agent.sock") as agent:
            await agent.wait_boot(timeout=120)
            result = await agent.run(command, input=input, timeout=limit, check=True)
            return result.stdout.decode()

    async def boot_id(self) -> str:
        return (await self.run("cat /proc/sys/kernel/random/boot_id")).strip()

    @property
    def load(self) -> Migrant:
        """What runs in it."""
        return Migrant(self.run)

    async def check(self) -> None:
        """Everything written is there, everything read is in memory as it was read."""
        seen = await self.load.finish()
        assert (seen.io_errors, seen.bad_blocks, seen.memory_mismatches) == (0, 0, 0)
        print(f"longest I/O: {seen.stall:.3f} s")

    async def copying(self) -> None:
        """Wait until memory is on its way."""
        async with asyncio.timeout(60):
            while True:
                guests = [*await self.here.guests(), *await self.there.guests()]
                if len(guests) == 2 * len(DISKS) and all(guest["moving"] for guest in guests):
                    return

    async def migrate(self, *options: str) -> tuple[int, str]:
        words = ("migrate", "--live", *options, NAME, self.there.libvirtd.uri, "--migrateuri", "tcp:127.0.0.1")
        done = await asyncio.to_thread(self.here.libvirtd.virsh, *words)
        if done[0] == 0:
            self.here, self.there = self.there, self.here
        return done

    async def only_here(self) -> None:
        """Wait until it runs on one host, its volumes are open there alone, and the other has nothing of it."""
        assert self.here.libvirtd.ok("list", "--name") == NAME
        root = self.here.deployment.state.root.parent
        wanted = [{await self.here.target()}] * len(DISKS)
        async with asyncio.timeout(60):
            while [openers(root / name) for name in DISKS] != wanted:  # noqa: ASYNC110 (others hold them)
                await asyncio.sleep(0.1)
            while self.there.libvirtd.ok("list", "--name") or self.there.claims:  # noqa: ASYNC110 (has to be asked)
                await asyncio.sleep(0.1)
        assert self.here.claims == dict.fromkeys(DISKS, NAME)


@contextlib.asynccontextmanager
async def two_hosts(root: Path) -> AsyncIterator[Domain]:
    if not libvfio.is_done():
        libvfio.build(Reporter(root / "libvfio.log"))
    # Debian 12's libvirt says `detach` to QEMU, which 11.1 does not know any more.
    eco, emulator = Options(profile="eco"), the_qemu("qemu-10.0").argv
    for name in ("la", "lb"):
        (root / name).mkdir()
    async with Deployment.start(root / "a", eco) as a, Deployment.start(root / "b", eco) as b:
        with (
            libvirtd(root / "la", emulator=emulator) as la,
            libvirtd(root / "lb", emulator=emulator, own=(root / "b", root / "a")) as lb,
        ):
            yield Domain(Host(a, la), Host(b, lb))


async def boot(domain: Domain) -> None:
    host = domain.here
    state = host.deployment.state
    for name in DISKS:
        backing = state.root.parent / name
        backing.write_bytes(b"")
        os.truncate(backing, DISK)
        await host.deployment.disk(name, backing)
    path = state.root.parent / "box.xml"
    path.write_text(bootable(described(host, state), agent=state.root / "agent.sock"))
    host.libvirtd.ok("define", str(path))
    host.libvirtd.ok("start", NAME)
    await domain.load.prepare()


def described(host: Host, state: StateDir) -> str:
    spec = GuestSpec(
        cpus=2,
        memory=512 * MIB,
        sockets=tuple(state.socket(name) for name in DISKS),
        directories=tuple(host.deployment.device(name) for name in DISKS),
    )
    return libvirt.domain(
        spec, name=NAME, hugepages=False, kvm=False, no_migration=Path("/unused"),
        metadata=libvirt_hook.metadata(state, DISKS, desired=control.load(state)),
        emulator=str(host.libvirtd.emulator), preload=str(libvfio.find_libvfio()),
    )  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def domain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Domain]:
    """A domain that runs on the first of two hosts."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a libvirtd of its own")
    async with two_hosts(tmp_path_factory.mktemp("m")) as one:
        await boot(one)
        boot_id = await one.boot_id()
        yield one
        assert await one.boot_id() == boot_id
        assert await one.load.end()
        one.here.libvirtd.ok("destroy", NAME)
        assert one.here.claims == {}


async def test_a_host_that_has_another_volume_refuses_it(domain: Domain, tmp_path: Path) -> None:
    """libvirt says why; the guest goes on, and nothing of it is left there."""
    there = domain.there.deployment
    (tmp_path / "other").write_bytes(bytes(8 * MIB))
    await there.disk("two", tmp_path / "other")
    status, text = await domain.migrate()
    assert status != 0
    assert "controller two: another one here" in text
    await domain.only_here()
    assert domain.there.controllers == {"two": False}
    await there.forget("two")


async def test_there_and_back_while_it_writes(domain: Domain, tmp_path: Path) -> None:
    """What stands for a controller has another number there."""
    there = domain.there
    (tmp_path / "other").write_bytes(bytes(8 * MIB))
    await there.deployment.disk("other", tmp_path / "other")
    there.deployment.device("other")
    for _ in range(2):
        await domain.load.begin()
        status, text = await domain.migrate()
        assert status == 0, text
        await domain.only_here()
        await domain.check()
    # What it had been declared for has left.
    assert there.controllers == {"other": False}


async def test_saved_and_restored_while_it_writes(domain: Domain, tmp_path: Path) -> None:
    """Its volumes are closed meanwhile, and nobody else starts with its controllers."""
    await domain.load.begin()
    file, host = str(tmp_path / "saved"), domain.here
    await asyncio.to_thread(host.libvirtd.ok, "save", NAME, file)
    assert host.controllers == dict.fromkeys(DISKS, True)
    status, text = host.libvirtd.virsh("start", NAME)
    assert status != 0
    assert "its volumes are another host's" in text
    await asyncio.to_thread(host.libvirtd.ok, "restore", file)
    await domain.only_here()
    await domain.check()


async def test_a_destination_that_is_killed(domain: Domain) -> None:
    """While memory is copied: the guest goes on, and nothing of it stays there."""
    await domain.load.begin()
    domain.here.libvirtd.ok("migrate-setspeed", NAME, "20")  # MiB a second
    moving = asyncio.create_task(domain.migrate())
    await domain.copying()
    (pid,) = {guest["pid"] for guest in await domain.there.guests()}
    os.kill(pid, signal.SIGKILL)
    status, _ = await moving
    assert status != 0
    await domain.only_here()
    await domain.check()
    async with asyncio.timeout(60):
        while set(DISKS) & domain.there.controllers.keys():  # noqa: ASYNC110 (libvirt's hook forgets them)
            await asyncio.sleep(0.1)
    domain.here.libvirtd.ok("migrate-setspeed", NAME, "1000")


async def test_what_has_grown_is_described_anew(domain: Domain) -> None:
    """Until then the other host refuses what arrives, and the guest goes on."""
    host = domain.here
    os.truncate(host.deployment.state.root.parent / "two", 2 * DISK)
    grown = await nvmuser(host.deployment, "volume", "grow", "two", str(2 * DISK))
    assert grown[0] == 0, grown
    await domain.load.begin()
    status, text = await domain.migrate()
    assert status != 0, text
    await domain.only_here()
    state = host.deployment.state
    element = ET.tostring(libvirt_hook.metadata(state, DISKS, desired=control.load(state)), encoding="unicode")
    # libvirt gives it a prefix of its own, and takes none that has one.
    described = re.sub("(</?)nvmuser:", r"\1", element).replace(f' xmlns:nvmuser="{libvirt_hook.NAMESPACE}"', "")
    host.libvirtd.ok("metadata", NAME, libvirt_hook.NAMESPACE, "--live", "--key", "nvmuser", "--set", described)
    status, text = await domain.migrate()
    assert status == 0, text
    await domain.only_here()
    await domain.check()
