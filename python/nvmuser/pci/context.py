"""One vfu_ctx: made from a description, run, and destroyed with all that belongs to it.

Owns libvfio-user's context, the handle that its callbacks find us by, the memory of mappable BARs and the guest memory
of the client. It waits for nothing: `nvmuser.pci.server` decides when to attach and to run. Everything here
belongs to one thread.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvmuser.errors import DeviceError, UsageError
from nvmuser.pci import raw, travel
from nvmuser.pci.bars import Bar, BarMemory, Space
from nvmuser.pci.memory import GuestMemory, Region

_CONFIG, _EXPRESS_CONFIG = 256, 4096
_REVISION_AT = 0x08
_LOST_CONNECTION = 1
"""VFU_RESET_LOST_CONN."""
_SEND_SECONDS = 2
"""How long a client may leave replies unread, or our own requests unanswered, before its connection is ended."""


@dataclass(frozen=True)
class Description:
    """What a context is made from: all that libvfio-user has to know of a device before a client connects."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem: int
    revision: int
    class_code: tuple[int, int, int]
    bars: tuple[Bar, ...]
    capabilities: tuple[tuple[bytes, bool], ...]
    """Packed, and whether guests may not write to them."""
    intx: int
    msi: int
    msix: int
    """Numbers of vectors."""
    express: bool
    migratable: bool = False
    """Whether it can save and load its state."""


class Handler(travel.Handler, Protocol):
    """The device, as a context calls it. Offsets and sizes are in bytes, values little-endian."""

    def read(self, bar: int, offset: int, size: int) -> int:
        """Return the value of a BAR's register."""

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        """Take a write to a BAR's register."""

    def config_read(self, offset: int, size: int) -> int:
        """Return the value of a register in configuration space that libvfio-user does not answer for."""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Take a write to such a register."""

    def context_reset(self, reason: int) -> None:
        """Reset the device. :param reason: vfu_reset_type_t."""

    def quiesce(self) -> Awaitable[None] | None:
        """Leave guest memory alone; an awaitable: not before it is done."""

    def irq_state(self, kind: int, start: int, count: int, masked: bool) -> None:
        """Take note that the client has masked or unmasked interrupts. :param kind: vfu_dev_irq_type."""


_live: set[Context] = set()
"""Those whose context libvfio-user still has: what a callback finds must exist, even if nothing else refers to it."""


class Context:
    """A realized context, listening at `path`."""

    def __init__(self, path: Path, what: Description, handler: Handler) -> None:
        """Create and realize the context.

        :raises DeviceError: libvfio-user refused something; nothing is left behind.
        """
        self._ffi, self._lib = raw.api()
        self.name = f"{path}"
        self.config_size = _EXPRESS_CONFIG if what.express else _CONFIG
        self._path = path
        self._handler = handler
        self._handle = self._ffi.new_handle(self)
        self._memories: dict[int, BarMemory] = {}
        self._read: dict[int, Callable[[int, int], int]] = {}
        self._write: dict[int, Callable[[int, int, int], None]] = {}
        self._greeted = False
        self._hung_up = False
        self.error: BaseException | None = None
        """What a callback raised that is no `Exception`: it is to end the serving."""
        self.quiescing: Awaitable[None] | None = None
        """What a client waits for, once `run` has answered EBUSY."""
        nonblocking, pci = self._lib.LIBVFIO_USER_FLAG_ATTACH_NB, self._lib.VFU_DEV_TYPE_PCI
        transport = self._lib.VFU_TRANS_SOCK
        self._ctx = self._lib.vfu_create_ctx(transport, os.fsencode(path), nonblocking, self._handle, pci)
        raw.check(0 if self._ctx else -1, f"{path}")
        _live.add(self)
        self.memory = GuestMemory(self._ctx, desynchronized=self.hang_up)
        vectors = max(what.intx, what.msi, what.msix)
        self._travel = travel.Travel(handler, self._memories, vectors, self.trigger)
        try:
            self._set_up(what)
        except BaseException:
            self.close()
            raise
        self.listener: int = self._lib.vfu_get_poll_fd(self._ctx)

    def _set_up(self, what: Description) -> None:
        lib, ctx = self._lib, self._ctx
        raw.check(lib.nvmuser_vfu_setup_callbacks(ctx, raw.log_level()), "callbacks")
        kind = lib.VFU_PCI_TYPE_EXPRESS if what.express else lib.VFU_PCI_TYPE_CONVENTIONAL
        raw.check(lib.vfu_pci_init(ctx, kind, 0, what.revision), "configuration space")
        lib.vfu_pci_set_id(ctx, what.vendor, what.device, what.subsystem_vendor, what.subsystem)
        lib.vfu_pci_set_class(ctx, *what.class_code)
        # vfu_pci_init takes a revision and does nothing with it.
        self.config_put(_REVISION_AT, 1, what.revision)
        raw.check(lib.nvmuser_vfu_setup_config(ctx, self.config_size), "configuration space")
        self._read[lib.VFU_PCI_DEV_CFG_REGION_IDX] = self._handler.config_read
        self._write[lib.VFU_PCI_DEV_CFG_REGION_IDX] = self._handler.config_write
        for bar in what.bars:
            self._set_up_bar(bar)
        for data, read_only in what.capabilities:
            flags = lib.VFU_CAP_FLAG_READONLY if read_only else 0
            raw.check(lib.vfu_pci_add_capability(ctx, 0, flags, self._ffi.from_buffer(data)), "a capability")
        for irq, count in (
            (lib.VFU_DEV_INTX_IRQ, what.intx), (lib.VFU_DEV_MSI_IRQ, what.msi), (lib.VFU_DEV_MSIX_IRQ, what.msix)
        ):  # fmt: skip
            raw.check(lib.vfu_setup_device_nr_irqs(ctx, irq, count), "interrupts")
        if what.migratable:
            raw.check(lib.nvmuser_vfu_setup_migration(ctx), "migration")
        raw.check(lib.vfu_realize_ctx(ctx), "the device")

    def _set_up_bar(self, bar: Bar) -> None:
        lib = self._lib
        flags = lib.VFU_REGION_FLAG_READ | lib.VFU_REGION_FLAG_WRITE
        flags |= lib.VFU_REGION_FLAG_MEM if bar.space is Space.MEMORY else 0
        flags |= lib.VFU_REGION_FLAG_64_BITS if bar.wide else 0
        flags |= lib.VFU_REGION_FLAG_PREFETCH if bar.prefetchable else 0
        self._read[bar.index] = functools.partial(self._handler.read, bar.index)
        self._write[bar.index] = functools.partial(self._handler.write, bar.index)
        areas, fd = self._ffi.NULL, -1
        if bar.mappable:
            memory = self._memories[bar.index] = BarMemory(bar)
            fd = memory.fd
            areas = self._ffi.new("struct iovec[]", len(bar.mappable))
            for area, place in zip(areas, bar.mappable, strict=True):
                area.iov_base, area.iov_len = self._ffi.cast("void *", place.offset), place.size
        count = len(bar.mappable)
        raw.check(
            lib.nvmuser_vfu_setup_region(self._ctx, bar.index, bar.size, flags, areas, count, fd), f"BAR {bar.index}"
        )

    # Connections. These are called by the server, never from a callback.

    def fileno(self) -> int:
        """The descriptor to poll: the listening socket, or the client's connection."""
        return int(self._lib.vfu_get_poll_fd(self._ctx))

    @property
    def is_attached(self) -> bool:
        """Whether a client is connected."""
        return self.fileno() != self.listener

    def attach(self) -> None:
        """Accept a client and agree on a version; blocks while the client is silent: `hang_up` ends that.

        :raises DeviceError: no client was there, or it was not accepted.
        """
        raw.check(self._lib.vfu_attach_ctx(self._ctx), self.name)
        self._greeted, self._hung_up = True, False

    def limit_waiting(self) -> None:
        """Bound, right after attaching, the time that the library waits when it sends to the client or asks it: 2 s."""
        limit = struct.pack("@ll", _SEND_SECONDS, 0)
        with socket.socket(fileno=os.dup(self.fileno())) as connection:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                connection.setsockopt(socket.SOL_SOCKET, option, limit)

    def message_waits(self) -> bool | None:
        """Whether `run` would do something; None: a part of a message is there."""
        waits = self._lib.nvmuser_vfu_message_waits(self.fileno())
        if waits == 0:
            return None if self._ffi.errno == errno.EINPROGRESS else False
        if waits < 0:
            raw.log.warning("%s: not a write that a bus could carry: the client is disconnected", self.name)
            self.hang_up()
        return True

    def run(self) -> int:
        """Carry out one message.

        :return: 0, or an errno: ENOTCONN after the client's end, EBUSY when it waits for us to quiesce, ECANCELED when
            there is an `error`.
        """
        return self._result(self._lib.vfu_run_ctx(self._ctx))

    def quiesced(self) -> int:
        """Carry out what the client waits for: the device is quiet. Returns as `run` does."""
        self.memory.by_message = True
        result = self._result(self._lib.vfu_device_quiesced(self._ctx, 0))
        # What the client waited for may have been its own end.
        return result if self.is_attached else errno.ENOTCONN

    def _result(self, result: int) -> int:
        number = 0 if result >= 0 else int(self._ffi.errno)
        if self.error is not None:
            return errno.ECANCELED
        if number and not self.is_attached:
            return errno.ENOTCONN
        return number

    def hang_up(self) -> None:
        """End the client's connection: `run` then sees its end, and resets the device."""
        if self.is_attached:
            self._hung_up = True
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.fileno())) as connection:
                connection.shutdown(socket.SHUT_RDWR)
                # What has come already is not to be carried out any more.
                while connection.recv(1 << 16, socket.MSG_DONTWAIT):
                    pass

    # What a device may do, at any time in the loop's thread.

    def trigger(self, vector: int) -> bool:
        """Interrupt the guest. False: it has not enabled this vector.

        :raises DeviceError: there is no such vector.
        """
        if self._travel.keeps(vector):
            return True
        if self._lib.vfu_irq_trigger(self._ctx, vector) == 0:
            return True
        # EAGAIN: the eventfd's counter is full, so that the guest has an interrupt waiting anyway.
        if (number := self._ffi.errno) in (errno.ENOENT, errno.EAGAIN):
            return bool(number == errno.EAGAIN)
        raise DeviceError(f"interrupt {vector}: {os.strerror(number)}", number)

    def bar_memory(self, index: int) -> memoryview:
        """The memory of a mappable BAR.

        :raises UsageError: the BAR has no memory of its own.
        """
        if index not in self._memories:
            raise UsageError(f"BAR {index} is not mappable")
        return self._memories[index].view

    def config_get(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes of configuration space.

        :raises UsageError: they are beyond its end.
        """
        return int.from_bytes(self._config(offset, size), "little")

    def config_put(self, offset: int, size: int, value: int) -> None:
        """Store a value as `size` little-endian bytes of configuration space.

        :raises UsageError: they are beyond its end.
        """
        self._config(offset, size)[:] = value.to_bytes(size, "little")

    def _config(self, offset: int, size: int) -> memoryview:
        if not 0 <= offset <= offset + size <= self.config_size:
            raise UsageError(f"{size} bytes at {offset:#x}: configuration space has {self.config_size}")
        return memoryview(self._ffi.buffer(self._lib.nvmuser_vfu_config_space(self._ctx) + offset, size))

    # Callbacks, from raw.

    def region_read(self, region: int, offset: int, size: int) -> int:
        """Answer a read that came by message: from an area's memory, or by the device."""
        memory = self._memories.get(region)
        if memory is not None and memory.holds(offset, size):
            return memory.read(offset, size)
        return self._read[region](offset, size)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        """Carry out a write that came by message: to an area's memory, or by the device."""
        memory = self._memories.get(region)
        if memory is not None and memory.holds(offset, size):
            memory.write(offset, size, value)
            return
        self._write[region](offset, size, value)

    def reset(self, reason: int) -> None:
        """Reset the device, unless no client ever came. :param reason: vfu_reset_type_t."""
        # The library resets on its way out too, whether or not there was a client.
        if self._greeted:
            self._greeted = reason != _LOST_CONNECTION
            self._hung_up = self._hung_up and self._greeted
            self.memory.still = False
            self._travel.reset()
            self._handler.context_reset(reason)

    def quiesce(self) -> bool:
        """Whether the device leaves guest memory alone now; if not, `quiescing` says what to wait for."""
        # After a hang-up the device is not asked again: its refusal may be the cause of it.
        self.quiescing = None if self._hung_up else self._handler.quiesce()
        if self.quiescing is None and not self.memory.is_mapped:
            return True
        self.memory.by_message = False
        return False

    def dma(self, address: int, size: int, mapped: bool, added: bool) -> None:
        """Add or remove a region of guest memory."""
        self.memory.changed(Region(address, size, mapped), added=added)

    def irq_state(self, kind: int, start: int, count: int, masked: bool) -> None:
        """Pass on that the client has masked or unmasked interrupts."""
        self._handler.irq_state(kind, start, count, masked)

    def enter(self, state: int) -> None:
        """Go on as a guest that migrates needs it. :param state: vfu_migr_state_t."""
        lib = self._lib
        self.memory.still = state != lib.VFU_MIGR_STATE_RUNNING
        self._travel.enter(
            runs=state == lib.VFU_MIGR_STATE_RUNNING,
            saves=state == lib.VFU_MIGR_STATE_STOP_AND_COPY,
            loads=state == lib.VFU_MIGR_STATE_RESUME,
        )

    def state_read(self, size: int) -> bytes:
        """The next part of what was saved; empty at its end."""
        return self._travel.read(size)

    def state_write(self, data: bytes) -> None:
        """Take a part of a state that comes."""
        self._travel.write(data)

    def raised(self, error: BaseException) -> None:
        """Keep what ended a callback, for the caller of `run`."""
        self.error = error

    def close(self) -> None:
        """Disconnect and destroy: no callback comes after this. Idempotent.

        While views of guest memory are held it would be unmapped under them: the context is then destroyed with
        the last of them, and serves nobody until then.
        """
        if not self._ctx:
            return
        if self.memory.is_mapped:
            raw.log.warning("%s: views of guest memory are still in use: destroyed later", self.name)
            self.hang_up()
            self._path.unlink(missing_ok=True)
            self.memory.unmapped = self.close
            return
        self._lib.vfu_destroy_ctx(self._ctx)
        self._ctx = self._ffi.NULL
        self.memory.close()
        for memory in self._memories.values():
            memory.close()
        _live.discard(self)
