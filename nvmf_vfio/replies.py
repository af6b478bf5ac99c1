"""Replies: those that are made here because there is no target, and a target's own as its guest sees them.

Owns nothing. What is remembered between the two is `nvmf_vfio.state.controller.Controller`'s.
"""

from __future__ import annotations

from nvmf_vfio.pending import Pending
from nvmf_vfio.protocol.header import Command, ProtocolError
from nvmf_vfio.protocol.messages import DmaUnmap, RegionAccess, RegionInfo
from nvmf_vfio.protocol.version import Version
from nvmf_vfio.protocol.wire import Message
from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.memory import MAX_MAPS
from nvmf_vfio.state.registers import BAR0

_MAX_DATA = 0x10000
"""Bytes of data that a guest may put into one message."""
_CACHED = frozenset(
    {Command.VERSION, Command.DEVICE_GET_INFO, Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_IRQ_INFO}
)


def without_target(controller: Controller, pending: Pending) -> bytes | None:
    """The payload of a reply in a target's place; None when only a target knows it, and none has answered it before.

    :raises Refused: the reply is an error.
    """
    request = pending.request
    match pending.command:
        case Command.REGION_READ:
            assert isinstance(request, RegionAccess)
            return RegionAccess(request.offset, request.region, request.count, controller.read(request)).pack()
        case Command.REGION_WRITE:
            assert isinstance(request, RegionAccess)
            return RegionAccess(request.offset, request.region, request.count).pack()
        case Command.DMA_UNMAP:
            assert isinstance(request, DmaUnmap)
            return request.pack()
        case command if command in _CACHED:
            return controller.replies.get(command, pending.body)
    return b""


def from_target(controller: Controller, pending: Pending, reply: Message) -> bytes:
    """A target's reply as the guest sees it; what must be known later is remembered.

    :raises ProtocolError: it is not a reply to this request, or the target is not one that a guest can outlive.
    """
    body = reply.body
    if pending.command is Command.REGION_READ:
        assert isinstance(pending.request, RegionAccess)
        read = RegionAccess.unpack(body, with_data=True)
        data = controller.patch_read(pending.request, read.data)
        body = RegionAccess(read.offset, read.region, read.count, data).pack()
    elif pending.command is Command.VERSION:
        version = Version.unpack(body)
        capabilities = {k: v for k, v in version.capabilities.items() if k != "twin_socket"}
        capabilities["max_data_xfer_size"] = _MAX_DATA
        most = capabilities.get("max_dma_maps", MAX_MAPS)
        capabilities["max_dma_maps"] = min(most, MAX_MAPS) if isinstance(most, int) else MAX_MAPS
        body = Version(version.major, version.minor, capabilities).pack()
    elif pending.command is Command.DEVICE_GET_REGION_INFO:
        info = RegionInfo.unpack(body)
        if info.index == BAR0 and info.flags & RegionInfo.MMAP:
            raise ProtocolError("it maps its doorbells into the guest: no disable_mappable_bar0")
    if pending.command in _CACHED and not reply.descriptors:
        controller.replies.add(pending.command, pending.body, body)
    return body
