"""SPDK's driver in this process: started once, with what memory.

Owns the choice of memory, and the way to the cffi module (`spdk-glue/nvme/glue.h` says what each function does). The
rest of the package asks `api()` for it, which starts the driver where it does not run yet.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import Any

from nvmuser.errors import HostError
from nvmuser.hostfs import hugepages as pages
from nvmuser.toolchain import bindings

MEMORY_MIB = 256
"""Room for queues (each command has a page for its list of pages) and for buffers."""
_lock = threading.Lock()


@dataclass(frozen=True)
class Environment:
    """How the driver runs in this process.

    :param memory_mib: DMA memory in MiB, all of it from the start.
    :param hugepages: whether it lies in hugepages.
    """

    memory_mib: int
    hugepages: bool


_environment: Environment | None = None


def initialise(*, memory_mib: int = MEMORY_MIB, hugepages: bool = False) -> Environment:
    """Start the driver, with other memory than it would start with by itself. Once in a process: DPDK cannot end.

    :param memory_mib: DMA memory, in MiB.
    :param hugepages: off by default: a target that restarts may need those that are free.
    :raises HostError: it runs already, or could not be started.
    :raises SetupError: the module `nvmuser_nvme` is missing.
    """
    with _lock:
        if _environment is not None:
            raise HostError("the NVMe host runs already: it can be started once in a process")
        return _start(memory_mib, hugepages)


def api() -> tuple[Any, Any]:
    """The module's `ffi` and `lib`, with the driver running.

    :raises HostError: the driver could not be started.
    :raises SetupError: the module is missing.
    """
    with _lock:
        if _environment is None:
            _start(MEMORY_MIB, False)
    module = bindings.load(bindings.NVME)
    return module.ffi, module.lib


def reason() -> str:
    """SPDK's last error, in brackets for the end of a message, or nothing."""
    ffi, lib = api()
    text = ffi.string(lib.nvmuser_error()).decode(errors="replace")
    return f" ({text})" if text else ""


def _start(memory_mib: int, hugepages: bool) -> Environment:
    global _environment
    lib = bindings.load(bindings.NVME).lib
    if hugepages and (missing := pages.why_unusable(memory_mib << 20)):
        raise HostError(f"no hugepages: {missing}")
    failed: int = lib.nvmuser_env_init(memory_mib, not hugepages, min(os.sched_getaffinity(0)))
    if failed:
        raise HostError(f"DPDK did not start: {os.strerror(-failed)}: {memory_mib} MiB of memory are needed")
    if hugepages:
        # They are not unlinked by DPDK, because they are one file: without this, a process that is killed keeps them.
        for left in pages.MOUNT.glob(f"spdk_pid{os.getpid()}map_*"):
            with contextlib.suppress(OSError):
                left.unlink()
    _environment = Environment(memory_mib, hugepages)
    return _environment
