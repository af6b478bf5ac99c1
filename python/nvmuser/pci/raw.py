"""The cffi tier: libvfio-user's functions, checked, and the way from its callbacks into Python.

Owns what is loosely typed, and that no exception in a callback gets into C: it becomes an errno
for the client and a traceback in the log. It knows contexts by what `Callbacks` says, and nothing of PCI.
"""

from __future__ import annotations

import errno
import functools
import logging
import operator
import os
from types import TracebackType
from typing import Any, Protocol

from nvmuser.errors import DeviceError
from nvmuser.toolchain import bindings

log = logging.getLogger("nvmuser.pci")

# syslog(3)'s levels. What libvfio-user calls an error is mostly a client's, and must not look like ours.
_LEVELS = {0: logging.ERROR, 1: logging.ERROR, 2: logging.ERROR, 3: logging.WARNING, 4: logging.WARNING}
_ROUTINE = "no fd for interrupt"
"""An error to the library; a guest that has not enabled an interrupt yet, or never will."""
_LOG_ERR, _LOG_DEBUG = 3, 7

_VALUE = (1 << 64) - 1
"""As much as C takes of a register's value, and copies as many bytes of that as were asked for."""

INTX = 0
"""VFU_DEV_INTX_IRQ."""


class Callbacks(Protocol):
    """What a handle given to vfu_create_ctx stands for. The offsets are in the region, the values little-endian."""

    name: str

    def region_read(self, region: int, offset: int, size: int) -> int:
        """vfu_region_access_cb_t, for reads of 1, 2, 4 or 8 bytes."""

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        """vfu_region_access_cb_t, for writes of 1, 2, 4 or 8 bytes."""

    def reset(self, reason: int) -> None:
        """vfu_reset_cb_t."""

    def quiesce(self) -> bool:
        """vfu_device_quiesce_cb_t. False: not yet; vfu_device_quiesced follows."""

    def dma(self, address: int, size: int, mapped: bool, added: bool) -> None:
        """vfu_dma_register_cb_t and vfu_dma_unregister_cb_t."""

    def irq_state(self, kind: int, start: int, count: int, masked: bool) -> None:
        """vfu_dev_irq_state_cb_t."""

    def enter(self, state: int) -> None:
        """vfu_migration_callbacks_t's transition."""

    def state_read(self, size: int) -> bytes:
        """vfu_migration_callbacks_t's read_data: the next part of the state, at most so many bytes."""

    def state_write(self, data: bytes) -> None:
        """vfu_migration_callbacks_t's write_data."""

    def raised(self, error: BaseException) -> None:
        """Keep what ended a callback and is no `Exception`, for the caller of vfu_run_ctx."""


@functools.cache
def api() -> tuple[Any, Any]:
    """(ffi, lib) of nvmuser_vfu, with the callbacks in place.

    :raises SetupError: the module is not there.
    """
    module = bindings.load(bindings.VFU)
    _define_callbacks(module.ffi)
    return module.ffi, module.lib


def log_level() -> int:
    """The level for vfu_setup_log: debug messages are made only when the log shows them."""
    return _LOG_DEBUG if log.isEnabledFor(logging.DEBUG) else _LOG_ERR


def check(result: int, what: str) -> int:
    """Return a result of libvfio-user's.

    :raises DeviceError: it is -1; the error carries the errno.
    """
    if result < 0:
        number = api()[0].errno
        raise DeviceError(f"{what}: {os.strerror(number)}", number)
    return result


def _define_callbacks(ffi: Any) -> None:
    from_handle = ffi.from_handle

    def failed(_kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """A callback raised: cffi then returns -1, and C sees this errno."""
        context = from_handle(trace.tb_frame.f_locals["handle"]) if trace else None
        number = getattr(error, "errno", None)
        ffi.errno = number if isinstance(number, int) and number > 0 else errno.EIO
        if context is not None and not isinstance(error, Exception):
            context.raised(error)
            return
        name = "a device" if context is None else context.name
        log.error("%s: a callback failed: %s", name, error, exc_info=(type(error), error, trace))

    def define(function: Any) -> None:
        ffi.def_extern(onerror=failed)(function)

    def define_fallible(function: Any) -> None:
        ffi.def_extern(error=-1, onerror=failed)(function)

    @define_fallible
    def nvmuser_py_read(handle: Any, region: int, offset: int, size: int, value: Any) -> int:
        value[0] = operator.index(from_handle(handle).region_read(region, offset, size)) & _VALUE
        return 0

    @define_fallible
    def nvmuser_py_write(handle: Any, region: int, offset: int, size: int, value: int) -> int:
        from_handle(handle).region_write(region, offset, size, value)
        return 0

    @define_fallible
    def nvmuser_py_reset(handle: Any, reason: int) -> int:
        from_handle(handle).reset(reason)
        return 0

    @define_fallible
    def nvmuser_py_quiesce(handle: Any) -> int:
        if from_handle(handle).quiesce():
            return 0
        ffi.errno = errno.EBUSY
        return -1

    @define_fallible
    def nvmuser_py_enter(handle: Any, state: int) -> int:
        from_handle(handle).enter(state)
        return 0

    @define_fallible
    def nvmuser_py_state_read(handle: Any, data: Any, size: int) -> int:
        part = from_handle(handle).state_read(size)
        ffi.memmove(data, part, len(part))
        return len(part)

    @define_fallible
    def nvmuser_py_state_write(handle: Any, data: Any, size: int) -> int:
        from_handle(handle).state_write(bytes(ffi.buffer(data, size)))
        return size

    @define
    def nvmuser_py_dma(handle: Any, address: int, size: int, mapped: bool, added: bool) -> None:
        from_handle(handle).dma(address, size, mapped, added)

    @define
    def nvmuser_py_irq_state(handle: Any, kind: int, start: int, count: int, masked: bool) -> None:
        from_handle(handle).irq_state(kind, start, count, masked)

    @define
    def nvmuser_py_log(handle: Any, level: int, text: Any) -> None:
        message = ffi.string(text).decode("utf-8", "replace")
        shown = logging.DEBUG if message.startswith(_ROUTINE) else _LEVELS.get(level, logging.DEBUG)
        log.log(shown, "%s: %s", from_handle(handle).name, message)
