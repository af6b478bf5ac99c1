"""Descriptors of tests, and waiting for what another task or process does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from nvmf_vfio.protocol.descriptors import Descriptor

PATIENCE = 10.0


def descriptors_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def memory(size: int = 1 << 20) -> Descriptor:
    descriptor = Descriptor(os.memfd_create("guest", os.MFD_CLOEXEC))
    os.ftruncate(descriptor.fileno(), size)
    return descriptor


def eventfd() -> Descriptor:
    return Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))


def signals(descriptor: Descriptor) -> int:
    """How often an eventfd was signalled since it was asked last."""
    try:
        return os.eventfd_read(descriptor.fileno())
    except BlockingIOError:
        return 0


async def until(condition: Callable[[], object]) -> None:
    """Wait until the event loop has made it true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 (what it looks at knows no events)
            await asyncio.sleep(0.001)
