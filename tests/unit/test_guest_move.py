"""A migration by QMP: where the guest is when it ends well, fails, or is given up. QEMU is played."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from qemu.qmp import ExecuteError, QMPClient, QMPError

from nvmuser.errors import GuestError
from nvmuser.guest import move as moves
from nvmuser.guest import saved
from nvmuser.guest.registry import GuestRecord
from nvmuser.guest.relocate import movable
from nvmuser.guest.spec import GuestSpec

RAM = {"remaining": 1 << 20, "total": 1 << 30, "mbps": 800.0, "transferred": 5000}


class Qemu:
    """:ivar states: what `query-migrate` shows, one after the other; the last one for ever."""

    def __init__(self, *states: str, running: bool = True, blocked: str = "") -> None:
        self.states = list(states)
        self.running = running
        self.blocked = [blocked] if blocked else []
        self.asked: list[str] = []
        self.cancelled = "cancelled"
        self.refuses = ""
        self.gone = False

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.asked.append(command)
        await asyncio.sleep(0)
        if self.gone:
            raise QMPError("gone")
        if command == self.refuses:
            raise ExecuteError(cast(Any, _Response()), cast(Any, None), cast(Any, None))
        match command:
            case "query-status":
                return {"running": self.running, "status": "running" if self.running else "postmigrate"}
            case "query-migrate":
                state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
                info = {"status": state, "ram": RAM, "total-time": 1500, "downtime": 40, "expected-downtime": 120}
                return info | ({"blocked-reasons": self.blocked} if self.blocked else {})
            case "migrate_cancel":
                self.states = ["cancelling", self.cancelled]
            case "cont":
                self.running = True
        return {}

    @property
    def client(self) -> QMPClient:
        return cast(QMPClient, self)


class _Response:
    class error:
        desc = "no"
        class_ = "GenericError"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "_INTERVAL", 0.001)
    monkeypatch.setattr(moves, "_LOOKS_A_REPORT", 1)


async def test_well() -> None:
    source, there, seen = Qemu("setup", "active", "active", "completed"), Qemu("none"), list[moves.Progress]()
    result = await moves.move(source.client, there.client, "unix:/x", on_progress=seen.append)
    assert result == moves.Result(1.5, 0.04, 5000)
    assert seen[-1] == moves.Progress("active", 1 << 20, 1 << 30, 1e8, 0.12)
    assert there.asked == ["migrate-set-capabilities", "migrate-incoming", "cont"]
    assert "migrate_cancel" not in source.asked


async def test_one_that_another_process_has_begun() -> None:
    source = Qemu("active", "completed", running=False)
    assert (await moves.resume(source.client)) == moves.Result(1.5, 0.04, 5000)
    assert await moves.has_left(source.client)
    assert (await moves.resume(source.client)) == moves.Result(1.5, 0.04, 5000), "also when it is over"


@pytest.mark.parametrize("state", ["none", "failed", "cancelled", "completed"])
async def test_none_that_was_begun(state: str) -> None:
    """It is still here where it has come from elsewhere: `completed` is what QEMU says of that then."""
    source = Qemu(state)
    assert await moves.resume(source.client) is None
    assert not await moves.has_left(source.client)


@pytest.mark.parametrize("running", [True, False])
async def test_failed(running: bool) -> None:
    source = Qemu("active", "failed", running=running)
    with pytest.raises(GuestError, match="has failed"):
        await moves.move(source.client, Qemu("none").client, "unix:/x")
    assert source.running


async def test_given_up() -> None:
    """Even when everything has been sent: QEMU has it run at the source then, and it must not run there too."""
    source, there, under_way = Qemu("active"), Qemu("none", running=False), asyncio.Event()
    moving = asyncio.create_task(
        moves.move(source.client, there.client, "unix:/x", on_progress=lambda _now: under_way.set())
    )
    await under_way.wait()
    source.running = False
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert (source.running, there.running) == (True, False)


async def test_given_up_too_late() -> None:
    """The guest has left: its QEMU here must not go on."""
    source, there, under_way = Qemu("active"), Qemu("none", running=False), asyncio.Event()
    source.cancelled = "completed"
    moving = asyncio.create_task(
        moves.move(source.client, there.client, "unix:/x", on_progress=lambda _now: under_way.set())
    )
    await under_way.wait()
    source.running = False
    moving.cancel()
    assert (await moving).bytes == 5000
    assert (source.running, there.running) == (False, True)


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_source_that_ends(arrived: bool) -> None:
    """What has arrived must not be taken for lost; else the destination has nothing."""
    source, there = Qemu("active"), Qemu("none", running=arrived)

    def end(_now: moves.Progress) -> None:
        source.gone = True

    moving = moves.move(source.client, there.client, "unix:/x", on_progress=end)
    if arrived:
        assert (await moving).bytes == 0
    else:
        with pytest.raises(QMPError):
            await moving


@pytest.mark.parametrize(("gone", "why"), [(True, "has ended"), (False, "does not run it")])
async def test_a_destination_that_has_it_and_does_not_run_it(gone: bool, why: str) -> None:
    """It must not go on here: its volumes may be open there."""
    source, there = Qemu("active", "completed", running=False), Qemu("none", running=False)
    there.refuses = "cont"

    def end(_now: moves.Progress) -> None:
        there.gone = gone

    with pytest.raises(moves.Stranded, match=why):
        await moves.move(source.client, there.client, "unix:/x", on_progress=end)
    assert not source.running


async def test_not_begun() -> None:
    there = Qemu("none")
    there.refuses = "migrate-incoming"
    with pytest.raises(GuestError, match="does not begin"):
        await moves.move(Qemu("none").client, there.client, "unix:/x")


async def test_a_guest_that_may_not() -> None:
    await moves.check(Qemu("none").client)
    with pytest.raises(GuestError, match="does not run"):
        await moves.check(Qemu("none", running=False).client)
    with pytest.raises(GuestError, match="does not migrate this guest: the node"):
        await moves.check(Qemu("none", blocked="the node x").client)


def test_the_same_guest_elsewhere() -> None:
    sockets = (Path("/a/c0/cntrl"), Path("/a/c1/cntrl"))
    spec = GuestSpec(
        cpus=2, sockets=sockets, directories=(Path("/a/1"), Path("/a/2")), boot_from=sockets[1], qemu_args=("-rtc", "x")
    )
    there = {"c0": Path("/b/c0/cntrl"), "c1": Path("/b/c1/cntrl")}
    directories = {"c0": Path("/b/1"), "c1": Path("/b/2")}
    again = saved.from_json(saved.to_json(spec), there, directories)
    assert (again.sockets, again.directories) == (tuple(there.values()), tuple(directories.values()))
    assert (again.cpus, again.boot_from, again.qemu_args) == (2, there["c1"], ("-rtc", "x"))
    kept = saved.from_json(
        saved.to_json(replace(spec, memory_file=Path("/dev/shm/x"))), there, directories, "pc-q35-10.0"
    )
    assert (kept.memory_file, kept.machine_type) == (Path("/dev/shm/x"), "pc-q35-10.0")
    with pytest.raises(GuestError, match="start it again"):
        saved.from_json({}, there, directories)


def test_a_guest_on_qemus_own_client_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuestRecord, "running", property(lambda _record: True))
    with pytest.raises(GuestError, match="with --via libvfio"):
        movable(GuestRecord("g", 1, 1, 1, 1 << 30, ("/a/c0/cntrl",)))
