"""The endpoint process: killed, and taken over with its guests connected."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from vfio_fds import memory, until
from vfio_guest import Client, Driver
from vfio_supervisor import Supervisor, endpoint_process
from vfio_target import FakeTarget

from nvmf_vfio.keeper.channel import HeldFds
from nvmf_vfio.keeper.fd_store import Record
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DmaMap, RegionInfo
from nvmf_vfio.state.registers import CSTS_CFS, CSTS_RDY, OPC_ASYNC_EVENT_REQUEST
from nvmuser.hostfs.sockets import answers

do = asyncio.to_thread
MIB = 1 << 20

StartEndpoint = Callable[[], contextlib.AbstractAsyncContextManager[Supervisor]]


@pytest.fixture
def endpoint(tmp_path: Path, fds: HeldFds) -> StartEndpoint:
    """An endpoint that serves controller a and is killed at the end; the fds is always the same."""

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[Supervisor]:
        async with endpoint_process(tmp_path, fds) as (_, supervisor):
            supervisor.begin(["a"])
            await supervisor.status()
            yield supervisor
        assert "Traceback" not in (tmp_path / "endpoint.log").read_text()

    return start


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], Driver]]:
    """Boots a guest, as far as QEMU's connection."""
    drivers = []

    def boot() -> Driver:
        drivers.append(Driver(Client(tmp_path / "guests" / "a" / "cntrl")))
        return drivers[-1]

    yield boot
    for driver in drivers:
        driver.close()


async def online(supervisor: Supervisor) -> dict[str, object]:
    """Wait until the guest has a target; its status."""
    while True:
        status = await supervisor.status()
        sessions = status["sessions"]
        assert isinstance(sessions, list)
        if sessions and sessions[0]["online"]:
            found: dict[str, object] = sessions[0]
            return found


async def test_a_guest_stays_connected_when_its_endpoint_is_killed(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        assert await do(driver.csts) == CSTS_RDY
        await do(driver.submit, OPC_ASYNC_EVENT_REQUEST, 5)
        await until(lambda: len(fds) == 4)
    assert len(fds) == 4, "connection, record, memory, interrupt"

    async with endpoint() as supervisor:
        assert await do(driver.csts) == CSTS_CFS | CSTS_RDY
        supervisor.send("target", state="ready")
        await online(supervisor)
        assert [m.address for m in target.maps] == [0]
        assert driver.completion(0)[1:] == (5, 1)
        await do(driver.disable)
        await do(driver.enable)
        assert await do(driver.csts) == CSTS_RDY
        assert (await online(supervisor))["recoveries"] == 1
        driver.close()
        await until(lambda: len(fds) == 0)


async def test_what_was_asked_before_the_kill_is_answered_after_it(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        target.held.add(Command.DMA_MAP)
        with memory() as more:
            first = driver.client.send(Command.DMA_MAP, DmaMap(3, 0, 1 << 30, MIB).pack(), [more])
        await until(lambda: len(target.asked(Command.DMA_MAP)) == 2 and len(fds) == 5)
    with memory() as more:
        second = driver.client.send(Command.DMA_MAP, DmaMap(3, 0, 1 << 31, MIB).pack(), [more])
    target.held.clear()
    async with endpoint() as supervisor:
        for identifier in (first, second):
            reply = await do(driver.client.receive)
            assert (reply.header.id, reply.header.error) == (identifier, 0)
        supervisor.send("target", state="ready")
        await online(supervisor)
        assert [m.address for m in target.maps] == [0, 1 << 30, 1 << 31]
        await do(driver.client.unmap, 1 << 30, MIB)
        await until(lambda: len(fds) == 5)
    driver.close()


async def test_killed_again_and_again(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    driver = None
    for round_ in range(4):
        async with endpoint() as supervisor:
            supervisor.send("target", state="ready")
            if driver is None:
                driver = connect()
                await do(driver.set_up)
            await online(supervisor)
            with memory() as more:
                await do(driver.client.map, (round_ + 1) << 30, MIB, more)
            await until(lambda: len(fds) == 4 + round_ + 1)  # noqa: B023 (awaited at once)
    assert driver
    driver.close()


async def test_a_guest_that_left_meanwhile(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        await until(lambda: len(fds) == 4)
    driver.close()
    async with endpoint() as supervisor:
        await until(lambda: len(fds) == 0)
        supervisor.send("target", state="ready")
        again = connect()
        await do(again.set_up)
        assert await do(again.csts) == CSTS_RDY
        again.close()


async def test_remains_of_an_earlier_guest_do_not_displace_the_present_one(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    """The endpoint was killed before it had reported that a session had ended."""
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        await until(lambda: len(fds) == 4)
        stale = {name: held.duplicate() for name, held in fds._held.items()}
        driver.close()
        await until(lambda: len(fds) == 0 and target.wire is None)
        present = connect()
        await do(present.set_up)
        await until(lambda: len(fds) == 4)
    assert not set(stale) & set(fds._held)
    for name, held in stale.items():
        fds.push(name, held)
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        await online(supervisor)
        await until(lambda: len(fds) == 4)
        assert await do(present.csts) == CSTS_RDY


@pytest.mark.parametrize("lost", ["conn", "record", "0"])
async def test_a_guest_whose_remains_are_incomplete_is_let_go(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver], lost: str
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        await until(lambda: len(fds) == 4)
    fds.pop(f"a/1/{lost}")
    async with endpoint() as supervisor:
        await until(lambda: len(fds) == 0)
        assert await do(driver.client.is_closed)
        supervisor.send("target", state="ready")
        again = connect()
        await do(again.set_up)
        again.close()
    driver.close()


async def test_garbage_in_a_record_harms_that_guest_alone(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        await until(lambda: len(fds) == 4)
    os.ftruncate(fds._held["a/1/record"].fileno(), 100)
    async with endpoint() as supervisor:
        assert await do(driver.client.is_closed)
        assert (await supervisor.status())["controllers"] == 1
    driver.close()


async def test_a_message_in_pieces_when_the_endpoint_is_killed(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    """Half a message is lost with the process that had read it; once it was whole, nothing is."""
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        assert await do(driver.csts) == CSTS_RDY
        driver.client.send_raw(bytes([1]))
        await supervisor.status()
        rest = b"\0\5\0\x30\0\0\0\0\0\0\0\0\0\0\0" + RegionInfo(32, 0, 0).pack()
        driver.client.send_raw(rest)
        assert (await do(driver.client.receive)).header.error == 0
        await until(lambda: len(fds) == 4)
    async with endpoint() as supervisor:
        assert await do(driver.csts) == CSTS_RDY
        driver.client.send_raw(bytes([1]))
        await supervisor.status()
    async with endpoint() as supervisor:
        assert await do(driver.client.is_closed)
    driver.close()


async def test_a_new_supervisor_gets_everything_once_more(
    tmp_path: Path, target: FakeTarget, connect: Callable[[], Driver]
) -> None:
    async with endpoint_process(tmp_path) as (process, first):
        first.begin(["a"])
        first.send("target", state="ready")
        await first.status()
        driver = connect()
        await do(driver.set_up)
        await until(lambda: len(first.fds) == 4)
        first.close()
        second = Supervisor()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(os.fspath(tmp_path / "endpoint.sock"))
        second.attach(sock)
        await until(lambda: second.heard("hello"))
        assert second.heard("hello")[0]["fresh"] is False
        assert second.heard("hello")[0]["pid"] == process.pid
        second.begin(["a"])
        await until(lambda: len(second.fds) == 4)
        assert await do(driver.csts) == CSTS_RDY
        driver.close()
        await until(lambda: len(second.fds) == 0)
        second.close()


async def test_stop_and_what_is_left_behind(tmp_path: Path) -> None:
    async with endpoint_process(tmp_path) as (process, supervisor):
        supervisor.begin(["a", "b"])
        await supervisor.status()
        guest = tmp_path / "guests" / "a" / "cntrl"
        assert guest.stat().st_mode & 0o7777 == 0o660
        assert (tmp_path / "endpoint.sock").stat().st_mode & 0o7777 == 0o600
        supervisor.send("serve", controllers=["a"])
        await supervisor.status()
        assert not (tmp_path / "guests" / "b").exists()
        supervisor.send("stop")
        assert await process.wait() == 0
        assert not guest.exists()
        supervisor.close()


async def test_a_keeper_holds_one_copy_of_a_name() -> None:
    fds = HeldFds()
    held = memory()
    fds.push("x", held.duplicate())
    fds.push("x", Descriptor(held.detach()))
    assert len(fds) == 1
    fds.pop("x")
    fds.pop("x")
    assert len(fds) == 0


async def test_a_record_of_another_layout_harms_that_guest_alone(
    endpoint: StartEndpoint, target: FakeTarget, fds: HeldFds, connect: Callable[[], Driver]
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        await do(driver.set_up)
        await until(lambda: len(fds) == 4)
    Record(fds._held["a/1/record"], 2).write([["not", "a request"]])
    async with endpoint() as supervisor:
        assert await do(driver.client.is_closed)
        assert (await supervisor.status())["controllers"] == 1


async def test_who_only_asks_whether_somebody_listens_is_no_guest(
    tmp_path: Path, endpoint: StartEndpoint, target: FakeTarget, connect: Callable[[], Driver]
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        connect()  # and says nothing
        assert answers(tmp_path / "guests/a/cntrl")
        for _ in range(3):
            assert (await supervisor.status())["sessions"] == []
        assert "guest connected" not in (tmp_path / "endpoint.log").read_text()
        await do(connect().set_up)
        await online(supervisor)


async def test_who_only_asks_does_not_turn_away_a_guest_that_has_not_spoken_yet(
    tmp_path: Path, endpoint: StartEndpoint, target: FakeTarget, connect: Callable[[], Driver]
) -> None:
    async with endpoint() as supervisor:
        supervisor.send("target", state="ready")
        driver = connect()
        assert answers(tmp_path / "guests/a/cntrl")
        for _ in range(3):
            await supervisor.status()
        await do(driver.set_up)
        await online(supervisor)
