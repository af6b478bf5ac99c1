"""A guest that moves between two deployments: real SPDK, QEMU and Linux, over libvfio."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from qemus import the_qemu
from travel import DISKS, NAME, Travel, nvmuser, openers, travelling

from nvmuser.guest.registry import registry
from nvmuser.rpc import Client
from nvmuser.supervisor import daemon
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import libvfio
from nvmuser.toolchain.steps import Reporter

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["qemu-own", pytest.param("qemu-10.0", marks=pytest.mark.matrix)]
)
async def travel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Travel]:
    root = tmp_path_factory.mktemp("t")
    program = root / "qemu"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(the_qemu(request.param).argv)} "$@"\n')
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVMUSER_QEMU", str(program))
        async for one in _travelling(root):
            yield one


async def _travelling(root: Path) -> AsyncIterator[Travel]:
    if not libvfio.is_done():
        libvfio.build(Reporter(root / "libvfio.log"))
    async with travelling(root) as travel:
        await travel.load.prepare()
        yield travel
        assert await travel.load.end()


async def _only_here(travel: Travel) -> None:
    """Each volume is open in the target where the guest is, and nowhere else."""
    target = (await travel.here.control.call("status"))["target"]["pid"]
    root = travel.a.state.root.parent
    assert [openers(root / name) for name in DISKS] == [{target}] * len(DISKS)
    assert [record.name for record in registry(travel.elsewhere.state).list()] == []


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.matrix)])
async def test_there_and_back_while_it_writes(travel: Travel, rounds: int) -> None:
    boot = await travel.boot_id()
    for _ in range(rounds):
        await travel.load.begin()
        for _ in range(2):
            status, out, err = await travel.cli("--json")
            assert status == 0, err
            result = json.loads(out)
            assert result["bytes"] > 0
            assert 0 < result["downtime"] < result["total"]
            await _only_here(travel)
        await travel.check()
    assert await travel.boot_id() == boot


async def test_given_up_while_memory_is_copied(travel: Travel) -> None:
    boot = await travel.boot_id()
    await travel.load.begin()
    moving = await travel.begin("--bandwidth", "20M")
    await _until_copying(travel)
    moving.send_signal(signal.SIGINT)
    out, err = await moving.communicate()
    assert moving.returncode == 130, (out, err)
    assert b"Traceback" not in err
    await _only_here(travel)
    await travel.check()
    assert await travel.boot_id() == boot


async def _until_copying(travel: Travel) -> None:
    """Memory is on its way."""
    async with asyncio.timeout(60):
        while True:
            guests = (await travel.here.control.call("status"))["guests"]
            if guests and all(guest["moving"] for guest in guests):
                return


async def test_another_volume_there(travel: Travel) -> None:
    """Refused before the guest's QEMU hears of it."""
    there = travel.elsewhere
    with_size = travel.a.state.root.parent / "other"
    with_size.write_bytes(bytes(8 << 20))
    declared = json.loads((await nvmuser(there, "controller", "list", "--json"))[1])
    for one in declared:  # expected there, if the guest has been there before
        assert (await nvmuser(there, "controller", "release", one["name"]))[0] == 0
    await there.disk("one", with_size)
    status, _out, err = await travel.cli()
    assert status == 1
    assert "another one here" in err
    await there.forget("one")
    await _only_here(travel)
    assert (await travel.run("cat /sys/class/nvme/nvme0/state")).strip() == "live"


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["here", "elsewhere"])
@pytest.mark.parametrize("victim", ["target", "endpoint", "supervisor"])
async def test_killed_while_memory_is_copied(travel: Travel, side: str, victim: str) -> None:
    """The guest goes on at exactly one side."""
    boot = await travel.boot_id()
    await travel.load.begin()
    moving = await travel.begin("--bandwidth", "30M")
    await _until_copying(travel)
    struck = travel.here if side == "here" else travel.elsewhere
    if victim == "supervisor":
        process = struck.control.hold_peer()
        process.signal(signal.SIGKILL)
        # It holds the state directory until it has ended.
        await process.ended.wait()
        process.close()
        await struck.control.aclose()
        await asyncio.to_thread(daemon.start, struck.state, Options(profile="eco"))
        struck.control = await Client.connect(struck.state.control_socket, timeout=60)
    else:
        os.kill((await struck.control.call("status"))[victim]["pid"], signal.SIGKILL)
    out, err = await moving.communicate()
    if not moving.returncode:
        travel.here = travel.elsewhere
    assert b"Traceback" not in err, (out, err)
    assert registry(travel.here.state).get(NAME).running
    await travel.check()
    assert await travel.boot_id() == boot


async def test_to_a_file_and_back(travel: Travel) -> None:
    """Its volumes are open nowhere in between."""
    boot, root = await travel.boot_id(), travel.a.state.root.parent
    await travel.load.begin()
    status, _, err = await nvmuser(travel.here, "guest", "suspend", NAME, str(root / "saved"))
    assert status == 0, err
    assert [openers(root / name) for name in DISKS] == [set()] * len(DISKS)
    assert registry(travel.here.state).list() == []
    status, _, err = await nvmuser(travel.here, "guest", "resume", NAME, str(root / "saved"))
    assert status == 0, err
    assert not (root / "saved").exists()
    await travel.check()
    await _only_here(travel)
    assert await travel.boot_id() == boot
