"""A migration from one QEMU to another, or to a file and back, by QMP: begun, watched, given up.

Owns the order of commands, and where the guest is afterwards. It starts and ends no process, and knows no controller:
what QEMU's devices do meanwhile is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from nvmuser.errors import GuestError
from nvmuser.model.remote_path import bracketed

_INTERVAL = 0.01
_LOOKS_A_REPORT = 10
"""A guest stands still from its last page until it is told to run, but nobody reads so fast."""
_ENDED = ("completed", "failed", "cancelled", "none")
_GIVE_UP = 60.0
DOWNTIME = 0.3
"""Seconds for which QEMU may stop a guest, if nobody says otherwise; QEMU's own default."""
_UNLIMITED = 1 << 40
"""Bytes a second: QEMU's own limit is 128 MiB/s."""


@dataclass(frozen=True)
class Progress:
    """How far a migration is."""

    status: str
    remaining: int
    """Bytes of memory that are still to be sent."""
    total: int
    rate: float
    """Bytes a second."""
    stall: float
    """Seconds for which QEMU expects to stop the guest."""


@dataclass(frozen=True)
class Result:
    """A migration that is over: what QEMU reports of it. Times in seconds."""

    total: float
    downtime: float
    bytes: int


def blocked(info: Mapping[str, Any]) -> str:
    """Why a QEMU refuses to migrate, from its `query-migrate`; empty when it does not."""
    return "; ".join(str(reason).strip() for reason in info.get("blocked-reasons", ()))


class Stranded(GuestError):
    """The guest has left where it was for good, and does not run where it has arrived."""


async def check(source: QMPClient) -> None:
    """Check what can be before anything is started elsewhere.

    :raises GuestError: the guest does not run, or QEMU does not migrate it.
    """
    status, info = await _dict(source, "query-status"), await _dict(source, "query-migrate")
    if not status.get("running"):
        raise GuestError(f"the guest does not run: its QEMU is {status.get('status')}")
    if reason := blocked(info):
        raise GuestError(f"QEMU does not migrate this guest: {reason}")


async def move(
    source: QMPClient,
    destination: QMPClient,
    uri: str,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    bandwidth: int = 0,
    downtime: float = DOWNTIME,
) -> Result:
    """Migrate a guest to a QEMU that was started with `-incoming defer -S`.

    When this returns, the guest is there, and runs: the return path says so. Otherwise it runs where it was, unless its
    QEMU there has ended. It runs nowhere else before QEMU has reported at the source that it has left: given up until
    then, QEMU has it run at the source, whatever the destination has received.

    :param uri: QEMU's, such as `unix:PATH` or `tcp:HOST:PORT`.
    :param bandwidth: bytes a second at most; 0: as fast as it can.
    :param downtime: seconds for which the guest may be stopped.
    :raises Stranded: it has left, and does not run there.
    :raises GuestError: it did not come about.
    """
    await expect(destination, uri)
    began = time.monotonic()
    try:
        result = await send(source, uri, on_progress=on_progress, bandwidth=bandwidth, downtime=downtime)
    except QMPError:
        if not await arrived(destination):
            raise
        # QEMU has ended at the source after it had sent everything, and cannot say how it was any more.
        result = Result(time.monotonic() - began, 0.0, 0)
    await run(destination)
    return result


async def expect(destination: QMPClient, uri: str) -> str:
    """Have a QEMU that was started with `-incoming defer -S` wait for a guest.

    :returns: the address where it does, where the port was left to it.
    :raises GuestError: it does not.
    """
    try:
        # Without it the source ends before it knows that the destination has taken everything.
        await _capability(destination, "return-path", wanted=True)
        await destination.execute("migrate-incoming", {"uri": uri})
    except ExecuteError as error:
        raise GuestError(f"QEMU does not begin the migration: {error}") from error
    if not uri.endswith(":0"):
        return uri
    for address in (await _dict(destination, "query-migrate")).get("socket-address", ()):
        if address.get("type") == "inet":
            return f"tcp:{bracketed(address['host'])}:{address['port']}"
    return uri


async def send(
    source: QMPClient,
    uri: str,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    bandwidth: int = 0,
    downtime: float = DOWNTIME,
) -> Result:
    """Send a guest to where a QEMU waits for it. When this returns, it does not run here any more, and never will.

    :raises GuestError: it goes on here. :raises QMPError: its QEMU has ended, and the destination knows more.
    """
    try:
        await _capability(source, "return-path", wanted=True)
        await _limit(source, bandwidth, downtime)
        await source.execute("migrate", {"uri": uri})
    except ExecuteError as error:
        raise GuestError(f"QEMU does not begin the migration: {error}") from error
    return await _finish(source, on_progress)


async def resume(source: QMPClient) -> Result | None:
    """As `send`, of a migration that somebody else has begun. None: none is under way.

    A QEMU to which a guest has come by a migration goes on to report that one, as completed.
    """
    status = (await _dict(source, "query-migrate")).get("status", "none")
    if status in _ENDED and not (status == "completed" and await has_left(source)):
        return None
    return await _finish(source, lambda progress: None)


async def has_left(source: QMPClient) -> bool:
    """Whether a guest was sent from here: it stands still for ever."""
    return (await _dict(source, "query-status")).get("status") == "postmigrate"


async def go_on(source: QMPClient) -> None:
    """Have a guest go on at the source: QEMU does so by itself after most failures; after one at the very end, or where
    it has sent everything, it leaves that to us."""
    with contextlib.suppress(QMPError):
        if not (await _dict(source, "query-status")).get("running"):
            await source.execute("cont")


async def run(destination: QMPClient) -> None:
    """Have a guest run that is here and nowhere else. It is too late to give up.

    :raises Stranded: its QEMU has ended, or does not run it.
    """
    starting = asyncio.ensure_future(destination.execute("cont"))
    while not starting.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([starting])
    try:
        starting.result()
    except ExecuteError as error:
        raise Stranded(f"its QEMU there does not run it: {error}") from error
    except QMPError as error:
        raise Stranded(f"its QEMU there has ended: {error}") from error


async def arrived(destination: QMPClient) -> bool:
    """Whether a guest whose source has ended is at the destination."""
    with contextlib.suppress(QMPError, TimeoutError):
        async with asyncio.timeout(_GIVE_UP):
            while True:
                status = await _dict(destination, "query-status")
                if status.get("status") != "inmigrate":
                    return status.get("status") in ("running", "paused")
                await asyncio.sleep(_INTERVAL)
    return False


async def machine_type(qmp: QMPClient) -> str:
    """The machine of a QEMU by the name that later QEMUs know it by too."""
    kind = await qmp.execute("qom-get", {"path": "/machine", "property": "type"})
    return str(kind).removesuffix("-machine")


async def save(
    source: QMPClient, file: Path, *, without_memory: bool = False, on_progress: Callable[[Progress], None]
) -> Result:
    """Write a guest to a file, after which it stands still for ever in this QEMU.

    When this does not return, the guest goes on.

    :param without_memory: which is a file that stays.
    :raises GuestError: it did not come about.
    """
    try:
        await _capability(source, "return-path", wanted=False)  # a file does not answer
        await _capability(source, "x-ignore-shared", wanted=without_memory)
        await _limit(source, 0, DOWNTIME)
        await source.execute("migrate", {"uri": f"file:{file}"})
    except ExecuteError as error:
        raise GuestError(f"QEMU does not begin to write the guest: {error}") from error
    return await _finish(source, on_progress)


async def load(destination: QMPClient, file: Path, *, without_memory: bool = False) -> None:
    """Read a guest from a file into a QEMU that was started with `-incoming defer -S`, and have it go on.

    :param without_memory: as it was written.
    :raises GuestError: QEMU does not take it.
    """
    try:
        await _capability(destination, "x-ignore-shared", wanted=without_memory)
        await destination.execute("migrate-incoming", {"uri": f"file:{file}"})
        status = (await _watch(destination, lambda progress: None))["status"]
    except QMPError as error:
        raise GuestError(f"{file}: QEMU does not take this guest: {error}") from error
    if status != "completed":
        raise GuestError(f"{file}: QEMU does not take this guest: the migration has {status}")
    await run(destination)


async def _capability(qmp: QMPClient, name: str, *, wanted: bool) -> None:
    state = {"capability": name, "state": wanted}
    await qmp.execute("migrate-set-capabilities", {"capabilities": [state]})


async def _limit(source: QMPClient, bandwidth: int, downtime: float) -> None:
    limits = {"max-bandwidth": bandwidth or _UNLIMITED, "downtime-limit": round(downtime * 1000)}
    await source.execute("migrate-set-parameters", limits)


async def _finish(source: QMPClient, on_progress: Callable[[Progress], None]) -> Result:
    try:
        info = await _watch(source, on_progress)
    except BaseException:
        if not await _give_up(source):
            raise
        # It was over before it could be given up: the guest is there.
        info = await _dict(source, "query-migrate")
    if info["status"] != "completed":
        await go_on(source)
        raise GuestError(f"the migration has {info['status']}: {info.get('error-desc') or 'QEMU gives no reason'}")
    return _result(info)


async def _watch(source: QMPClient, on_progress: Callable[[Progress], None]) -> dict[str, Any]:
    looks = 0
    while True:
        info = await _dict(source, "query-migrate")
        if info.get("status") in _ENDED:
            return info
        if looks % _LOOKS_A_REPORT == 0:
            on_progress(_progress(info))
        looks += 1
        await asyncio.sleep(_INTERVAL)


def _progress(info: Mapping[str, Any]) -> Progress:
    ram = info.get("ram", {})
    return Progress(
        str(info.get("status", "")),
        int(ram.get("remaining", 0)),
        int(ram.get("total", 0)),
        float(ram.get("mbps", 0.0)) * 1e6 / 8,
        float(info.get("expected-downtime", 0)) / 1000,
    )


def _result(info: Mapping[str, Any]) -> Result:
    ram = info.get("ram", {})
    return Result(info.get("total-time", 0) / 1000, info.get("downtime", 0) / 1000, int(ram.get("transferred", 0)))


async def _give_up(source: QMPClient) -> bool:
    """Have the guest go on at the source. Returns whether it had left already."""
    with contextlib.suppress(QMPError, TimeoutError):
        async with asyncio.timeout(_GIVE_UP):
            await source.execute("migrate_cancel")
            if (await _watch(source, lambda progress: None))["status"] == "completed":
                return True
            await go_on(source)
    return False


async def _dict(qmp: QMPClient, command: str) -> dict[str, Any]:
    value = await qmp.execute(command)
    assert isinstance(value, dict)
    return value
