"""Which command carries which payload, and the payloads by their names.

Payloads are one dataclass each, in `version`, `dma`, `region` and `device`; this module owns the table of commands.
"""

from __future__ import annotations

from typing import Any

from nvmf_vfio.protocol.device import DeviceFeature, DeviceInfo, IrqInfo, MigData, Reset, SetIrqs
from nvmf_vfio.protocol.dma import DmaAccess, DmaMap, DmaUnmap
from nvmf_vfio.protocol.header import Command, ProtocolError
from nvmf_vfio.protocol.region import RegionAccess, RegionInfo, RegionIoFds, RegionWriteMulti
from nvmf_vfio.protocol.version import Version

__all__ = [
    "DeviceFeature",
    "DeviceInfo",
    "DmaAccess",
    "DmaMap",
    "DmaUnmap",
    "IrqInfo",
    "MigData",
    "RegionAccess",
    "RegionInfo",
    "RegionIoFds",
    "RegionWriteMulti",
    "Request",
    "Reset",
    "SetIrqs",
    "decode_request",
]

Request = (
    Version
    | DmaMap
    | DmaUnmap
    | DeviceInfo
    | RegionInfo
    | RegionIoFds
    | IrqInfo
    | SetIrqs
    | RegionAccess
    | RegionWriteMulti
    | DmaAccess
    | DeviceFeature
    | MigData
    | Reset
)

_REQUESTS: dict[Command, Any] = {
    Command.VERSION: Version.unpack,
    Command.DMA_MAP: DmaMap.unpack,
    Command.DMA_UNMAP: DmaUnmap.unpack,
    Command.DEVICE_GET_INFO: DeviceInfo.unpack,
    Command.DEVICE_GET_REGION_INFO: RegionInfo.unpack,
    Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds.unpack,
    Command.DEVICE_GET_IRQ_INFO: IrqInfo.unpack,
    Command.DEVICE_SET_IRQS: SetIrqs.unpack,
    Command.REGION_READ: lambda body: RegionAccess.unpack(body, with_data=False),
    Command.REGION_WRITE: lambda body: RegionAccess.unpack(body, with_data=True),
    Command.DMA_READ: DmaAccess.unpack,
    Command.DMA_WRITE: DmaAccess.unpack,
    Command.DEVICE_RESET: Reset.unpack,
    Command.REGION_WRITE_MULTI: RegionWriteMulti.unpack,
    Command.DEVICE_FEATURE: DeviceFeature.unpack,
    Command.MIG_DATA_READ: MigData.unpack,
    Command.MIG_DATA_WRITE: MigData.unpack,
}


def decode_request(command: int, body: bytes) -> tuple[Command, Request]:
    """A request's command and payload.

    :param command: the header's command number (vfio-user.rst, "Commands").
    :param body: the payload, without the header.
    :raises ProtocolError: unknown command, or a payload that the specification does not allow.
    """
    try:
        known = Command(command)
    except ValueError:
        raise ProtocolError(f"unknown command {command}") from None
    request: Request = _REQUESTS[known](body)
    return known, request
