"""One controller as its guest knows it: what is remembered, what is answered while there is no target, and what is
replayed to a new one.

Owns the guest's DMA maps, interrupts, writes to configuration space and NVMe registers. Its phase is
`nvmf_vfio.state.lifecycle`'s. It works on messages and knows no socket: `nvmf_vfio.session` moves messages and asks it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
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
from nvmf_vfio.state import history
from nvmf_vfio.state.admin import AdminQueue, Outstanding
from nvmf_vfio.state.config_space import CONFIG, ConfigSpace
from nvmf_vfio.state.history import Positions
from nvmf_vfio.state.interrupts import Interrupts
from nvmf_vfio.state.lifecycle import Lifecycle, Phase
from nvmf_vfio.state.memory import GuestMemory, GuestMemoryError, Refused
from nvmf_vfio.state.registers import (
    BAR0,
    CC_EN,
    CC_SHN_MASK,
    CSTS_RDY,
    DOORBELLS,
    FORCED_BITS,
    AdminQueues,
    Register,
)
from nvmf_vfio.state.reply_cache import ReplyCache

_REGISTERS_SIZE = 0x1000


class Controller:
    """State needed to answer for a target that is gone, and to introduce the guest to the next one."""

    def __init__(self) -> None:
        self.version: Version | None = None
        self.memory = GuestMemory()
        self.admin = AdminQueue()
        self.interrupts = Interrupts()
        self.config = ConfigSpace()
        self.registers = bytearray(64)
        self.replies = ReplyCache()
        self.positions: Positions = {}
        """Of the I/O queues, while the phase is RESUMABLE and no target has been given them."""
        self._lifecycle = Lifecycle()

    @property
    def phase(self) -> Phase:
        """Where the controller stands between guest and target."""
        return self._lifecycle.phase

    @property
    def seen_ready(self) -> bool:
        """Whether the guest has read CSTS.RDY=1 since it enabled the controller."""
        return self._lifecycle.seen_ready

    @property
    def drained(self) -> bool:
        """Whether nothing that an earlier target had in flight can still land in guest memory."""
        return self._lifecycle.drained

    # -- requests of the guest -----------------------------------------------------------------------------------

    def check(self, request: Request, descriptors: list[Descriptor]) -> None:
        """Check whether a request may be passed on and remembered.

        :raises Refused: it may not; with the errno of the reply.
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
            if write.region == CONFIG:
                self.config.check(write)

    def observe(self, request: Request) -> list[Outstanding]:
        """Read the admin queue at its doorbells, before the target does and the guest can reuse the entries.

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
                    self._lifecycle.io_doorbell()
            except GuestMemoryError:
                # The queue is not in memory that the guest has mapped; the target will find the same.
                self.admin.disable()
        return new

    def remember(self, request: Request, stored: list[StoredFd]) -> None:
        """Remember a request that has taken effect. Takes over the descriptors that came with it."""
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

    def forget_map(self, request: DmaMap) -> None:
        """Forget a map that was remembered before the target has refused it."""
        self.memory.unmap(DmaUnmap(0, request.address, request.size))

    def _remember_write(self, write: RegionAccess) -> None:
        if write.region == CONFIG:
            self.config.remember(write)
        elif write.region == BAR0 and write.offset + write.count <= len(self.registers):
            before = self.cc
            if write.offset in (Register.INTMS, Register.INTMC):
                self._mask_interrupts(write)
            elif write.offset >= Register.INTMS and not Register.CSTS <= write.offset < Register.AQA:
                self.registers[write.offset : write.offset + write.count] = write.data
            self._cc_written(before)

    def _mask_interrupts(self, write: RegionAccess) -> None:
        """Set (INTMS) or clear (INTMC) bits of the mask; both registers read as the mask (sections 3.1.3, 3.1.4)."""
        bits = int.from_bytes(write.data[:4], "little")
        mask = self.reg(Register.INTMS)
        mask = mask | bits if write.offset == Register.INTMS else mask & ~bits
        for register in (Register.INTMS, Register.INTMC):
            self.registers[register : register + 4] = mask.to_bytes(4, "little")

    def _cc_written(self, before: int) -> None:
        enabled, was = self.cc & CC_EN, before & CC_EN
        if enabled and not was:
            self._enable_admin()
            self._lifecycle.enabled()
        elif was and not enabled:
            self._disabled()

    def _enable_admin(self) -> None:
        queues = AdminQueues.decode(self.reg(Register.AQA), self.reg(Register.ASQ, 8), self.reg(Register.ACQ, 8))
        self.admin.enable(queues)

    def _disabled(self) -> None:
        self.admin.disable()
        self.positions = {}
        self.registers[Register.INTMS : Register.CC] = bytes(Register.CC - Register.INTMS)
        self._lifecycle.disabled()

    def _reset(self) -> None:
        """DEVICE_RESET: the NVMe registers are at their reset values (section 7.3.2); maps and interrupts stay."""
        self.registers[Register.INTMS :] = bytes(len(self.registers) - Register.INTMS)
        self._disabled()

    # -- registers -----------------------------------------------------------------------------------------------

    def reg(self, register: Register, size: int = 4) -> int:
        """A register as the guest has written it; `size` in bytes."""
        return int.from_bytes(self.registers[register : register + size], "little")

    @property
    def cc(self) -> int:
        """Controller Configuration as the guest has written it (section 3.1.5)."""
        return self.reg(Register.CC)

    @property
    def csts(self) -> int:
        """Controller Status: the target's last one, or while none answers, one that fits the phase (section 3.1.6)."""
        if self.phase is Phase.LIVE:
            return self.registers[Register.CSTS]
        return self._lifecycle.csts(is_shutting_down=bool(self.cc & CC_SHN_MASK))

    def learn(self, region: int, offset: int, data: bytes) -> None:
        """Take over what a target has at `offset` of BAR0, or its configuration space, as answers without one."""
        if region == BAR0:
            self.registers[offset : offset + len(data)] = data
        else:
            self.config.content[:] = data

    def patch_read(self, request: RegionAccess, data: bytes) -> bytes:
        """A target's reply as the guest sees it, with the longest time-outs; note what must be known later.

        :returns: as many bytes as `data` has.
        """
        if request.region == CONFIG:
            self.config.learn(request.offset, data)
        if request.region != BAR0:
            return data
        if request.offset <= Register.CSTS < request.offset + len(data):
            ready = data[Register.CSTS - request.offset] & CSTS_RDY
            self.registers[Register.CSTS] = data[Register.CSTS - request.offset]
            if ready and self.cc & CC_EN:
                self._lifecycle.ready_read()
        patched = bytearray(data)
        for offset in range(request.offset, request.offset + len(data)):
            patched[offset - request.offset] |= FORCED_BITS.get(offset, 0)
            if Register.AQA <= offset < Register.ACQ + 8:
                # The target may have others, see `nvmf_vfio.proxy`.
                patched[offset - request.offset] = self.registers[offset]
        return bytes(patched)

    def read(self, request: RegionAccess) -> bytes:
        """A region's content while no target answers; zeros where there is none."""
        if request.region == CONFIG:
            source = bytes(self.config.content)
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
        """Whether a request is answered here although a target is online: the registers of a failed controller."""
        if self.phase is Phase.LIVE:
            return False
        if isinstance(request, RegionAccess):
            return request.region == BAR0
        return isinstance(request, RegionWriteMulti)

    # -- targets -------------------------------------------------------------------------------------------------

    def target_lost(self) -> None:
        """No target answers any more, and what it had in flight may still land in guest memory."""
        self._lifecycle.target_lost(is_enabled=bool(self.cc & CC_EN), is_in_use=self._in_use)

    def target_drained(self) -> None:
        """Nothing of the lost target is in flight any more."""
        self._lifecycle.target_drained()

    def _in_use(self) -> bool:
        """Whether the driver has set the controller up: it has sent an event request, or begun with I/O."""
        try:
            return self.admin.event_requested or self._lifecycle.io_started or self.admin.io_started(self.memory)
        except GuestMemoryError:
            return True

    def learn_positions(self, positions: Positions) -> None:
        """Have the controller go on with its I/O queues where they were when all I/O had ended, if it can.

        :param positions: none when they are not known.
        """
        if not positions or self.phase is not Phase.FAILED or not self.drained:
            return
        try:
            is_settled = self.admin.set_up(self.memory).entries == self.admin.history.entries
        except GuestMemoryError:
            return
        if is_settled and history.fits(positions, self.admin.history.queues()):
            self.positions = positions
            self._lifecycle.positions_known()

    def take_positions(self) -> Positions:
        """Give the positions to a target. From then on nobody knows them but this one."""
        taken, self.positions = self.positions, {}
        return taken

    @property
    def is_signalled(self) -> bool:
        """Whether a target that goes on with the queues would signal completions."""
        return self.interrupts.is_msix and self.config.msix_control() is not None

    def positions_lost(self) -> None:
        """Have the driver reset a controller that cannot go on with its queues."""
        self.positions = {}
        self._lifecycle.positions_lost()

    def replay(self) -> Iterator[tuple[Command, bytes, list[Descriptor]]]:
        """Requests that give a new target the guest's state, in order, after VERSION and before `replay_registers`.

        :returns: command, payload, and descriptors that are copies for the caller.
        """
        for region in self.memory.regions:
            copies = [region.stored.descriptor.duplicate()] if region.stored else []
            yield Command.DMA_MAP, region.map.pack(), copies
        yield from self.interrupts.replay()
        for write in self.config.replay(with_msix=self.phase is Phase.RESUMABLE and self.interrupts.is_msix):
            yield Command.REGION_WRITE, write.pack(), []

    def replay_registers(self) -> Iterator[tuple[Command, bytes, list[Descriptor]]]:
        """Writes of the registers that the guest has set while no target was online, CC last."""
        for register, size in ((Register.AQA, 4), (Register.ASQ, 8), (Register.ACQ, 8), (Register.CC, 4)):
            data = bytes(self.registers[register : register + size])
            if any(data):
                yield Command.REGION_WRITE, RegionAccess(register, BAR0, size, data).pack(), []

    def target_ready(self) -> bool:
        """A target is online and has the guest's state: wake the driver if its controller had failed.

        :returns: whether the driver was notified by an event; otherwise it finds CSTS.CFS itself.
        """
        self._lifecycle.target_ready()
        return self.phase is Phase.FAILED and self.wake()

    def hand_over(self) -> bool:
        """Give a controller that its driver has reset to the target that is online.

        :returns: whether that was due: the target does not have the registers yet then.
        """
        return self._lifecycle.hand_over()

    def wake(self) -> bool:
        """Notify the driver of a failed controller, by the event that it has requested.

        :returns: False when it has not requested one.
        """
        try:
            woken = self.admin.wake(self.memory)
            completed = woken or self.admin.fail_waiting(self.memory)
        except GuestMemoryError:
            return False
        if completed:
            self.interrupts.signal_admin()
        return woken

    def arrive(
        self,
        registers: dict[Register, int],
        lifecycle: dict[str, Any],
        admin: dict[str, Any],
        positions: Positions,
    ) -> None:
        """Become a controller that its guest has brought along, and which no target serves yet.

        :param registers: their values; of four bytes, but for ASQ and ACQ.
        :param lifecycle: as `Lifecycle.to_json` returns it.
        :param admin: as `AdminQueue.to_json` returns it; of no use to a controller that is not enabled.
        :param positions: of its I/O queues, when the phase is RESUMABLE.
        """
        self.registers[Register.INTMS :] = bytes(len(self.registers) - Register.INTMS)
        for register, value in registers.items():
            size = 8 if register in (Register.ASQ, Register.ACQ) else 4
            self.registers[register : register + size] = value.to_bytes(size, "little")
        self._lifecycle.load_json(lifecycle)
        self.admin.disable()
        if self.cc & CC_EN:
            self._enable_admin()
            self.admin.load_json(admin)
        self.positions = positions

    # -- the record ----------------------------------------------------------------------------------------------

    def fd_names(self) -> set[str]:
        """Names, in the fd store, of the descriptors that are remembered."""
        names = {region.stored.name for region in self.memory.regions if region.stored}
        return names | self.interrupts.fd_names()

    def to_json(self) -> dict[str, Any]:
        """The controller for the session's record."""
        version = [self.version.major, self.version.minor, self.version.capabilities] if self.version else None
        return {
            "version": version,
            "memory": self.memory.to_json(),
            "irqs": self.interrupts.to_json(),
            **self.config.to_json(),
            "registers": self.registers.hex(),
            "replies": self.replies.to_json(),
            **self._lifecycle.to_json(),
            "admin": self.admin.to_json(),
            "positions": [[number, value] for number, value in self.positions.items()],
        }

    def load_json(self, document: dict[str, Any], stored: dict[str, StoredFd]) -> None:
        """Take over what `to_json` returned.

        :param stored: the descriptors, by the names that the document has for them.
        :raises KeyError: a field or a descriptor is missing.
        :raises TypeError: a field has another type.
        :raises ValueError: a field has another layout.
        """
        if document["version"]:
            self.version = Version(*document["version"])
        self.memory.load_json(document["memory"], stored)
        self.interrupts.load_json(document["irqs"], stored)
        self.config.load_json(document)
        self.registers = bytearray.fromhex(document["registers"])
        self.replies.load_json(document["replies"])
        self._lifecycle.load_json(document)
        if self.cc & CC_EN:
            self._enable_admin()
            self.admin.load_json(document["admin"])
        self.positions = dict(document.get("positions", []))  # a record of an earlier version has none
        if not self.positions:
            # A target was given them, and may have gone on.
            self._lifecycle.positions_lost()


def _writes(request: Request) -> tuple[RegionAccess, ...]:
    """Writes in a request; none in a read."""
    if isinstance(request, RegionWriteMulti):
        return request.writes
    return (request,) if isinstance(request, RegionAccess) and request.data else ()
