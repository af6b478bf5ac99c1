"""What a hostile vfio-user client may send: strategies for hypothesis, and one that sends it."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from vfio_fds import eventfd, memory
from vfio_guest import Client, capabilities_text

from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import Command, Flag, Header
from nvmf_vfio.protocol.messages import RegionAccess, RegionWriteMulti
from nvmf_vfio.state.registers import DOORBELLS


def message(command: int, body: bytes, *, identifier: int = 1, flags: int = 0, size: int | None = None) -> bytes:
    return Header(identifier, command, Header.SIZE + len(body) if size is None else size, flags).pack() + body


HELLO = message(Command.VERSION, capabilities_text({}))

numbers = st.one_of(
    st.sampled_from([0, 1, 4, 0x14, 0x1000, 0x1004, 0x1008, (1 << 32) - 1, (1 << 52), (1 << 63), (1 << 64) - 0x1000]),
    st.integers(0, (1 << 64) - 1),
)
words = numbers.map(lambda number: number & 0xFFFFFFFF)
bodies = st.one_of(
    st.binary(max_size=80),
    st.builds(lambda f, o, a, s: struct.pack("<IIQQQ", 32, f & 3, o, a, s), words, numbers, numbers, numbers),
    st.builds(lambda f, a, s: struct.pack("<IIQQ", 24, f & 2, a, s), words, numbers, numbers),
    st.builds(lambda f, i, s, c: struct.pack("<IIIII", 20, f, i, s, c), words, words, words, words),
    st.builds(lambda o, r, c, d: struct.pack("<QII", o, r, c) + d, numbers, words, words, st.binary(max_size=16)),
    st.builds(
        lambda o, r, d: RegionAccess(o, r, len(d), d).pack(),
        numbers,
        st.sampled_from([0, 7]),
        st.binary(min_size=4, max_size=8),
    ),
    st.builds(
        lambda d: RegionWriteMulti((RegionAccess(DOORBELLS, 0, 4, d),)).pack(), st.binary(min_size=4, max_size=4)
    ),
    st.recursive(st.none(), lambda inner: st.dictionaries(st.text(max_size=3), inner), max_leaves=20).map(
        capabilities_text
    ),
)
messages = st.one_of(
    st.builds(
        message,
        st.integers(0, 20),
        bodies,
        identifier=st.integers(0, 3),
        flags=st.sampled_from([0, 0, 0, Flag.NO_REPLY, Flag.REPLY, Flag.ERROR, 2]),
    ),
    st.builds(message, st.integers(0, 20), bodies, size=st.integers(0, 1 << 20)),
    st.binary(max_size=40),
)
kinds = st.lists(st.sampled_from(["memory", "short", "read-only", "eventfd", "file", "socket", "pipe"]), max_size=20)


def descriptors_of(kinds: list[str], directory: Path) -> list[Descriptor]:
    found: list[Descriptor] = []
    for kind in kinds:
        match kind:
            case "memory":
                found.append(memory())
            case "short":
                found.append(memory(100))
            case "read-only":
                with memory() as held:
                    found.append(Descriptor(os.open(f"/proc/self/fd/{held.fileno()}", os.O_RDONLY)))
            case "eventfd":
                found.append(eventfd())
            case "file":
                found.append(Descriptor(os.open(directory / "file", os.O_RDWR | os.O_CREAT)))
            case "socket":
                found.append(Descriptor(os.open(directory, os.O_PATH)))
            case _:
                reader, writer = os.pipe()
                os.close(reader)
                found.append(Descriptor(writer))
    return found


def attack(path: Path, directory: Path, script: list[tuple[bytes, list[str]]], *, hello: bool = True) -> None:
    """Send it all to a socket, read what comes, hang up; the next attacker finds its place free."""
    client = Client(path, timeout=2.0)
    try:
        with contextlib.suppress(OSError, EOFError, AssertionError):
            if hello:
                client.send_raw(HELLO)
            for data, kinds in script:
                held = descriptors_of(kinds, directory)
                try:
                    if data:
                        client.send_raw(data, held)
                finally:
                    close_all(held)
            client.socket.settimeout(0.01)
            client.is_closed()
    finally:
        client.close()


bounded = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
