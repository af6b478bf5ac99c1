"""What of a controller travels with its guest: a few registers, the admin queue, and who the controller is.

Maps, interrupts and configuration space are not in it: QEMU carries them, and sets them up at the destination. The
document comes over a network, and is judged as a hostile guest's messages are: every field has a type and bounds, and
nothing in it becomes an address but what the guest could have written into its registers itself.
"""

from __future__ import annotations

import errno
import json
import struct
from dataclasses import dataclass
from typing import Any

from nvmf_vfio.state.controller import Controller
from nvmf_vfio.state.history import History, fits
from nvmf_vfio.state.lifecycle import Phase
from nvmf_vfio.state.memory import Refused
from nvmf_vfio.state.registers import CC_EN, SQE_SIZE, STATEFUL_OPCODES, AdminQueues, Register, command_of

_HEAD = struct.Struct("<8sI")
_MAGIC = b"nvmuser\x01"
"""The last byte is the version of the layout."""
MAX_SIZE = 1 << 20
"""Bytes of a whole document: more than the longest admin history needs (`nvmf_vfio.state.admin`)."""
_MAX_BRACKETS = 800
"""In a document at most. One for each namespace and each queue, and a few; names may have some in them."""
_MAX_COMMANDS = 256
_MAX_HISTORY = 4096
_MAX_QUEUE = 4096
_HOLDS = {
    Phase.IDLE: False, Phase.ENABLING: True, Phase.STARTING: True, Phase.FAILED: True, Phase.RESUMABLE: True,
}  # fmt: skip
"""The phases of a controller without a target, and whether it is enabled in each."""

Identity = dict[str, Any]
"""Who a controller is, as the supervisor describes it. It is compared, never interpreted."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A controller as its document describes it; see `nvmf_vfio.state.controller` for the fields."""

    cc: int
    aqa: int
    asq: int
    acq: int
    intms: int
    phase: Phase
    seen_ready: bool
    io_started: bool
    admin: dict[str, Any]
    """As `nvmf_vfio.state.admin.AdminQueue.load_json` takes it."""
    positions: tuple[tuple[int, int], ...] = ()
    """Of its I/O queues, in a controller that can go on with them."""


def departing(controller: Controller) -> Arrival:
    """What of a controller travels. No target serves it any more."""
    fields = controller.to_json()
    return Arrival(
        cc=controller.cc,
        aqa=controller.reg(Register.AQA),
        asq=controller.reg(Register.ASQ, 8),
        acq=controller.reg(Register.ACQ, 8),
        intms=controller.reg(Register.INTMS),
        phase=controller.phase,
        seen_ready=fields["seen_ready"],
        io_started=fields["io_started"],
        admin=fields["admin"],
        positions=tuple(controller.positions.items()),
    )


def land(arrival: Arrival, controller: Controller) -> None:
    """Make a controller the one that has arrived."""
    registers = {
        Register.CC: arrival.cc,
        Register.AQA: arrival.aqa,
        Register.ASQ: arrival.asq,
        Register.ACQ: arrival.acq,
        # Both read as the mask.
        Register.INTMS: arrival.intms,
        Register.INTMC: arrival.intms,
    }
    lifecycle = {"phase": arrival.phase, "seen_ready": arrival.seen_ready, "io_started": arrival.io_started}
    controller.arrive(registers, lifecycle, arrival.admin, dict(arrival.positions))


def pack(arrival: Arrival, identity: Identity) -> bytes:
    """The document of a controller."""
    fields = {name: getattr(arrival, name) for name in Arrival.__slots__}
    if not arrival.positions:
        del fields["positions"]  # an earlier version does not know them
    body = json.dumps({**fields, "phase": arrival.phase.value, "identity": identity}, separators=(",", ":")).encode()
    return _HEAD.pack(_MAGIC, len(body)) + body


def is_whole(data: bytes | bytearray) -> bool:
    """Whether this much of a document is all of it.

    :raises Refused: it is none, larger than any, or there is more behind it.
    """
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        raise _refuse("it was not written by an nvmuser that this one understands")
    if len(data) < _HEAD.size:
        return False
    size = _HEAD.size + int(_HEAD.unpack_from(data)[1])
    if size > MAX_SIZE or len(data) > size:
        raise _refuse(f"{max(size, len(data))} bytes")
    return len(data) == size


def unpack(data: bytes | bytearray, expected: Identity) -> Arrival:
    """The controller in a document.

    :param expected: who is expected here.
    :raises Refused: EINVAL, it is damaged; ENODEV, it is about another controller, or one with other volumes.
    """
    if not is_whole(data):
        raise _refuse("it ends in the middle")
    fields = _decoded(bytes(data[_HEAD.size :]))
    fields.setdefault("positions", [])
    if set(fields) != {*Arrival.__slots__, "identity"}:
        raise _refuse("other fields than a controller has")
    _compare(fields.pop("identity"), expected)
    _check_registers(fields)
    fields["phase"] = _phase(fields)
    _check_admin(fields["admin"], AdminQueues.decode(fields["aqa"], fields["asq"], fields["acq"]))
    fields["positions"] = _positions(fields)
    return Arrival(**fields)


def _refuse(reason: str, number: int = errno.EINVAL) -> Refused:
    return Refused(number, f"the controller that arrives: {reason}")


def _decoded(body: bytes) -> dict[str, Any]:
    # Nothing may nest as deep as the interpreter can go.
    if body.count(b"{") + body.count(b"[") > _MAX_BRACKETS:
        raise _refuse("too many brackets")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _refuse(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise _refuse("not an object")
    return fields


def _compare(found: Any, expected: Identity) -> None:
    if found == expected:
        return
    named = sorted(expected) if isinstance(found, dict) else []
    other = [name for name in named if found.get(name) != expected[name]]
    raise _refuse(f"it is another one, or has other volumes ({', '.join(other) or 'no identity'})", errno.ENODEV)


def _is_integer(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


def _check_registers(fields: dict[str, Any]) -> None:
    widths = {"cc": 32, "aqa": 32, "asq": 64, "acq": 64, "intms": 32}
    for name, bits in widths.items():
        if not _is_integer(fields[name], 1 << bits):
            raise _refuse(f"{name} is no register's value")
    for name in ("seen_ready", "io_started"):
        if type(fields[name]) is not bool:
            raise _refuse(f"{name} is neither true nor false")


def _phase(fields: dict[str, Any]) -> Phase:
    for phase, is_enabled in _HOLDS.items():
        if fields["phase"] == phase.value and bool(fields["cc"] & CC_EN) is is_enabled:
            return phase
    raise _refuse("its phase does not go with CC.EN")


def _check_admin(admin: Any, queues: AdminQueues) -> None:
    if not isinstance(admin, dict) or set(admin) != {
        "tail", "head", "phase", "commands", "history", "event_requested",
    }:  # fmt: skip
        raise _refuse("no admin queue")
    sizes = (queues.submission_size, queues.completion_size, 2)
    for name, limit in zip(("tail", "head", "phase"), sizes, strict=True):
        if not _is_integer(admin[name], min(limit, _MAX_QUEUE)):
            raise _refuse(f"{name} of the admin queue lies outside of it")
    if type(admin["event_requested"]) is not bool:
        raise _refuse("event_requested is neither true nor false")
    _entries(admin["commands"], _MAX_COMMANDS)
    for entry in _entries(admin["history"], _MAX_HISTORY):
        if command_of(entry)[0] not in STATEFUL_OPCODES:
            raise _refuse("a command that leaves nothing behind")


def _positions(fields: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """Where its queues are: of each that it has, within it, or of none."""
    pairs = fields["positions"]
    is_resumable = fields["phase"] is Phase.RESUMABLE
    if not isinstance(pairs, list) or bool(pairs) is not is_resumable:
        raise _refuse("positions of queues that do not go with its phase")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_integer(one, 1 << 18) for one in pair):
            raise _refuse("a position of a queue that is none")
    found = tuple((number, position) for number, position in pairs)
    queues = History(_entries(fields["admin"]["history"], _MAX_HISTORY)).queues()
    if is_resumable and (len(dict(found)) != len(found) or not fits(dict(found), queues)):
        raise _refuse("positions outside of its queues, or of others")
    return found


def _entries(texts: Any, most: int) -> list[bytes]:
    """The commands in a list.

    :raises Refused: it is none, or too long, or one is not 64 bytes in hexadecimal digits.
    """
    if not isinstance(texts, list) or len(texts) > most:
        raise _refuse("no list of commands, or too many of them")
    entries = []
    for text in texts:
        if type(text) is not str or len(text) != 2 * SQE_SIZE or not text.isascii() or not text.isalnum():
            raise _refuse("a command that is none")
        try:
            entries.append(bytes.fromhex(text))
        except ValueError:
            raise _refuse("a command that is none") from None
    return entries
