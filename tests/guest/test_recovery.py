"""A guest on its disks while the processes under it die: real SPDK, real endpoint, real Linux driver."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from world import GARBAGE, World, both, kill, sparse, started

from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.model.objects import TargetSettings
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import Options

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with started(tmp_path_factory.mktemp("r")) as world:
        yield world


@pytest.mark.parametrize("victims", [("target",), ("endpoint",), ("target", "endpoint")], ids="+".join)
async def test_kill(world: World, victims: tuple[str, ...]) -> None:
    async def strike() -> None:
        before = await world.status()
        kill(before, *victims)
        await world.recovered(before)

    await world.survives(strike)


async def test_kill_while_the_driver_sets_its_controller_up(world: World) -> None:
    async def strike() -> None:
        before = await world.status()
        kill(before, "target")
        # LIVE again: the driver has begun to talk to the new target, and has not finished.
        again = await world.until(lambda now: any(one["phase"] == "live" for one in both(now)) and _new(before, now))
        kill(again, "target")
        await world.recovered(before)

    await world.survives(strike)


def _new(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether another target serves."""
    pid = now["target"]["pid"]
    return now["target"]["ready"] and pid not in (None, before["target"]["pid"])


async def test_restart_and_hold(world: World) -> None:
    async def strike() -> None:
        before = await world.status()
        await world.deployment.control.call("restart", timeout=60)
        await world.recovered(before)
        before = await world.status()
        await world.deployment.control.call("hold", {"seconds": 3})
        kill(before, "target")
        await world.recovered(before)

    await world.survives(strike)


async def test_supervisor_killed(world: World) -> None:
    """Guests do not notice; the next supervisor takes both processes over, and brings them back when they die."""

    async def strike() -> None:
        before = await world.status()
        await world.replace_supervisor()
        after = await world.status()
        assert after["target"]["pid"] == before["target"]["pid"]
        assert after["endpoint"]["pid"] == before["endpoint"]["pid"]
        kill(after, "endpoint")
        await world.recovered(after)

    await world.survives(strike)


@pytest_asyncio.fixture(loop_scope="module")
async def run_otherwise(world: World) -> AsyncIterator[TargetSettings]:
    """A target with another profile, another core and a standby, as `target start` makes it; then as before."""
    state = world.deployment.state
    before = (await world.status())["target"]
    other = TargetSettings(profile="eco", cores=(min(os.sched_getaffinity(0)),))

    async def run(settings: TargetSettings, *, standby: bool) -> None:
        Settings.load(state).with_said(standby=standby).save(state)
        await world.replace_supervisor(Options(cores=settings.cores, profile=settings.profile))
        await world.deployment.control.call("restart")

    await run(other, standby=True)
    yield other
    await run(TargetSettings(profile=before["profile"], cores=tuple(before["cores"])), standby=False)


async def test_standby_profile_and_cores_outlive_a_killed_supervisor(
    world: World, run_otherwise: TargetSettings
) -> None:
    """`target start` without options goes on as it was said before, also with the next target."""

    async def strike() -> None:
        before = await world.status()
        await world.replace_supervisor()
        after = await world.until(lambda now: now["target"]["standby"] is not None)
        assert after["target"]["pid"] == before["target"]["pid"]
        kill(after, "target")
        await world.recovered(after)
        last = await world.status()
        assert last["target"]["pid"] == after["target"]["standby"]
        for status in (after, last):
            assert status["target"]["profile"] == run_otherwise.profile
            assert status["target"]["cores"] == list(run_otherwise.cores)

    await world.survives(strike)


async def test_driver_without_event_request_finds_the_failure(world: World) -> None:
    """`nvme reset` while there is no target: EN=0 is answered at once, RDY waits for the next target."""

    async def strike() -> None:
        before = await world.status()
        await world.deployment.control.call("hold", {"seconds": 2})
        kill(before, "target")
        await world.until(lambda now: all(one["phase"] == "failed" for one in both(now)))
        await world.guest.run("nvme reset /dev/nvme0", timeout=60)
        await world.recovered(before)

    await world.survives(strike)


async def test_two_guests_on_one_target(world: World, tmp_path: Path) -> None:
    socket = await world.deployment.disk("three", sparse(tmp_path / "three"))

    async def strike() -> None:
        before = await world.status()
        kill(before, "target")
        await world.recovered(before)

    async with launch(GuestSpec(memory=384 * MIB, sockets=(socket,)), tmp_path / "second") as second:
        await world.survives(strike, (second,))


async def test_the_logs_are_clean_after_all_that(world: World) -> None:
    kernel = (await world.guest.run("dmesg", timeout=30)).stdout
    assert b"identifiers changed" not in kernel
    assert b"I/O error" not in kernel
    assert "Traceback" not in (world.deployment.state.logs / "endpoint.log").read_text()
    target = (world.deployment.state.logs / "target.log").read_text(errors="replace")
    assert not [line for line in target.splitlines() if GARBAGE.search(line)]


READ_AHEAD = 1 << 19
"""REQ_RAHEAD in the kernel's flags of a request (include/linux/blk_types.h of Linux 6.1 to 6.12)."""


async def test_what_linux_logs_of_read_ahead_is_no_error_of_anybodys(world: World) -> None:
    """docs/survival.md says what may stand in the log after a kill: nothing but read-ahead that was called off."""
    await world.guest.run("dmesg -c > /dev/null; rm -f /tmp/enough", check=True)
    reading = (
        "until [ -e /tmp/enough ]; do echo 3 > /proc/sys/vm/drop_caches; "
        "dd if=/dev/nvme0n1 of=/dev/null bs=16k || exit 1; done"
    )
    reader = asyncio.ensure_future(world.guest.run(reading, timeout=300))
    for _ in range(3):
        before = await world.status()
        kill(before, "target")
        await world.recovered(before)
    await world.guest.run("touch /tmp/enough", check=True)
    assert (await reader).status == 0, "no program has seen an error"
    log = (await world.guest.run("dmesg", check=True)).stdout.decode()
    refused = [line for line in log.splitlines() if re.search(r"I/O error", line, re.IGNORECASE)]
    print("\n".join(refused) or "nothing was logged")
    for line in refused:
        if commands := re.search(r"I/O Cmd\((\w+)\).*\(sct (\w+) / sc (\w+)\)", line):
            assert commands.groups() == ("0x2", "0x3", "0x71"), line
        else:
            flags = re.search(r"op 0x0:\(READ\) flags (0x[0-9a-f]+)", line)
            assert flags, line
            assert int(flags[1], 16) & READ_AHEAD, line
