"""Where the I/O queues of a controller were when its I/O had ended, as its target says.

While a controller is disabled, the register of each doorbell has its queue's position (our patch 0083 of SPDK): it is
read here, and written by `nvmf_vfio.proxy`. What a position means is `nvmf_vfio.state.history`'s.
"""

from __future__ import annotations

import asyncio

from nvmf_vfio.link import TargetError, TargetLink
from nvmf_vfio.protocol.header import Command, ProtocolError
from nvmf_vfio.protocol.messages import RegionAccess
from nvmf_vfio.state.history import PHASE, History, Positions
from nvmf_vfio.state.registers import BAR0, BEGINS, DOORBELLS

_ANY_DOORBELL = 2


async def read(link: TargetLink, history: History) -> Positions:
    """The positions of all I/O queues of a controller that was disabled; none when one of them is not known."""
    numbers = list(history.queues() or ())
    try:
        values = await asyncio.gather(*(_doorbell(link, number) for number in numbers))
    except (TargetError, ProtocolError):
        return {}
    if not all(value & BEGINS for value in values):
        return {}
    return {number: value & (PHASE | PHASE - 1) for number, value in zip(numbers, values, strict=True)}


async def are_known_to(link: TargetLink) -> bool:
    """Whether a target knows of positions. One that does not would have its queues begin at 0, and clear them."""
    try:
        await _doorbell(link, _ANY_DOORBELL)
    except (TargetError, ProtocolError):
        return False
    return True


async def _doorbell(link: TargetLink, number: int) -> int:
    request = RegionAccess(DOORBELLS + 4 * number, BAR0, 4)
    data = RegionAccess.unpack(await link.call(Command.REGION_READ, request.pack()), with_data=True).data
    if len(data) != request.count:
        raise ProtocolError(f"{len(data)} bytes for a doorbell")
    return int.from_bytes(data, "little")
