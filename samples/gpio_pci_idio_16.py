"""The ACCES PCI-IDIO-16 board: 16 isolated outputs, 16 isolated inputs, an interrupt when an input changes.

    python samples/gpio_pci_idio_16.py /tmp/gpio.sock
    qemu-system-x86_64 … -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/gpio.sock"}}'

Linux binds gpio-pci-idio-16 to it: lines 0 to 15 are outputs, 16 to 31 inputs. `3 on` and `3 off` on standard input set
an input; standard output reports each output that the guest changes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from nvmuser.errors import NvmuserError
from nvmuser.pci import Bar, ClassCode, Identity, PciDevice, Reset, Space, serve

LINES = 16
# The registers, all of 8 bits, as the manufacturer's manual and drivers/gpio/gpio-idio-16.c name them.
OUT_LOW, IN_LOW, ENABLE, FILTERS, OUT_HIGH, IN_HIGH, STATUS = range(7)

_STATE = struct.Struct("<HH??")


class PciIdio16(PciDevice):
    """One board. `outputs` is what the guest drives, `inputs` what is wired to it; bit n is line n."""

    identity = Identity(vendor=0x494F, device=0x0DC8)
    class_code = ClassCode(0x11, 0x80)
    bars = (Bar(2, 0x100, space=Space.IO),)
    intx = True

    def __init__(self, on_output: Callable[[int, bool], None] = lambda line, on: None) -> None:
        self.inputs = 0
        self.outputs = 0
        self.enabled = False
        self.changed = False
        self._on_output = on_output

    def set_input(self, line: int, on: bool) -> None:
        """What is wired to an input changes."""
        before = self.inputs
        self.inputs = before | 1 << line if on else before & ~(1 << line)
        if self.inputs != before and self.enabled:
            self.changed = True
            self.set_intx(True)

    def read(self, bar: int, offset: int, size: int) -> int:
        return int.from_bytes((self._read(register) for register in range(offset, offset + size)), "little")

    def _read(self, register: int) -> int:
        if register in (OUT_LOW, OUT_HIGH):
            return self.outputs >> 8 * (register == OUT_HIGH) & 0xFF
        if register in (IN_LOW, IN_HIGH):
            return self.inputs >> 8 * (register == IN_HIGH) & 0xFF
        if register == ENABLE:
            self.enabled = True
        elif register == STATUS:
            return 0x3 * self.enabled | 0x4 * self.changed
        return 0

    def write(self, bar: int, offset: int, size: int, value: int) -> None:
        for register, byte in enumerate(value.to_bytes(size, "little"), offset):
            if register == OUT_LOW:
                self._drive(self.outputs & 0xFF00 | byte)
            elif register == OUT_HIGH:
                self._drive(self.outputs & 0x00FF | byte << 8)
            elif register in (ENABLE, IN_LOW):  # disables, clears
                self.enabled = self.enabled and register == IN_LOW
                self.changed = False
                self.set_intx(False)

    def _drive(self, outputs: int) -> None:
        before, self.outputs = self.outputs, outputs
        for line in range(LINES):
            if (before ^ outputs) >> line & 1:
                self._on_output(line, bool(outputs >> line & 1))

    def save(self) -> bytes:
        return _STATE.pack(self.outputs, self.inputs, self.enabled, self.changed)

    def load(self, data: bytes) -> None:
        outputs, inputs, self.enabled, self.changed = _STATE.unpack(data)
        # What is wired to this board is what the guest sees of inputs now.
        if inputs != self.inputs and self.enabled:
            self.changed = True
        self._drive(outputs)

    def reset(self, kind: Reset) -> None:
        self.enabled = self.changed = False
        self._drive(0)


def command(board: PciIdio16) -> None:
    """Something is on standard input; at its end the board goes on as it is."""
    if not (text := os.read(0, 4096).decode()):
        asyncio.get_running_loop().remove_reader(0)
    for words in map(str.split, text.splitlines()):
        match words:
            case [line, "on" | "off" as state] if line.isdecimal() and int(line) < LINES:
                board.set_input(int(line), state == "on")
            case _:
                print(f"{' '.join(words)}: not an input from 0 to {LINES - 1}, and on or off", file=sys.stderr)


async def main(path: Path) -> None:
    board = PciIdio16(lambda line, on: print(f"output {line} {'on' if on else 'off'}", flush=True))
    with contextlib.suppress(PermissionError):  # epoll refuses files and /dev/null
        asyncio.get_running_loop().add_reader(0, command, board)
    await serve({path: board})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve an ACCES PCI-IDIO-16.")
    parser.add_argument("socket", type=Path, help="where guests connect")
    logging.basicConfig()
    try:
        asyncio.run(main(parser.parse_args().socket))
    except NvmuserError as error:
        sys.exit(f"gpio_pci_idio_16: {error}")
