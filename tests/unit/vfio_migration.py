"""A guest's QEMU that migrates, as far as one controller of it is concerned (hw/vfio/migration.c)."""

from __future__ import annotations

import struct

from vfio_guest import Client

from nvmf_vfio.protocol import migration as wire
from nvmf_vfio.protocol.header import Command
from nvmf_vfio.protocol.messages import DeviceFeature, MigData
from nvmf_vfio.protocol.migration import DeviceState, Feature, LoggingReport, MigState


class Qemu:
    """One end of a migration. Its calls block, as QEMU's do."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def feature(self, feature: int, action: int, data: bytes = b"") -> bytes:
        """:raises Refusal: an error reply."""
        request = DeviceFeature(8 + len(data), feature | action, data)
        return DeviceFeature.unpack(self.client.call(Command.DEVICE_FEATURE, request.pack())).data

    def enter(self, state: DeviceState) -> None:
        self.feature(Feature.MIG_DEVICE_STATE, wire.SET, MigState(state).pack())

    def state(self) -> DeviceState:
        return MigState.unpack(self.feature(Feature.MIG_DEVICE_STATE, wire.GET)).state

    def start_logging(self, size: int = 1 << 20) -> None:
        self.feature(Feature.DMA_LOGGING_START, wire.SET, struct.pack("<QIIQQ", wire.PAGE, 1, 0, 0, size))

    def stop_logging(self) -> None:
        self.feature(Feature.DMA_LOGGING_STOP, wire.SET)

    def dirty(self, address: int = 0, length: int = 1 << 20) -> set[int]:
        """Numbers of the pages that were written since the last time."""
        data = self.feature(Feature.DMA_LOGGING_REPORT, wire.GET, LoggingReport(address, length).pack())
        bits = int.from_bytes(LoggingReport.unpack(data, most=1 << 20).bitmap, "little")
        return {address // wire.PAGE + bit for bit in range(bits.bit_length()) if bits >> bit & 1}

    def read_all(self, most: int = 100) -> bytes:
        """The document, in pieces."""
        pieces = []
        while True:
            reply = self.client.call(Command.MIG_DATA_READ, MigData(8 + most, most).pack())
            # libvfio-user sends as many bytes as were asked for, whatever there is.
            piece = reply[8 : 8 + int.from_bytes(reply[4:8], "little")]
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)

    def write_all(self, data: bytes, most: int = 100) -> None:
        """:raises Refusal: a piece is refused."""
        for start in range(0, len(data), most):
            piece = data[start : start + most]
            self.client.call(Command.MIG_DATA_WRITE, MigData(8 + len(piece), len(piece), piece).pack())

    def leave(self) -> bytes:
        """Everything that happens here until the guest runs somewhere else; returns the document."""
        self.start_logging()
        for state in (DeviceState.RUNNING_P2P, DeviceState.STOP, DeviceState.STOP_COPY):
            self.enter(state)
        data = self.read_all()
        self.enter(DeviceState.STOP)
        self.stop_logging()
        return data

    def arrive(self, data: bytes) -> None:
        """Everything that happens at the destination."""
        self.enter(DeviceState.RESUMING)
        self.write_all(data)
        self.enter(DeviceState.RUNNING_P2P)
        self.enter(DeviceState.RUNNING)
