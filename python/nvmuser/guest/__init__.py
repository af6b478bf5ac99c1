"""Guests: QEMU with NVMe controllers of ours, and what runs inside.

    async with launch(GuestSpec(sockets=(state.socket("vm1"),)), state.run / "vm/demo") as guest:
        result = await guest.run("nvme list", timeout=30)

`launch` leaves no process behind. Errors are `nvmuser.errors.GuestError` and those below it.
"""

from __future__ import annotations

import logging

from nvmuser.guest.agent import (
    AgentError,
    CommandFailed,
    CommandResult,
    CommandTimeout,
    GuestProcess,
    GuestRebooted,
    Output,
)
from nvmuser.guest.machine import Guest, launch
from nvmuser.guest.spec import GuestSpec

# It logs what it raises as well; a program that wants to read that adds a handler.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

__all__ = [
    "AgentError",
    "CommandFailed",
    "CommandResult",
    "CommandTimeout",
    "Guest",
    "GuestProcess",
    "GuestRebooted",
    "GuestSpec",
    "Output",
    "launch",
]
