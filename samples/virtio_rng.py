"""A virtio entropy device: a queue in the guest's memory, and MSI-X.

    python samples/virtio_rng.py /tmp/rng.sock
    qemu-system-x86_64 … -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/rng.sock"}}'

Linux binds virtio_rng to it, and reads /dev/hwrng from it. Virtual I/O Device (VIRTIO) Version 1.2: 2.7 (split
virtqueues), 4.1 (over PCI), 5.4 (entropy device).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from nvmuser.errors import NvmuserError
from nvmuser.pci import Bar, ClassCode, Identity, MsiX, PciDevice, Reset, Vendor, serve

# Parts of BAR 0 (VIRTIO 4.1.4), a page each; the cfg_type of each in its capability.
COMMON, NOTIFY, ISR = 0x0000, 0x1000, 0x2000
COMMON_TYPE, NOTIFY_TYPE, ISR_TYPE = 1, 2, 3
# struct virtio_pci_common_cfg
FEATURE_SELECT, FEATURE, STATUS, QUEUE_SELECT, QUEUE_SIZE = 0, 4, 20, 22, 24
QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 26, 28, 32, 40, 48
COMMON_SIZE = 56
READ_ONLY = {*range(FEATURE, FEATURE + 4), 18, 19, 21, 30, 31}  # feature, num_queues, config_generation, notify_off

VERSION_1 = 1  # feature bit 32: bit 0 of the second word
ENTRIES = 64
NO_INTERRUPT = 1  # VIRTQ_AVAIL_F_NO_INTERRUPT
NEXT, WRITE = 1, 2  # VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
LARGEST = 4096  # of 4 GiB that a buffer may have: devices may write less


def part(kind: int, offset: int, size: int, more: bytes = b"") -> Vendor:
    """struct virtio_pci_cap, from cfg_type on: where a part of the device lies."""
    return Vendor(struct.pack("<BBBxxII", kind, 0, 0, offset, size) + more)


class VirtioRng(PciDevice):
    """One device. `source(n)` gives the n bytes that the guest gets."""

    identity = Identity(vendor=0x1AF4, device=0x1044, revision=1)
    class_code = ClassCode(0xFF, 0)
    bars = (Bar(0, 0x4000), Bar(1, 0x1000))
    capabilities = (
        MsiX(2, table_bar=1),
        part(COMMON_TYPE, COMMON, COMMON_SIZE),
        part(NOTIFY_TYPE, NOTIFY, 4, struct.pack("<I", 0)),
        part(ISR_TYPE, ISR, 1),
    )

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self._source = source
        self._forget()

    def _forget(self) -> None:
        self._common = bytearray(COMMON_SIZE)
        struct.pack_into("<HH", self._common, 16, 0xFFFF, 1)  # config_msix_vector, num_queues
        struct.pack_into("<HH", self._common, QUEUE_SIZE, ENTRIES, 0xFFFF)
        self._taken = 0

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._common[offset : offset + size], "little")

    def read(self, bar: int, offset: int, size: int) -> int:
        if bar != 0 or offset + size > COMMON_SIZE:
            return 0  # the ISR too: with MSI-X it is not used
        if offset == FEATURE:
            return VERSION_1 if self._get(FEATURE_SELECT, 4) == 1 else 0
        if offset == QUEUE_SIZE and self._get(QUEUE_SELECT, 2) != 0:
            return 0  # there is no such queue
        return self._get(offset, size)

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar == 0 and offset == NOTIFY:
            self._serve()
        elif bar == 0 and offset == STATUS and value == 0:
            self._forget()
        elif bar == 0 and offset + size <= COMMON_SIZE:
            for place, byte in enumerate(value.to_bytes(size, "little"), offset):
                if place not in READ_ONLY:
                    self._common[place] = byte

    def _serve(self) -> None:
        """Fill all buffers that the guest has made available."""
        if not self._get(QUEUE_ENABLE, 2):
            return
        size = self._get(QUEUE_SIZE, 2)
        driver, device = self._get(QUEUE_DRIVER, 8), self._get(QUEUE_DEVICE, 8)
        flags, available = struct.unpack("<HH", self.memory.read(driver, 4))
        while self._taken != available:
            slot = self._taken % size
            (head,) = struct.unpack("<H", self.memory.read(driver + 4 + 2 * slot, 2))
            self.memory.write(device + 4 + 8 * slot, struct.pack("<II", head, self._fill(head, size)))
            self._taken = self._taken + 1 & 0xFFFF
            self.memory.write(device + 2, struct.pack("<H", self._taken))
        vector = self._get(QUEUE_VECTOR, 2)
        if not flags & NO_INTERRUPT and vector != 0xFFFF:
            self.trigger(vector)

    def _fill(self, index: int, size: int) -> int:
        """How many bytes were written to the chain that begins here."""
        written = 0
        for _ in range(size):  # a chain that is longer goes round in circles
            entry = self.memory.read(self._get(QUEUE_DESC, 8) + 16 * index, 16)
            address, length, flags, index = struct.unpack("<QIHH", entry)
            if flags & WRITE:
                with self.memory.mapped(address, min(length, LARGEST), write=True) as pieces:
                    for piece in pieces:
                        piece[:] = self._source(len(piece))
                        written += len(piece)
            if not flags & NEXT:
                break
        return written

    def reset(self, kind: Reset) -> None:
        self._forget()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a virtio entropy device.")
    parser.add_argument("socket", type=Path, help="where guests connect")
    logging.basicConfig()
    try:
        asyncio.run(serve({parser.parse_args().socket: VirtioRng()}))
    except NvmuserError as error:
        sys.exit(f"virtio_rng: {error}")
