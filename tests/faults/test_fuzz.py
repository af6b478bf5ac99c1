"""Hostile guests at the real endpoint: each harms its own connection at most."""

import asyncio
import contextlib
import itertools
import os
import re
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hostile import HELLO, attack, bounded, kinds, message, messages, words
from hypothesis import given
from hypothesis import strategies as st
from vfio_fds import memory, until
from vfio_guest import ASQ, Client, Driver
from vfio_supervisor import Supervisor, endpoint_process
from vfio_target import targets_in_thread

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command, Flag
from nvmf_vfio.protocol.messages import DmaMap, RegionAccess, SetIrqs
from nvmf_vfio.state.registers import BAR0, CSTS_RDY, DOORBELLS, OPC_ASYNC_EVENT_REQUEST, Register

SECONDS = 12.0
"""For each of the hypothesis tests."""
MEMORY_KIB = 64 << 10


@dataclass
class Victim:
    """The endpoint, and a guest that must not notice anything."""

    directory: Path
    process: asyncio.subprocess.Process
    supervisor: Supervisor
    driver: Driver
    descriptors: int
    memory_kib: int

    def is_well(self) -> None:
        assert self.process.returncode is None
        before = time.monotonic()
        assert self.driver.csts() == CSTS_RDY
        assert time.monotonic() - before < 1.0, "the other guest was held up"

    def descriptors_open(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def anonymous_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+)", status, re.M)
        assert found
        return int(found[1])

    def attack(self, script: list[tuple[bytes, list[str]]], *, hello: bool = True) -> None:
        attack(self.directory / "guests" / "evil" / "cntrl", self.directory, script, hello=hello)

    def attacker(self) -> Client:
        return Client(self.directory / "guests" / "evil" / "cntrl", timeout=2.0)


LOSES_ITS_TARGET = {Command.DMA_MAP, Command.DEVICE_SET_IRQS, Command.DEVICE_RESET, Command.DEVICE_GET_REGION_INFO}


@pytest.fixture(params=["target", "target that hangs up"])
async def victim(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Victim]:
    paths = [tmp_path / "targets" / name / "cntrl" for name in ("good", "evil")]
    fatal = {paths[1]: LOSES_ITS_TARGET} if request.param != "target" else {}
    with targets_in_thread(paths, fatal):
        async with endpoint_process(tmp_path) as (process, supervisor):
            supervisor.begin(["good", "evil"])
            supervisor.send("target", state="ready")
            await supervisor.status()
            driver = Driver(Client(tmp_path / "guests" / "good" / "cntrl", timeout=5.0))
            await asyncio.to_thread(driver.set_up)
            victim = Victim(tmp_path, process, supervisor, driver, 0, 0)
            await asyncio.to_thread(victim.attack, [(b"", [])])
            await until(lambda: len(supervisor.fds) == 4)
            victim.descriptors, victim.memory_kib = victim.descriptors_open(), victim.anonymous_kib()
            yield victim
            await asyncio.to_thread(victim.is_well)
            await until(lambda: victim.descriptors_open() == victim.descriptors)
            await until(lambda: len(supervisor.fds) == 4)
            assert victim.anonymous_kib() - victim.memory_kib < MEMORY_KIB
            assert "Traceback" not in (tmp_path / "endpoint.log").read_text()
            driver.close()
            supervisor.close()


def until_time(seconds: float = SECONDS) -> float:
    return time.monotonic() + seconds


async def test_hostile_messages(victim: Victim) -> None:
    end = until_time()

    @bounded
    @given(script=st.lists(st.tuples(messages, kinds), max_size=8), hello=st.booleans())
    def run(script: list[tuple[bytes, list[str]]], hello: bool) -> None:
        if time.monotonic() < end:
            victim.attack(script, hello=hello)

    await asyncio.to_thread(run)


async def test_messages_cut_anywhere(victim: Victim) -> None:
    """Valid messages whose bytes arrive in any pieces, descriptors beside any byte."""
    end = until_time(6.0)
    stream = b"".join(
        [
            HELLO,
            message(Command.DMA_MAP, DmaMap(3, 0, 0, 1 << 20).pack(), identifier=2),
            message(Command.DEVICE_SET_IRQS, SetIrqs(0x24, 2, 0, 1).pack(), identifier=3),
            message(Command.REGION_READ, RegionAccess(0, BAR0, 8).pack(), identifier=4),
        ]
    )

    @bounded
    @given(cuts=st.lists(st.integers(0, len(stream)), max_size=6), kinds=st.lists(kinds, min_size=7, max_size=7))
    def run(cuts: list[int], kinds: list[list[str]]) -> None:
        if time.monotonic() < end:
            edges = [0, *sorted(cuts), len(stream)]
            pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
            victim.attack(list(zip(pieces, kinds, strict=False)), hello=False)

    await asyncio.to_thread(run)


async def test_garbage_in_the_admin_queue(victim: Victim) -> None:
    end = until_time()

    @bounded
    @given(
        rings=st.binary(min_size=64, max_size=4096),
        registers=st.lists(st.tuples(st.sampled_from([0x14, 0x24, 0x28, 0x2C, 0x30, 0x34]), words), max_size=6),
        doorbells=st.lists(st.tuples(st.sampled_from([0x1000, 0x1004, 0x1008]), words), max_size=6),
        cut=st.booleans(),
    )
    def run(rings: bytes, registers: list[tuple[int, int]], doorbells: list[tuple[int, int]], cut: bool) -> None:
        if time.monotonic() > end:
            return
        driver = Driver(victim.attacker())
        try:
            with contextlib.suppress(OSError, EOFError):
                driver.set_up()
                os.pwrite(driver.memory.fileno(), rings * (0x4000 // len(rings)), ASQ)
                for offset, value in registers:
                    driver.client.post(offset, 4, value)
                if cut:
                    os.ftruncate(driver.memory.fileno(), ASQ + 100)
                for offset, value in doorbells:
                    driver.client.post(offset, 4, value & 0x1FFF)
                driver.csts()
        finally:
            driver.close()

    await asyncio.to_thread(run)


async def test_hostile_guests_while_targets_come_and_go(victim: Victim) -> None:
    """Rings full of event requests, memory cut short, then the target is lost and another one is there."""

    def guest(opcode: int, entries: int, size: int) -> Driver:
        driver = Driver(victim.attacker())
        driver.client.hello()
        driver.client.map(0, 1 << 20, driver.memory)
        driver.client.interrupts([driver.interrupt])
        ring = b"".join(struct.pack("<BBH60x", opcode, 0, 0xFFFF - number) for number in range(4096))
        os.pwrite(driver.memory.fileno(), ring, 0x10000)
        driver.client.post(Register.AQA, 4, (entries - 1) << 16 | (entries - 1))
        driver.client.post(Register.ASQ, 8, 0x10000)
        driver.client.post(Register.ACQ, 8, 0x80000)
        driver.client.post(Register.CC, 4, 1)
        driver.client.post(DOORBELLS, 4, entries - 1)
        driver.csts()
        os.ftruncate(driver.memory.fileno(), size)
        return driver

    sizes = ((2, 1 << 20), (4096, 1 << 20), (4096, 0x80000), (4096, 0), (1, 1 << 20))
    for opcode, (entries, size) in itertools.product((OPC_ASYNC_EVENT_REQUEST, 0x05), sizes):
        driver = await asyncio.to_thread(guest, opcode, entries, size)
        for state in ("gone", "drained", "ready"):
            victim.supervisor.send("target", state=state)
        # The connection to the target ends with the session's; the good guest is failed and comes back by a reset.
        await asyncio.to_thread(victim.driver.disable)
        await asyncio.to_thread(victim.driver.enable)

        def wait_ready() -> None:
            end = until_time(10)
            while victim.driver.csts() != CSTS_RDY:
                assert time.monotonic() < end

        await asyncio.to_thread(wait_ready)
        driver.close()


async def test_floods(victim: Victim) -> None:
    """A guest that asks and asks, reads nothing, or maps and unmaps."""

    def flood(data: bytes, held: list[Descriptor]) -> None:
        client = victim.attacker()
        end = until_time(1.0)
        with contextlib.suppress(OSError):
            client.send_raw(HELLO)
            client.socket.settimeout(0.2)
            while time.monotonic() < end:
                client.send_raw(data, held)
        client.close()

    def many(command: Command, body: bytes, flags: int = 0) -> bytes:
        return b"".join(message(command, body, identifier=i, flags=flags) for i in range(200))

    enable = RegionAccess(Register.CC, BAR0, 4, b"\1\0\0\0").pack()
    floods = [
        many(Command.REGION_READ, RegionAccess(0, BAR0, 0x2000).pack()),
        many(Command.DEVICE_GET_INFO, bytes(1000)),
        many(Command.REGION_WRITE, enable, Flag.NO_REPLY),
        many(Command.REGION_WRITE, RegionAccess(4, 7, 2, b"ab").pack()),
        many(Command.DEVICE_RESET, b""),
    ]
    for data in floods:
        task = asyncio.create_task(asyncio.to_thread(flood, data, []))
        while not task.done():
            await asyncio.to_thread(victim.is_well)
        await task
    with memory() as held:
        data = message(Command.DMA_MAP, DmaMap(3, 0, 0, 1 << 20).pack())
        await asyncio.to_thread(flood, data, [held])
