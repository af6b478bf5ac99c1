"""One controller as its guest knows it: what is remembered, what is answered while there is no target, what a new
target is told.

Owns the guest's DMA maps, interrupts, writes to configuration space and NVMe registers. It is a state machine over
messages and knows no socket: `nvmf_vfio.session` moves messages and asks it.

::

    LIVE ──── target lost, CC.EN=0 ───────────────────────────► IDLE      ─── target ready ───────────────► LIVE
    LIVE ──── target lost, CC.EN=1, RDY=1 not seen yet ───────► ENABLING  ─── target ready, CC replayed ──► LIVE
    LIVE ──── target lost, RDY=1 seen, driver sets it up ─────► STARTING  ─── target ready, admin proxy ──► LIVE
    LIVE ──── target lost, controller in use ─────────────────► FAILED    ─── EN=0 or reset, target ready ► LIVE
    IDLE ──── EN=1 ──► ENABLING       ENABLING, STARTING, FAILED ─── EN=0 or reset, no target ──► IDLE

LIVE passes registers through; the other phases answer them from here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from nvmf_vfio.keeper.fd_store import StoredFd
from nvmf_vfio.protocol.descriptors import Descriptor
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import (
    DmaMap,
    DmaUnmap,
    RegionAccess,
    RegionIoFds,
    RegionWriteMulti,
    Request,
    Reset,
    SetIrqs,
)
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.state.admin import AdminQueue, Outstanding
from nvmf_vfio.state.interrupts import Interrupts
from nvmf_vfio.state.memory import GuestMemory, GuestMemoryError, Refused
from nvmf_vfio.state.registers import (
    BAR0,
    CC_EN,
    CC_SHN_MASK,
    CSTS_CFS,
    CSTS_RDY,
    CSTS_SHST_COMPLETE,
    DOORBELLS,
    FORCED_BITS,
    AdminQueues,
    Register,
)

CONFIG = 7
"""Region index of configuration space (linux/vfio.h, VFIO_PCI_CONFIG_REGION_INDEX)."""
_REGISTERS_SIZE = 0x1000
_CONFIG_SIZE = 4096
_MAX_CONFIG_WRITES = 512


class Phase(StrEnum):
    """Where the controller stands between guest and target; see the module's drawing."""

    LIVE = "live"
    FAILED = "failed"
    IDLE = "idle"
    ENABLING = "enabling"
    STARTING = "starting"


class Controller:
    """What must be known to answer for a target that is gone, and to introduce the guest to the next one."""

    def __init__(self) -> None:
        self.version: Version | None = None
        self.memory = GuestMemory()
        self.admin = AdminQueue()
        self.interrupts = Interrupts()
        self.config_writes: dict[tuple[int, int], bytes] = {}
        self.config_space = bytearray()
        self.registers = bytearray(64)
        self.replies: dict[tuple[int, bytes], bytes] = {}
        self.phase = Phase.IDLE
        self.seen_ready = False
        self.io_started = False
        """The driver has rung an I/O queue's doorbell by register since it enabled the controller."""
        self.drained = True
        """Nothing that an earlier target had in flight can still land."""

    # -- what the guest says -------------------------------------------------------------------------------------

    def check(self, request: Request, descriptors: list[Descriptor]) -> None:
        """Whether a request may be passed on and remembered.

        :raises Refused: with the errno to answer.
        """
        if isinstance(request, DmaMap):
            self.memory.check_map(request, descriptors)
            self.memory.check_room(request)
        elif isinstance(request, SetIrqs):
            self.interrupts.check(request, descriptors)
        elif isinstance(request, RegionIoFds):
            raise Refused(errno.ENOTSUP, "ioeventfds of one target mean nothing to the next")
        elif descriptors:
            raise Refused(errno.EINVAL, "descriptors with a message that takes none")
        for write in _writes(request):
            if write.region == CONFIG and (
                write.offset // 4 != (write.offset + write.count - 1) // 4 or write.offset + write.count > _CONFIG_SIZE
            ):
                # As on PCI. And libvfio-user copies what begins in a capability, however long, into one on its stack
                # (`cap_write_msix`).
                raise Refused(errno.EINVAL, f"write of {write.count} bytes at {write.offset:#x} of configuration space")

    def look(self, request: Request) -> list[Outstanding]:
        """See the admin queue's doorbells before the target does, while the ring entries are what the guest meant.

        :returns: the admin commands that the request submits.
        """
        new: list[Outstanding] = []
        for write in _writes(request):
            if write.region != BAR0 or write.count != 4 or write.offset < DOORBELLS:
                continue
            value = int.from_bytes(write.data, "little")
            try:
                if write.offset == DOORBELLS:
                    new += self.admin.submitted(self.memory, value)
                elif write.offset == DOORBELLS + 4:
                    self.admin.consumed(self.memory, value)
                else:
                    self.io_started = True
            except GuestMemoryError:
                # The queue is not where the guest may have one; the target will find so too.
                self.admin.disable()
        return new

    def remember(self, request: Request, stored: list[StoredFd]) -> None:
        """A request has taken effect. Takes over the descriptors that came with it."""
        match request:
            case DmaMap():
                self.memory.map(request, stored[0] if stored else None)
            case DmaUnmap():
                self.memory.unmap(request)
            case SetIrqs():
                self.interrupts.remember(request, stored)
            case Version():
                self.version = request
            case RegionAccess() | RegionWriteMulti():
                for write in _writes(request):
                    self._remember_write(write)
            case Reset():
                self._reset()

    def _remember_write(self, write: RegionAccess) -> None:
        if write.region == CONFIG:
            key = (write.offset, write.count)
            self.config_writes.pop(key, None)
            if len(self.config_writes) < _MAX_CONFIG_WRITES:
                self.config_writes[key] = write.data
            if write.offset >= Register.CAP and write.offset + write.count <= len(self.config_space):
                self.config_space[write.offset : write.offset + write.count] = write.data
        elif write.region == BAR0 and write.offset + write.count <= len(self.registers):
            before = self.cc
            if write.offset in (Register.INTMS, Register.INTMC):
                self._mask_interrupts(write)
            elif write.offset >= Register.INTMS and not Register.CSTS <= write.offset < Register.AQA:
                self.registers[write.offset : write.offset + write.count] = write.data
            self._cc_written(before)

    def _mask_interrupts(self, write: RegionAccess) -> None:
        """INTMS sets bits of the mask and INTMC clears them; both read as the mask (sections 3.1.3 and 3.1.4)."""
        bits = int.from_bytes(write.data[:4], "little")
        mask = self.reg(Register.INTMS)
        mask = mask | bits if write.offset == Register.INTMS else mask & ~bits
        for register in (Register.INTMS, Register.INTMC):
            self.registers[register : register + 4] = mask.to_bytes(4, "little")

    def _cc_written(self, before: int) -> None:
        enabled, was = self.cc & CC_EN, before & CC_EN
        if enabled and not was:
            self.seen_ready = self.io_started = False
            self.admin.enable(
                AdminQueues.decode(self.reg(Register.AQA), self.reg(Register.ASQ, 8), self.reg(Register.ACQ, 8))
            )
            if self.phase is Phase.IDLE:
                self.phase = Phase.ENABLING
        elif was and not enabled:
            self._disabled()

    def _disabled(self) -> None:
        self.admin.disable()
        self.registers[Register.INTMS : Register.CC] = bytes(Register.CC - Register.INTMS)
        self.seen_ready = False
        if self.phase in (Phase.FAILED, Phase.ENABLING, Phase.STARTING):
            self.phase = Phase.IDLE

    def _reset(self) -> None:
        """DEVICE_RESET: the NVMe registers are at their reset values (section 7.3.2); maps and interrupts stay."""
        self.registers[Register.INTMS :] = bytes(len(self.registers) - Register.INTMS)
        self._disabled()

    # -- registers -----------------------------------------------------------------------------------------------

    def reg(self, register: Register, size: int = 4) -> int:
        return int.from_bytes(self.registers[register : register + size], "little")

    @property
    def cc(self) -> int:
        return self.reg(Register.CC)

    @property
    def csts(self) -> int:
        """CSTS as this controller shows it while no target answers (section 3.1.6)."""
        if self.phase is Phase.LIVE:
            return self.registers[Register.CSTS]
        value = CSTS_SHST_COMPLETE if self.cc & CC_SHN_MASK and self.drained else 0
        if self.phase is Phase.FAILED:
            return value | CSTS_CFS | CSTS_RDY
        if self.phase is Phase.STARTING:
            return value | CSTS_RDY
        if self.phase is Phase.IDLE and not self.drained:
            # The guest may take its memory back only when nothing can land in it any more.
            return value | CSTS_RDY
        return value

    def patch_read(self, request: RegionAccess, data: bytes) -> bytes:
        """A target's answer as the guest shall see it: the longest time-outs, and what must be known later noted."""
        if request.region == CONFIG and request.offset + len(data) <= len(self.config_space):
            self.config_space[request.offset : request.offset + len(data)] = data
        if request.region != BAR0:
            return data
        if request.offset <= Register.CSTS < request.offset + len(data):
            ready = data[Register.CSTS - request.offset] & CSTS_RDY
            self.registers[Register.CSTS] = data[Register.CSTS - request.offset]
            self.seen_ready = self.seen_ready or bool(ready and self.cc & CC_EN)
        patched = bytearray(data)
        for offset in range(request.offset, request.offset + len(data)):
            patched[offset - request.offset] |= FORCED_BITS.get(offset, 0)
            if Register.AQA <= offset < Register.ACQ + 8:
                # The target may have others, see `nvmf_vfio.proxy`.
                patched[offset - request.offset] = self.registers[offset]
        return bytes(patched)

    def read(self, request: RegionAccess) -> bytes:
        """A region's content while no target answers."""
        if request.region == CONFIG:
            source = bytes(self.config_space)
        elif request.region == BAR0 and request.offset < _REGISTERS_SIZE:
            image = self.registers + bytes(Register.CRTO + 4 - len(self.registers))
            for offset, bits in FORCED_BITS.items():
                image[offset] |= bits
            image[Register.CSTS : Register.CSTS + 4] = self.csts.to_bytes(4, "little")
            source = bytes(image)
        else:
            source = b""
        data = source[request.offset : request.offset + request.count]
        return data + bytes(request.count - len(data))

    def is_local(self, request: Request) -> bool:
        """Whether this access is answered here although a target is there: registers of a controller that has
        failed."""
        if self.phase is Phase.LIVE:
            return False
        if isinstance(request, RegionAccess):
            return request.region == BAR0
        return isinstance(request, RegionWriteMulti)

    # -- targets -------------------------------------------------------------------------------------------------

    def target_lost(self) -> None:
        """No target answers any more, and what it had in flight may still land."""
        self.drained = False
        if self.phase is Phase.LIVE:
            if not self.cc & CC_EN:
                self.phase = Phase.IDLE
            elif not self.seen_ready:
                self.phase = Phase.ENABLING
            else:
                self.phase = Phase.FAILED if self._in_use() else Phase.STARTING

    def _in_use(self) -> bool:
        """Whether the driver has set the controller up: it has sent an event request, or begun with I/O."""
        try:
            return self.admin.event_requested or self.io_started or self.admin.io_started(self.memory)
        except GuestMemoryError:
            return True

    def replay(self) -> Iterator[tuple[Command, bytes, list[Descriptor]]]:
        """What a new target must be told after VERSION, in order; registers come last, see `replay_registers`. The
        descriptors are copies for the caller."""
        for region in self.memory.regions:
            copies = [region.stored.descriptor.duplicate()] if region.stored else []
            yield Command.DMA_MAP, region.map.pack(), copies
        yield from self.interrupts.replay()
        for (offset, count), data in self.config_writes.items():
            yield Command.REGION_WRITE, RegionAccess(offset, CONFIG, count, data).pack(), []

    def replay_registers(self) -> Iterator[tuple[Command, bytes, list[Descriptor]]]:
        """The registers that the guest wrote while no target was there to see it, CC last."""
        for register, size in ((Register.AQA, 4), (Register.ASQ, 8), (Register.ACQ, 8), (Register.CC, 4)):
            data = bytes(self.registers[register : register + size])
            if any(data):
                yield Command.REGION_WRITE, RegionAccess(register, BAR0, size, data).pack(), []

    def target_ready(self) -> bool:
        """The replay is done: wake the guest if its controller had failed.

        :returns: whether the guest's driver has been told by an event; if not, it finds CSTS.CFS itself.
        """
        self.drained = True
        if self.phase is not Phase.FAILED:
            self.phase = Phase.LIVE
            return False
        return self.wake()

    def wake(self) -> bool:
        """Tell the driver of a failed controller, by the event that it has requested.

        :returns: False when it has not requested one.
        """
        try:
            woken = self.admin.wake(self.memory)
            told = woken or self.admin.fail_waiting(self.memory)
        except GuestMemoryError:
            return False
        if told:
            self.interrupts.signal_admin()
        return woken

    # -- the record ----------------------------------------------------------------------------------------------

    def fd_names(self) -> set[str]:
        """The names of the descriptors that are remembered."""
        names = {region.stored.name for region in self.memory.regions if region.stored}
        return names | self.interrupts.fd_names()

    def to_json(self) -> dict[str, Any]:
        version = [self.version.major, self.version.minor, self.version.capabilities] if self.version else None
        return {
            "version": version,
            "memory": self.memory.to_json(),
            "irqs": self.interrupts.to_json(),
            "config_writes": [[offset, size, data.hex()] for (offset, size), data in self.config_writes.items()],
            "config_space": self.config_space.hex(),
            "registers": self.registers.hex(),
            "replies": [[command, body.hex(), reply.hex()] for (command, body), reply in self.replies.items()],
            "phase": self.phase.value,
            "seen_ready": self.seen_ready,
            "io_started": self.io_started,
            "admin": self.admin.to_json(),
        }

    def load_json(self, document: dict[str, Any], stored: dict[str, StoredFd]) -> None:
        if document["version"]:
            self.version = Version(*document["version"])
        self.memory.load_json(document["memory"], stored)
        self.interrupts.load_json(document["irqs"], stored)
        for offset, size, data in document["config_writes"]:
            self.config_writes[(offset, size)] = bytes.fromhex(data)
        self.config_space = bytearray.fromhex(document["config_space"])
        self.registers = bytearray.fromhex(document["registers"])
        self.replies = {(c, bytes.fromhex(body)): bytes.fromhex(reply) for c, body, reply in document["replies"]}
        self.phase = Phase(document["phase"])
        self.seen_ready = document["seen_ready"]
        self.io_started = document["io_started"]
        if self.cc & CC_EN:
            self.admin.enable(
                AdminQueues.decode(self.reg(Register.AQA), self.reg(Register.ASQ, 8), self.reg(Register.ACQ, 8))
            )
            self.admin.load_json(document["admin"])


def _writes(request: Request) -> tuple[RegionAccess, ...]:
    """The writes in a request: none in a read."""
    if isinstance(request, RegionWriteMulti):
        return request.writes
    return (request,) if isinstance(request, RegionAccess) and request.data else ()
