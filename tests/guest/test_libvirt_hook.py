"""A domain of a real libvirtd, whose hook claims its controllers, waits for them, and gives them back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from libvirtd import Libvirtd, bootable, libvirtd
from world import World, both, sparse

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import GuestSpec, libvirt, libvirt_hook, migration
from nvmuser.guest.spec import MIB
from nvmuser.paths import StateDir

pytestmark = pytest.mark.matrix


def define(
    host: Libvirtd, state: StateDir, name: str, directory: Path, *controllers: str, arguments: Sequence[str] = ()
) -> None:
    """A domain that boots the appliance: what `nvmuser guest qemu-args --libvirt` prints, and a kernel.

    :param arguments: more of them for QEMU, as `qemu:arg`.
    """
    spec = GuestSpec(memory=384 * MIB, sockets=tuple(state.socket(controller) for controller in controllers))
    text = libvirt.domain(
        spec, name=name, hugepages=False, kvm=False, no_migration=directory / migration.IMAGE,
        metadata=libvirt_hook.metadata(state, controllers), emulator=str(host.emulator),
    )  # fmt: skip
    path = directory / f"{name}.xml"
    path.write_text(bootable(text, arguments=arguments))
    host.ok("define", str(path))


async def test_the_life_of_a_domain(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a libvirtd of its own")
    root = tmp_path_factory.mktemp("d")  # a short name, for the sockets in it
    state = StateDir(root / "s")
    async with Deployment.start(state.root) as deployment:
        for name in ("one", "two"):
            await deployment.disk(name, sparse(root / name))
        with libvirtd(root) as host:
            migration.write_image(root / migration.IMAGE)
            define(host, state, "box", root, "one", "two")
            define(host, state, "other", root, "two")
            define(host, state, "wrong", root, "three")
            await lives(World(deployment, None, ""), host, state)  # type: ignore[arg-type]
    assert list(libvirt_hook.claims(state)) == []


async def lives(world: World, host: Libvirtd, state: StateDir) -> None:
    refused(host, "wrong", "there is no controller three")
    host.ok("start", "box")
    assert dict(libvirt_hook.claims(state)) == {"one": "box", "two": "box"}
    before = await world.until(lambda now: all(guest["phase"] == "live" for guest in both(now)))
    refused(host, "other", "controller two is domain box's")

    os.kill(before["target"]["pid"], signal.SIGKILL)
    await world.recovered(before)

    pids = {guest["pid"] for guest in both(before)}
    host.ok("reset", "box")  # QEMU and its connections stay; the driver begins again
    messages = {guest["controller"]: guest["messages"] for guest in both(await world.status())}
    await world.until(lambda now: all(guest["messages"] > messages[guest["controller"]] for guest in both(now)))
    assert {guest["pid"] for guest in both(await world.status())} == pids

    host.ok("destroy", "box")
    assert dict(libvirt_hook.claims(state)) == {}
    host.ok("start", "other")
    assert dict(libvirt_hook.claims(state)) == {"two": "other"}
    host.ok("destroy", "other")


def refused(host: Libvirtd, domain: str, reason: str) -> None:
    status, text = host.virsh("start", domain)
    assert status != 0
    assert reason in text


async def test_a_controller_is_plugged_into_a_running_domain(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By a second QMP socket and an empty root port, as docs/libvirt.md has them; it outlives the target too."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a libvirtd of its own")
    root = tmp_path_factory.mktemp("d")
    state, qmp = StateDir(root / "s"), root / "qmp"
    arguments = ("-qmp", f"unix:{qmp},server=on,wait=off", "-device", "pcie-root-port,id=spare0,chassis=99,addr=0x10")
    async with Deployment.start(state.root) as deployment:
        for name in ("one", "two"):
            await deployment.disk(name, sparse(root / name))
        with libvirtd(root) as host:
            migration.write_image(root / migration.IMAGE)
            define(host, state, "box", root, "one", arguments=arguments)
            host.ok("start", "box")
            world = World(deployment, None, "")  # type: ignore[arg-type]
            await world.until(lambda now: [guest["phase"] for guest in now["guests"]] == ["live"])
            await plug(state, qmp, "two")
            before = await world.until(lambda now: all(guest["phase"] == "live" for guest in both(now)))
            os.kill(before["target"]["pid"], signal.SIGKILL)
            await world.recovered(before)
            assert "running" in host.ok("domstate", "box")
            host.ok("destroy", "box")
            await world.until(lambda now: now["guests"] == [])


async def plug(state: StateDir, qmp: Path, controller: str) -> None:
    program = Path(sys.executable).with_name("nvmuser")
    command = [program, "--state-dir", state.root, "guest", "plug", "--qmp", qmp, controller]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    written, _ = await process.communicate()
    assert process.returncode == 0, written.decode()
