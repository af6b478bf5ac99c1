"""The log of written pages that a target keeps for us: only it knows what its I/O has written.

A report is of one whole DMA map, and clears what it reports (libvfio-user's lib/dma.c, with our patch 0080). Owns no
connection and no log: see `nvmf_vfio.migration.machine`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable

from nvmf_vfio.link import TargetError, TargetLink
from nvmf_vfio.migration.dirty import DirtyLog
from nvmf_vfio.protocol import migration as wire
from nvmf_vfio.protocol.header import Command, ProtocolError
from nvmf_vfio.protocol.messages import DeviceFeature, RegionAccess
from nvmf_vfio.protocol.migration import PAGE, Feature, LoggingReport
from nvmf_vfio.protocol.wire import Message
from nvmf_vfio.state.memory import Region
from nvmf_vfio.state.registers import BAR0, CSTS_RDY, Register

_MOST = 1 << 20
"""Bytes of a bitmap at most: a map of 32 GiB. A target's messages end a little above."""
_LOOK_INTERVAL = 0.002


def can_report(regions: Iterable[Region]) -> bool:
    """Whether each of these maps can be reported: whole pages, and few enough."""
    return all(
        region.map.address % PAGE == region.map.size % PAGE == 0 and _report(region).bitmap_size <= _MOST
        for region in regions
    )


async def start(link: TargetLink) -> bool:
    """Begin. Returns whether the target can."""
    control = struct.pack("<QII", PAGE, 0, 0)
    try:
        await _call(link, Feature.DMA_LOGGING_START | wire.SET, control, len(control))
    except (TargetError, ProtocolError):
        return False
    return True


def stop(link: TargetLink) -> None:
    """End, without waiting for it."""
    request = DeviceFeature(DeviceFeature.LAYOUT.size, Feature.DMA_LOGGING_STOP | wire.SET)
    link.request(Command.DEVICE_FEATURE, request.pack(), [], Message.close)


async def collect(link: TargetLink, regions: Iterable[Region], dirty: DirtyLog) -> bool:
    """Add what was written to these maps since the last time. Returns False when that is not known any more."""
    try:
        for region in regions:
            if region.stored is None:
                continue  # The target cannot reach it.
            if not can_report([region]):
                return False
            asked = _report(region)
            size = LoggingReport.LAYOUT.size + asked.bitmap_size
            data = await _call(link, Feature.DMA_LOGGING_REPORT | wire.GET, asked.pack(), size)
            found = LoggingReport.unpack(data, most=_MOST)
            if (found.address, found.length, len(found.bitmap)) != (asked.address, asked.length, asked.bitmap_size):
                raise ProtocolError("another report than was asked for")
            dirty.merge(found.address, found.bitmap)
    except (TargetError, ProtocolError):
        return False
    return True


async def end_io(link: TargetLink) -> bool:
    """End all I/O of a controller whose CPUs stand still; the connection and the log stay.

    CC.EN=0 does it: SPDK then takes no command any more (our patch 0082), waits for what is in flight, marks what was
    mapped for the queues, and shows CSTS.RDY=0 (NVM Express Base Specification 1.4, section 3.1.5; `disable_ctrlr` in
    SPDK's lib/nvmf/vfio_user.c). After 12.5 s it gives up, and shows the same: a caller may not wait so long.

    :returns: False when the connection ended before.
    """
    try:
        await link.call(Command.REGION_WRITE, RegionAccess(Register.CC, BAR0, 4, bytes(4)).pack())
        while True:
            body = await link.call(Command.REGION_READ, RegionAccess(Register.CSTS, BAR0, 4).pack())
            if not RegionAccess.unpack(body, with_data=True).data[0] & CSTS_RDY:
                return True
            await asyncio.sleep(_LOOK_INTERVAL)
    except (TargetError, ProtocolError):
        return False


def _report(region: Region) -> LoggingReport:
    return LoggingReport(region.map.address, region.map.size)


async def _call(link: TargetLink, flags: int, data: bytes, size: int) -> bytes:
    """:param size: bytes of data that may come back."""
    request = DeviceFeature(DeviceFeature.LAYOUT.size + max(size, len(data)), flags, data)
    return DeviceFeature.unpack(await link.call(Command.DEVICE_FEATURE, request.pack())).data
