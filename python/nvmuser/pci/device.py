"""A PCI device written in Python: the class to derive from.

Owns what a device declares (class attributes), what it may override and what it may do. libvfio-user answers for the
header of configuration space and the capabilities; the device answers for its BARs. All of it runs in the thread of
the loop that serves the device: a callback that takes long holds up the guest, and every other device of the loop.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import ClassVar

from nvmuser.errors import DeviceError, UsageError
from nvmuser.pci import raw
from nvmuser.pci.bars import Bar, check_bars
from nvmuser.pci.capabilities import Capability, Msi, MsiX, PciExpress
from nvmuser.pci.context import Context, Description
from nvmuser.pci.memory import GuestMemory

_ROOM_FOR_CAPABILITIES = 256 - 64


@dataclass(frozen=True, slots=True)
class Identity:
    """The identifiers by which drivers find the device (PCI Local Bus Specification 3.0, 6.2.1 and 6.2.4).

    :raises UsageError: one is out of its range: 16 bits, and 8 for the revision.
    """

    vendor: int
    device: int
    subsystem_vendor: int = 0
    subsystem: int = 0
    revision: int = 0

    def __post_init__(self) -> None:
        for value in (self.vendor, self.device, self.subsystem_vendor, self.subsystem):
            if not 0 <= value <= 0xFFFF:
                raise UsageError(f"a PCI identifier has 16 bits: {value:#x}")
        if not 0 <= self.revision <= 0xFF:
            raise UsageError(f"a PCI revision has 8 bits: {self.revision:#x}")


@dataclass(frozen=True, slots=True)
class ClassCode:
    """The kind of device (PCI Code and ID Assignment Specification).

    :raises UsageError: a part of it does not fit into 8 bits.
    """

    base: int
    sub: int
    interface: int = 0

    def __post_init__(self) -> None:
        for value in (self.base, self.sub, self.interface):
            if not 0 <= value <= 0xFF:
                raise UsageError(f"each part of a class code has 8 bits: {value:#x}")


class Reset(enum.IntEnum):
    """Why the device is to be as after power-on (libvfio-user.h, vfu_reset_type_t)."""

    DEVICE = 0
    """The client asked: the machine was reset, say."""
    LOST_CONNECTION = 1
    """The client has gone."""
    FUNCTION = 2
    """The guest asked by way of the PCI Express capability."""


class PciDevice:
    """A device: derive from it, declare what it is, override `read` and `write`, and give it to `Server`.

    An exception in any callback is an error to the guest (its errno for an OSError or DeviceError, else EIO; what a
    guest sees of it is QEMU's choice) and a traceback in the log of `nvmuser.pci`.
    """

    identity: ClassVar[Identity]
    class_code: ClassVar[ClassCode] = ClassCode(0xFF, 0)
    bars: ClassVar[tuple[Bar, ...]] = ()
    capabilities: ClassVar[tuple[Capability, ...]] = ()
    intx: ClassVar[bool] = False
    """Whether it has the interrupt pin INTA#."""

    _context: Context | None = None
    _intx_asserted = False
    _intx_masked = False

    # To be overridden: all of these are called from the loop's thread, one at a time.

    def read(self, bar: int, offset: int, size: int) -> int:
        """Return the little-endian value of `size` bytes of a BAR (1, 2, 4 or 8; mostly naturally aligned)."""
        raise NotImplementedError(f"BAR {bar} cannot be read")

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Take a little-endian value of `size` bytes that the guest writes to a BAR."""
        raise NotImplementedError(f"BAR {bar} cannot be written")

    def config_read(self, offset: int, size: int) -> int:
        """Return `size` bytes of configuration space beside the header and the capabilities, as a value."""
        return self.config_get(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Take a write there. Reserved registers ignore it (PCI Local Bus Specification 3.0, 6.1)."""

    def reset(self, kind: Reset) -> None:
        """Return to the state after power-on: no guest memory is in use afterwards, and no interrupt pending."""

    def quiesce(self) -> Awaitable[None] | None:
        """Leave guest memory alone until the next callback has returned: the client is about to change it.

        A device that cannot at once returns an awaitable: until it is done, the device goes on, and the client waits.
        QEMU waits with it, for 5 seconds. Views from `memory.mapped` are waited for anyway.
        """
        return None

    def save(self) -> bytes:
        """Return the state of the device, from which `load` makes another one the same. Overridden with it.

        Its guest migrates, and stands still: what changes from now on without a callback is lost, if it is part of the
        state. What it triggers meanwhile, INTA#, and the memory of its mappable BARs travel by themselves;
        configuration space, the set-up of interrupts and guest memory are QEMU's.
        """
        raise NotImplementedError("the state is not saved")

    def load(self, data: bytes) -> None:
        """Become the device whose `save` has returned this, on another host: it may be anything.

        An exception refuses it: the guest goes on where it was.
        """
        raise NotImplementedError("a state is not loaded")

    # To be used while the device is served.

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory.

        :raises DeviceError: the device is not served.
        """
        return self._served.memory

    def bar_memory(self, index: int) -> memoryview:
        """The memory of a mappable BAR, to which the guest may write at any time.

        :raises DeviceError: the device is not served.
        :raises UsageError: the BAR has no memory.
        """
        return self._served.bar_memory(index)

    def config_get(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes of configuration space.

        :raises DeviceError: the device is not served.
        :raises UsageError: they are beyond its end.
        """
        return self._served.config_get(offset, size)

    def config_put(self, offset: int, size: int, value: int) -> None:
        """Store a value as `size` little-endian bytes of configuration space.

        :raises DeviceError: the device is not served.
        :raises UsageError: they are beyond its end.
        """
        self._served.config_put(offset, size, value)

    def trigger(self, vector: int = 0) -> bool:
        """Send an MSI or MSI-X message, or a single edge of INTA#. False: the guest has not enabled the vector.

        :raises DeviceError: there is no such vector, or the device is not served.
        """
        return self._served.trigger(vector)

    def set_intx(self, asserted: bool) -> None:
        """Drive INTA#, which is a level: it interrupts until the device takes it back.

        VFIO carries edges: as with the kernel's own devices (linux/vfio.h, VFIO_IRQ_INFO_AUTOMASKED), a client that
        has served one unmasks the pin, and gets another if it is still asserted.

        :raises DeviceError: the device is not served.
        """
        rises = asserted and not self._intx_asserted
        self._intx_asserted = asserted
        if rises and not self._intx_masked:
            self._served.trigger(0)

    # Between the context and the device.

    def context_reset(self, reason: int) -> None:
        """Reset the device for the context. :param reason: vfu_reset_type_t."""
        self._intx_asserted = self._intx_masked = False
        self.reset(Reset(reason))

    @property
    def asserts_intx(self) -> bool:
        """Whether INTA# is asserted."""
        return self._intx_asserted

    def resume_intx(self, asserted: bool) -> None:
        """Drive INTA# as it was, towards a client that has heard nothing of it yet."""
        self._intx_asserted = False
        if self.intx:
            self.set_intx(asserted)

    def irq_state(self, kind: int, start: int, count: int, masked: bool) -> None:
        """Take the mask of INTA# from the context. MSI and MSI-X the client masks itself."""
        if kind != raw.INTX:
            return
        self._intx_masked = masked
        if self._intx_asserted and not masked:
            self._served.trigger(0)

    @property
    def is_served(self) -> bool:
        """Whether a server has it, with or without a client."""
        return self._context is not None

    @property
    def _served(self) -> Context:
        if self._context is None:
            raise DeviceError(f"{type(self).__name__} is not served")
        return self._context

    def bind(self, context: Context | None) -> None:
        """Set the context to act upon, or None when there is none any more. Called by the server."""
        self._context = context
        self._intx_asserted = self._intx_masked = False

    @classmethod
    def describe(cls) -> Description:
        """The declarations, as a context takes them.

        :raises UsageError: the declarations contradict each other.
        """
        check_bars(cls.bars)
        msi = next((capability for capability in cls.capabilities if isinstance(capability, Msi)), None)
        msix = next((capability for capability in cls.capabilities if isinstance(capability, MsiX)), None)
        if msix is not None:
            msix.check(cls.bars)
        packed = tuple((capability.pack(), capability.read_only) for capability in cls.capabilities)
        if sum(-(-len(data) // 4) * 4 for data, _ in packed) > _ROOM_FOR_CAPABILITIES:
            raise UsageError(f"{cls.__name__}: the capabilities do not fit into {_ROOM_FOR_CAPABILITIES} bytes")
        identity, code = cls.identity, cls.class_code
        return Description(
            vendor=identity.vendor,
            device=identity.device,
            subsystem_vendor=identity.subsystem_vendor,
            subsystem=identity.subsystem,
            revision=identity.revision,
            class_code=(code.base, code.sub, code.interface),
            bars=cls.bars,
            capabilities=packed,
            intx=int(cls.intx),
            msi=msi.vectors if msi else 0,
            msix=msix.vectors if msix else 0,
            express=any(isinstance(capability, PciExpress) for capability in cls.capabilities),
            migratable=cls.save is not PciDevice.save and cls.load is not PciDevice.load,
        )
