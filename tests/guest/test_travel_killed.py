"""Processes killed, and migrations given up, at each state of a guest that moves: it goes on at exactly one side.

A state is entered when an endpoint has logged it. Where QEMU itself was killed, the volumes can be opened at exactly
one side. All the while nothing is open twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from travel import DISKS, Travel, kill, nvmuser, only_here, openers, until_copying

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.supervisor import control

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.matrix]

STATES = {"copying": "here", "STOP": "here", "STOP_COPY": "here", "RESUMING": "elsewhere", "RUNNING": "elsewhere"}
"""Each with the side whose endpoint enters it."""
SIDES = ("here", "elsewhere")
_LOOK_INTERVAL = 0.05
SLOW = ("--bandwidth", "60M")
"""So that something can happen while memory is copied."""


def _log(deployment: Deployment) -> Path:
    return deployment.state.logs / "endpoint.log"


async def _entered(travel: Travel, state: str, start: int) -> None:
    """Wait until a state was logged after so many bytes, or the migration cannot come to it any more."""
    if state == "copying":
        await until_copying(travel)
        return
    wanted = f": {state}\n".encode()
    log = _log(getattr(travel, STATES[state]))
    async with asyncio.timeout(60):
        while wanted not in log.read_bytes()[start:]:  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def _never_open_twice(travel: Travel) -> AsyncIterator[None]:
    """Look all the time who has the volumes open."""
    root, most, done = travel.a.state.root.parent, 0, asyncio.Event()

    async def look() -> None:
        nonlocal most
        while not done.is_set():
            for name in DISKS:
                most = max(most, len(await asyncio.to_thread(openers, root / name)))
            await asyncio.sleep(_LOOK_INTERVAL)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        done.set()
        await looking
    assert most == 1


async def _settle(travel: Travel, boot: str) -> None:
    """The guest goes on at one side, with everything that it has written and read."""
    [travel.here] = travel.running()
    await travel.check()
    assert await travel.boot_id() == boot
    await only_here(travel)


def _has_volumes(deployment: Deployment) -> set[bool]:
    """Whether the volumes of its controllers are its own, or expected of another host."""
    return {not controller.away for controller in control.load(deployment.state).controllers()}


async def _restart(travel: Travel) -> None:
    """The guest is gone with its QEMU: its volumes are open, or can be opened, where it was, and it boots there.

    Where it was, is recorded: where its volumes are, all of them; they are being opened there, perhaps.
    """
    await travel.end()
    if _has_volumes(travel.elsewhere) == {True}:
        assert _has_volumes(travel.here) == {False}
        travel.here = travel.elsewhere  # it had arrived
    else:
        assert True not in _has_volumes(travel.elsewhere)
    for name in DISKS:
        status, _, err = await nvmuser(travel.here, "controller", "take-back", name)
        assert status == 0, err
        await nvmuser(travel.elsewhere, "controller", "release", name)
    await travel.boot()
    await only_here(travel)
    await travel.load.prepare()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("victim", ["target", "endpoint", "supervisor", "qemu"])
@pytest.mark.parametrize("state", STATES)
async def test_killed_at_each_state(travel: Travel, state: str, victim: str, side: str) -> None:
    boot = await travel.boot_id()
    await travel.load.begin()
    start = _log(getattr(travel, STATES[state])).stat().st_size
    async with _never_open_twice(travel):
        moving = await travel.begin(*(SLOW if state == "copying" else ()))
        await _entered(travel, state, start)
        await kill(getattr(travel, side), victim)
        out, err = await moving.communicate()
        assert b"Traceback" not in err, (out, err)
        if victim == "qemu" and not travel.running():
            await _restart(travel)
        else:
            await _settle(travel, boot)


@pytest.mark.parametrize("state", STATES)
async def test_given_up_at_each_state(travel: Travel, state: str) -> None:
    """It goes on at the source, or has arrived already."""
    boot = await travel.boot_id()
    await travel.load.begin()
    start = _log(getattr(travel, STATES[state])).stat().st_size
    async with _never_open_twice(travel):
        moving = await travel.begin(*(SLOW if state == "copying" else ()))
        await _entered(travel, state, start)
        moving.send_signal(signal.SIGINT)
        out, err = await moving.communicate()
        assert moving.returncode in (0, 130), (out, err)
        assert b"Traceback" not in err, (out, err)
        await _settle(travel, boot)
