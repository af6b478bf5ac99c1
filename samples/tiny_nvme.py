"""An NVMe controller in one file: an admin queue, one I/O queue, one namespace in memory or in a file, MSI-X.

    python samples/tiny_nvme.py /tmp/nvme.sock [--file disk.img] [--size 64M]
    qemu-system-x86_64 … -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/nvme.sock"}}'

Linux binds nvme to it: /dev/nvme0n1. It shows what a controller does, and is a bench for faulty ones: derive from
`TinyNvme` and override `admin` or `transfer`. NVM Express Base Specification 2.0 (figures are named in comments).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import struct
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nvmuser.errors import NvmuserError
from nvmuser.model.sizes import parse_size
from nvmuser.pci import Bar, ClassCode, Identity, MsiX, PciDevice, PciExpress, PowerManagement, Reset, serve

PAGE, BLOCK, ENTRIES, MDTS = 4096, 512, 64, 5  # bytes, bytes, of a queue, 2^n pages of a command
# Registers (figure 35). A doorbell is 4 bytes: for each queue the submission's tail, then the completion's head.
CAP, VS, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x08, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
READ_ONLY = {*range(CAP, VS + 4), *range(CSTS, CSTS + 4)}
# CAP (figure 36): entries of a queue less one, contiguous queues, 10 s until ready, the NVM command set.
CAPABILITIES, VERSION = (ENTRIES - 1) | 1 << 16 | 20 << 24 | 1 << 37, 0x00010400
ENABLED, SHUTDOWN, READY, FATAL, SHUT_DOWN = 0x1, 0x3 << 14, 0x1, 0x2, 0x2 << 2  # CC.EN, .SHN; CSTS.RDY, .CFS, .SHST
FLUSH, WRITE, READ = 0x00, 0x01, 0x02
# Status: type and code (figures 93 to 98).
OK, INVALID_OPCODE, INVALID_FIELD, INVALID_NAMESPACE, OUT_OF_RANGE = 0x000, 0x001, 0x002, 0x00B, 0x080
INVALID_CQ, INVALID_QUEUE, INVALID_SIZE, WRITE_FAULT, UNRECOVERED_READ = 0x100, 0x101, 0x102, 0x280, 0x281


@dataclass
class Queue:
    """A submission or completion queue: where it lies, and how far its two sides are."""

    base: int
    size: int
    vector: int | None = None
    head: int = 0
    tail: int = 0
    phase: int = 1


class Command(NamedTuple):
    """A submission queue entry (figure 87), as far as it is used here."""

    opcode: int
    cid: int
    nsid: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int


class TinyNvme(PciDevice):
    """A controller whose namespace is `file`, a descriptor that can be read and written; its size decides."""

    identity = Identity(vendor=0x1234, device=0x4E56)
    class_code = ClassCode(0x01, 0x08, 0x02)
    bars = (Bar(0, 0x4000, wide=True),)
    capabilities = (PowerManagement(), MsiX(2, table_bar=0, table_offset=0x2000), PciExpress())

    def __init__(self, file: int, serial: str = "TINY1") -> None:
        self._file, self._serial, self._blocks = file, serial, os.fstat(file).st_size // BLOCK
        self.reset()

    def reset(self, kind: Reset = Reset.DEVICE) -> None:
        self._registers = bytearray(DOORBELLS)
        struct.pack_into("<QI", self._registers, CAP, CAPABILITIES, VERSION)
        self._submission: dict[int, Queue] = {}
        self._completion: dict[int, Queue] = {}

    def read(self, bar: int, offset: int, size: int = 4) -> int:
        return int.from_bytes(self._registers[offset : offset + size], "little")  # 0 beyond

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        if offset >= DOORBELLS:
            self._ring(*divmod((offset - DOORBELLS) // 4, 2), value)
        elif offset + size <= DOORBELLS:
            before = self.read(0, CC)
            for place, byte in enumerate(value.to_bytes(size, "little"), offset):
                if place not in READ_ONLY:
                    self._registers[place] = byte
            self._configure(before, self.read(0, CC))

    def _configure(self, before: int, now: int) -> None:
        """CC has changed: the controller is enabled, disabled (a controller level reset), or shut down."""
        if now & ENABLED and not before & ENABLED:
            self._submission[0] = Queue(self.read(0, ASQ, 8), (self.read(0, AQA, 2) & 0xFFF) + 1)
            self._completion[0] = Queue(self.read(0, ACQ, 8), (self.read(0, AQA + 2, 2) & 0xFFF) + 1, vector=0)
            self._registers[CSTS] = READY
        elif before & ENABLED and not now & ENABLED:
            kept = self._registers[AQA : ACQ + 8]  # which is all that such a reset leaves (section 3.7.2)
            self.reset()
            self._registers[AQA : ACQ + 8] = kept
        if now & SHUTDOWN and not before & SHUTDOWN:
            os.fsync(self._file)
            self._registers[CSTS] |= SHUT_DOWN

    def _ring(self, queue: int, is_completion: int, value: int) -> None:
        submission, completion = self._submission.get(queue), self._completion.get(queue)
        if not submission or not completion or value >= (completion if is_completion else submission).size:
            return  # no such queue or entry: an error that only an event would report
        completion.head, submission.tail = (value, submission.tail) if is_completion else (completion.head, value)
        try:
            self._serve(queue, submission, completion)
        except NvmuserError as error:  # a queue that is not in the guest's memory
            logging.error("queue %d: %s", queue, error)
            self._registers[CSTS] |= FATAL

    def _serve(self, number: int, submission: Queue, completion: Queue) -> None:
        """Carry out what is in a queue, as far as there is room for completions, and interrupt once."""
        execute, completed = self.io if number else self.admin, False
        while submission.head != submission.tail and (completion.tail + 1) % completion.size != completion.head:
            entry = self.memory.read(submission.base + 64 * submission.head, 64)
            command = Command(*struct.unpack("<BxHI16xQQIII12x", entry))
            submission.head = (submission.head + 1) % submission.size
            if (answer := execute(command)) is None:
                continue
            (status, result), completed = answer, True
            words = result, 0, submission.head, number, command.cid, status << 1 | completion.phase
            self.memory.write(completion.base + 16 * completion.tail, struct.pack("<IIHHHH", *words))
            completion.tail = (completion.tail + 1) % completion.size
            completion.phase ^= completion.tail == 0
        if completed and completion.vector is not None:
            self.trigger(completion.vector)

    def admin(self, command: Command) -> tuple[int, int] | None:
        """Return an admin command's (figure 138) status and doubleword 0 of its completion; None: no completion."""
        low, high = command.cdw10 & 0xFFFF, command.cdw10 >> 16
        match command.opcode:
            case 0x00 | 0x04 as opcode:  # delete a queue
                queues = self._completion if opcode else self._submission
                return OK if low and queues.pop(low, 0) else INVALID_QUEUE, 0
            case 0x01 | 0x05 as opcode:  # create one
                return self._create(command, bool(opcode & 4), low, high + 1), 0
            case 0x02 if low & 0xFF in (1, 2, 3):  # log pages: no errors, 300 K, no firmware
                return self._give(command, struct.pack("<BH", 0, 300).ljust(PAGE, b"\0")[: 4 * (high + 1)]), 0
            case 0x06:  # identify
                data = self.identify(low & 0xFF, command.nsid)
                return self._give(command, data) if data else INVALID_FIELD, 0
            case 0x08:  # abort: too late
                return OK, 1
            case 0x09:  # set features: the number of queues; one of each kind
                return OK if low & 0xFF == 0x07 else INVALID_FIELD, 0
            case 0x0C:  # asynchronous event request: nothing ever happens
                return None
        return INVALID_OPCODE, 0

    def _create(self, command: Command, is_completion: bool, queue: int, entries: int) -> int:
        queues = self._completion if is_completion else self._submission
        other = command.cdw11 >> 16  # an interrupt's vector, or a completion queue
        if queue != 1 or queue in queues or not 2 <= entries <= ENTRIES:
            return INVALID_SIZE if queue == 1 and queue not in queues else INVALID_QUEUE
        if not is_completion and (other != 1 or 1 not in self._completion):
            return INVALID_CQ
        queues[queue] = Queue(command.prp1, entries, other if command.cdw11 & 2 else None)
        return OK

    def identify(self, cns: int, nsid: int) -> bytes:
        """The data structure (figure 273) that a host asks for; empty: there is no such."""
        data, name = bytearray(PAGE), uuid.uuid5(uuid.NAMESPACE_OID, self._serial)
        if cns == 0x01:  # the controller (figure 275)
            text = f"{self._serial:20}{'tiny_nvme':40}{1:<8}".encode()
            struct.pack_into("<HH68s", data, 0, self.identity.vendor, self.identity.vendor, text)
            struct.pack_into("<BHI27xB148xB", data, 77, MDTS, 1, VERSION, 1, 3)  # for I/O; one firmware slot
            struct.pack_into("<BBxxI5xB", data, 512, 0x66, 0x44, 1, 1)  # entries' sizes, namespaces, a write cache
            struct.pack_into("<64s", data, 768, f"nqn.2014-08.org.nvmexpress:uuid:{name}".encode())
        elif cns == 0x00 and nsid == 1:  # the namespace: size, capacity, use; one format, of 512 bytes
            struct.pack_into("<QQQ106xB", data, 0, *[self._blocks] * 3, BLOCK.bit_length() - 1)
        elif cns == 0x02:  # all active namespaces above that one
            struct.pack_into("<I", data, 0, nsid < 1)
        elif cns == 0x03 and nsid == 1:  # its identifiers: a UUID
            struct.pack_into("<BBxx16s", data, 0, 3, 16, name.bytes)
        else:
            data.clear()
        return bytes(data)

    def io(self, command: Command) -> tuple[int, int] | None:
        """Carry out a command of the I/O queue; returns as `admin` does."""
        first, blocks = command.cdw11 << 32 | command.cdw10, (command.cdw12 & 0xFFFF) + 1
        if command.nsid != 1:
            return INVALID_NAMESPACE, 0
        if command.opcode == FLUSH:
            os.fsync(self._file)
            return OK, 0
        if command.opcode not in (READ, WRITE):
            return INVALID_OPCODE, 0
        if blocks * BLOCK > PAGE << MDTS or first + blocks > self._blocks:
            return OUT_OF_RANGE, 0
        return self.transfer(command, first, blocks), 0

    def transfer(self, command: Command, first: int, blocks: int) -> int:
        """Move data between the guest's memory and the file; returns the status."""
        reads, size = command.opcode == READ, blocks * BLOCK
        with contextlib.suppress(OSError, NvmuserError), contextlib.ExitStack() as stack:
            parts = [self.memory.mapped(*part, write=reads) for part in self._pages(command, size)]
            pieces = [piece for part in parts for piece in stack.enter_context(part)]
            if (os.preadv if reads else os.pwritev)(self._file, pieces, first * BLOCK) == size:
                return OK
        return UNRECOVERED_READ if reads else WRITE_FAULT

    def _give(self, command: Command, data: bytes) -> int:
        for address, size in self._pages(command, len(data)):
            self.memory.write(address, data[:size])
            data = data[size:]
        return OK

    def _pages(self, command: Command, size: int) -> Iterator[tuple[int, int]]:
        """Where a command's data lies (section 4.1.1): a PRP, and another or a list of those."""
        yield command.prp1, (first := min(size, PAGE - command.prp1 % PAGE))
        size, place = size - first, command.prp2
        if 0 < size <= PAGE:
            yield place, size
            return
        while size > 0:
            (entry,) = struct.unpack("<Q", self.memory.read(place, 8))
            if place % PAGE == PAGE - 8 and size > PAGE:  # the last of its page: the list goes on in that one
                place = entry & -PAGE
            else:
                yield entry, min(size, PAGE)
                size, place = size - PAGE, place + 8


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a small NVMe controller.")
    parser.add_argument("socket", type=Path, help="where guests connect")
    parser.add_argument("--file", type=Path, help="what is behind it (default: memory)")
    parser.add_argument("--size", default="64M", help="of memory, or of a file that is made (default: %(default)s)")
    logging.basicConfig()
    arguments = parser.parse_args()
    try:
        path = arguments.file
        disk = os.open(path, os.O_RDWR | os.O_CREAT, 0o600) if path else os.memfd_create("tiny_nvme")
        os.truncate(disk, os.fstat(disk).st_size or parse_size(arguments.size))
        asyncio.run(serve({arguments.socket: TinyNvme(disk)}))
    except (NvmuserError, OSError) as error:
        sys.exit(f"tiny_nvme: {error}")
