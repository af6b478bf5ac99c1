"""An NVMe driver over vfio-user that sends whatever a test wants, well-formed or not, to a real target."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bare_target import BareTarget
from vfio_fds import PATIENCE, memory
from vfio_guest import Client

from nvmf_vfio.state.registers import CSTS_RDY, DOORBELLS, Register
from nvmuser.rpc import Client as Rpc

NQN = "nqn.2026-11.org.nvmuser:raw"
BLOCK = 4096
PAGE = 0x1000
MEMORY = 16 << 20
ENABLE = 0x460001
ADMIN_ENTRIES = 32
DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY, ABORT = 0x00, 0x01, 0x02, 0x04, 0x05, 0x06, 0x08
SET_FEATURES, GET_FEATURES, EVENT_REQUEST, DOORBELL_BUFFERS = 0x09, 0x0A, 0x0C, 0x7C
FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DSM = 0x00, 0x01, 0x02, 0x05, 0x08, 0x09
ALL_NAMESPACES = 0xFFFFFFFF


def call(target: BareTarget, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Make RPC calls one after the other."""

    async def make() -> list[Any]:
        async with await Rpc.connect(target.rpc_socket) as rpc:
            return [await rpc.call(method, parameters) for method, parameters in calls]

    return asyncio.run(make())


def serve(target: BareTarget, directory: Path, *bdevs: str, nqn: str = NQN) -> Path:
    """A controller that shows these bdevs as namespaces 1, 2 …: its socket."""
    directory.mkdir()
    address = {"trtype": "VFIOUSER", "traddr": str(directory), "trsvcid": "0"}
    calls: list[tuple[str, dict[str, Any]]] = [("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True})]
    calls += [("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": bdev}}) for bdev in bdevs]
    calls += [("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})]
    call(target, *calls)
    return directory / "cntrl"


def command(opcode: int, nsid: int = 0, *, flags: int = 0, data: tuple[int, int] = (0, 0), **dwords: int) -> bytes:
    """A submission queue entry, its identifier 0.

    :param data: PRP1 and PRP2, or the two halves of an SGL descriptor. :param dwords: cdw10 to cdw15.
    """
    words = [dwords.pop(f"cdw{number}", 0) for number in range(10, 16)]
    assert not dwords
    return struct.pack("<BBHI16xQQ6I", opcode, flags, 0, nsid, *data, *words)


def read_or_write(
    opcode: int, blocks: int, data: tuple[int, int], *, nsid: int = 1, lba: int = 0, flags: int = 0
) -> bytes:
    return command(
        opcode, nsid, flags=flags, data=data, cdw10=lba & 0xFFFFFFFF, cdw11=lba >> 32, cdw12=(blocks - 1) & 0xFFFFFFFF
    )


@dataclass(frozen=True)
class Completion:
    """What a command came to."""

    identifier: int
    dword0: int
    status_type: int
    status: int
    do_not_retry: bool


@dataclass
class Queue:
    """A pair of rings in the driver's memory."""

    number: int
    submission: int
    completion: int
    entries: int
    completions: int
    """Entries of each ring."""
    tail: int = 0
    head: int = 0
    phase: int = 1


@dataclass
class RawNvme:
    """A connected client with memory at address 0, whose first MiB is left to the test."""

    path: Path
    client: Client = field(init=False)
    queues: dict[int, Queue] = field(default_factory=dict)
    _free: int = 1 << 20
    _identifier: int = 0

    def __post_init__(self) -> None:
        self.client = Client(self.path)
        self.memory = memory(MEMORY)
        self.version = self.client.hello()
        self.client.map(0, MEMORY, self.memory)

    def close(self) -> None:
        self.client.close()
        self.memory.close()

    # -- memory --------------------------------------------------------------------------------------------------

    def allocate(self, size: int = PAGE) -> int:
        """The address of new, zeroed pages."""
        address, self._free = self._free, self._free + -(-size // PAGE) * PAGE
        assert self._free <= MEMORY
        return address

    def peek(self, address: int, size: int) -> bytes:
        return os.pread(self.memory.fileno(), size, address)

    def poke(self, address: int, data: bytes) -> None:
        os.pwrite(self.memory.fileno(), data, address)

    # -- the controller ------------------------------------------------------------------------------------------

    def enable(self, cc: int = ENABLE, entries: int = ADMIN_ENTRIES) -> None:
        admin = self._ring(0, entries)
        self.client.write(Register.AQA, 4, (entries - 1) << 16 | (entries - 1))
        self.client.write(Register.ASQ, 8, admin.submission)
        self.client.write(Register.ACQ, 8, admin.completion)
        self.client.write(Register.CC, 4, cc)
        self.until(lambda: self.client.read(Register.CSTS, 4) & CSTS_RDY)

    def disable(self) -> None:
        self.client.write(Register.CC, 4, ENABLE & ~1)
        self.until(lambda: not self.client.read(Register.CSTS, 4) & CSTS_RDY)

    def until(self, condition: Callable[[], Any]) -> None:
        """Look until it is true."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it does not come"
            time.sleep(0.001)

    def _ring(self, number: int, entries: int, completions: int = 0) -> Queue:
        completions = completions or entries
        queue = Queue(number, self.allocate(64 * entries), self.allocate(16 * completions), entries, completions)
        self.queues[number] = queue
        return queue

    def create_queue(
        self, number: int = 1, entries: int = 32, *, completions: int = 0, interrupts: bool = False
    ) -> Queue:
        """A pair of I/O queues; interrupts are its vector 0."""
        queue = self._ring(number, entries, completions)
        flags = 3 if interrupts else 1
        size = (queue.completions - 1) << 16 | number
        assert not self.admin(CREATE_CQ, data=(queue.completion, 0), cdw10=size, cdw11=flags).status
        size = (entries - 1) << 16 | number
        assert not self.admin(CREATE_SQ, data=(queue.submission, 0), cdw10=size, cdw11=number << 16 | 1).status
        return queue

    # -- commands ------------------------------------------------------------------------------------------------

    def put(self, entry: bytes, number: int = 0) -> int:
        """Put a command into a queue without ringing; its identifier."""
        queue = self.queues[number]
        self._identifier = (self._identifier + 1) & 0x7FFF
        self.poke(queue.submission + 64 * queue.tail, entry[:2] + struct.pack("<H", self._identifier) + entry[4:])
        queue.tail = (queue.tail + 1) % queue.entries
        return self._identifier

    def ring(self, number: int = 0) -> None:
        """Tell the target of what was put into a queue."""
        self.client.write(DOORBELLS + 8 * number, 4, self.queues[number].tail)

    def pending(self, number: int = 0) -> Completion | None:
        """The next completion, left where it is; None when there is none."""
        queue = self.queues[number]
        dword0, _, _, _, identifier, status = struct.unpack(
            "<IIHHHH", self.peek(queue.completion + 16 * queue.head, 16)
        )
        if status & 1 != queue.phase:
            return None
        return Completion(identifier, dword0, status >> 9 & 7, status >> 1 & 0xFF, bool(status >> 15))

    def take(self, number: int = 0, *, acknowledge: bool = True) -> Completion:
        """The next completion, waited for."""
        self.until(lambda: self.pending(number))
        completion = self.pending(number)
        assert completion
        queue = self.queues[number]
        queue.head += 1
        if queue.head == queue.completions:
            queue.head, queue.phase = 0, 1 - queue.phase
        if acknowledge:
            self.acknowledge(number)
        return completion

    def acknowledge(self, number: int = 0) -> None:
        """Tell the target how far completions were taken."""
        self.client.write(DOORBELLS + 8 * number + 4, 4, self.queues[number].head)

    def do(self, entry: bytes, number: int = 0) -> Completion:
        """Carry one command out."""
        identifier = self.put(entry, number)
        self.ring(number)
        completion = self.take(number)
        assert completion.identifier == identifier
        return completion

    def admin(self, opcode: int, nsid: int = 0, **fields: Any) -> Completion:
        return self.do(command(opcode, nsid, **fields))

    def fetch(self, opcode: int, nsid: int = 0, size: int = PAGE, **fields: Any) -> bytes:
        """What an admin command that must succeed answers."""
        address = self.allocate(size)
        completion = self.admin(opcode, nsid, data=(address, address + PAGE), **fields)
        assert not completion.status, completion
        return self.peek(address, size)

    def log_page(self, page: int, size: int, nsid: int = ALL_NAMESPACES) -> bytes:
        return self.fetch(GET_LOG, nsid, size, cdw10=(size // 4 - 1) << 16 | page)
