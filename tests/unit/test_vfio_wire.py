"""Messages over a socket, cut anywhere, with descriptors beside any byte."""

import array
import itertools
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vfio_fds import descriptors_open, eventfd, memory

from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import MAX_DESCRIPTORS, MAX_MESSAGE, Flag, Header, ProtocolError
from nvmf_vfio.protocol.wire import Closed, Message, Wire

Pair = tuple[Wire, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    before = descriptors_open()
    ours, theirs = socket.socketpair()
    wire = Wire(ours, limit=MAX_MESSAGE)
    yield wire, theirs
    wire.close()
    theirs.close()
    assert descriptors_open() == before


def send(sock: socket.socket, data: bytes, descriptors: int = 0) -> None:
    held = [eventfd() for _ in range(descriptors)]
    numbers = array.array("i", [descriptor.fileno() for descriptor in held])
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if held else [])
    close_all(held)


def packed(body: bytes, identifier: int = 1) -> bytes:
    return Header(identifier, 9, 16 + len(body)).pack() + body


def take(wire: Wire) -> tuple[bytes, int] | None:
    """Peek and consume one message: its body, and how many descriptors are its own."""
    message = wire.peek()
    if message is None:
        return None
    count = len(message.descriptors)
    message.close()
    return message.body, count if wire.consume() else 0


@settings(deadline=None, max_examples=60)
@given(
    bodies=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 200), max_size=8),
    counts=st.lists(st.integers(0, 2), min_size=9, max_size=9),
)
def test_messages_cut_anywhere(bodies: list[bytes], cuts: list[int], counts: list[int]) -> None:
    before = descriptors_open()
    ours, theirs = socket.socketpair()
    wire = Wire(ours, limit=MAX_MESSAGE)
    stream = b"".join(packed(body) for body in bodies)
    edges = sorted({0, *(cut for cut in cuts if cut < len(stream)), len(stream)})
    received = []
    for (start, end), count in zip(itertools.pairwise(edges), counts, strict=False):
        send(theirs, stream[start:end], count)
        while taken := take(wire):
            received.append(taken)
    wire.close()
    theirs.close()
    assert [body for body, _ in received] == bodies
    # None is returned twice; what lies beside a message's first part is the message before's, if they share a piece.
    assert sum(count for _, count in received) <= sum(counts)
    assert descriptors_open() == before


def test_descriptors_come_with_their_message(pair: Pair) -> None:
    wire, theirs = pair
    send(theirs, packed(b"first"), 3)
    send(theirs, packed(b"second"))
    assert take(wire) == (b"first", 3)
    assert take(wire) == (b"second", 0)
    assert take(wire) is None


def test_a_message_without_descriptors_does_not_get_the_next_ones(pair: Pair) -> None:
    wire, theirs = pair
    send(theirs, packed(b"first"))
    send(theirs, packed(b"second"), 2)
    assert take(wire) == (b"first", 0)
    assert take(wire) == (b"second", 2)


def test_descriptors_in_two_parts_of_a_message(pair: Pair) -> None:
    wire, theirs = pair
    data = packed(b"abcdefgh")
    send(theirs, data[:20], 2)
    assert take(wire) is None
    assert wire.is_partial
    send(theirs, data[20:], 1)
    assert take(wire) == (b"abcdefgh", 3)
    assert not wire.is_partial


def test_peeked_is_still_there(pair: Pair) -> None:
    wire, theirs = pair
    send(theirs, packed(b"body"), 1)
    for _ in range(3):
        message = wire.peek()
        assert message
        assert message.body == b"body"
        message.close()
    successor = Wire(wire.socket.dup(), limit=MAX_MESSAGE)
    assert take(successor) == (b"body", 1)
    successor.close()


def test_received_descriptors_are_what_was_sent_and_closed_on_exec(pair: Pair) -> None:
    wire, theirs = pair
    with memory(4096) as held:
        theirs.sendmsg([packed(b"")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [held.fileno()]))])
        message = wire.receive()
        assert message
        assert os.fstat(message.descriptors[0].fileno()).st_ino == os.fstat(held.fileno()).st_ino
        assert not os.get_inheritable(message.descriptors[0].fileno())
        message.close()


@pytest.mark.parametrize("count", [MAX_DESCRIPTORS + 1, 100])
def test_too_many_descriptors(pair: Pair, count: int) -> None:
    wire, theirs = pair
    send(theirs, packed(b""), count)
    with pytest.raises(ProtocolError):
        wire.peek()


def test_too_many_descriptors_in_pieces(pair: Pair) -> None:
    wire, theirs = pair
    data = packed(b"abcdefgh")

    def dribble() -> None:
        for index in range(len(data) - 1):
            send(theirs, data[index : index + 1], 4)
            wire.peek()

    with pytest.raises(ProtocolError):
        dribble()


def test_as_many_descriptors_as_are_allowed(pair: Pair) -> None:
    wire, theirs = pair
    send(theirs, packed(b"x"), MAX_DESCRIPTORS)
    assert take(wire) == (b"x", MAX_DESCRIPTORS)


@pytest.mark.parametrize("size", [0, 15, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_impossible_sizes(pair: Pair, size: int) -> None:
    wire, theirs = pair
    theirs.send(Header(1, 9, size).pack())
    with pytest.raises(ProtocolError):
        wire.peek()


def test_the_end_of_the_stream(pair: Pair) -> None:
    wire, theirs = pair
    theirs.send(packed(b"last")[:18])
    assert wire.peek() is None
    theirs.close()
    with pytest.raises(Closed):
        wire.peek()


def test_a_reset_connection_is_its_end(pair: Pair) -> None:
    wire, theirs = pair
    wire.send(Header(1, 9, 0), b"unread")
    theirs.close()
    with pytest.raises(Closed):
        wire.peek()


def read_all(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    data = b""
    try:
        while piece := sock.recv(1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data


def test_a_peer_that_reads_slowly_gets_everything_in_order(pair: Pair) -> None:
    wire, theirs = pair
    sent = []
    while len(sent) < 40 or not wire.is_blocked:
        body = bytes([len(sent) % 256]) * 20000
        wire.send(Header(len(sent), 9, 0, Flag.REPLY), body)
        sent.append(body)
    received = b""
    while wire.is_blocked:
        received += read_all(theirs)
        wire.flush()
    received += read_all(theirs)
    for number, body in enumerate(sent):
        header = Header.unpack(received, limit=MAX_MESSAGE)
        assert (header.id, received[16 : header.size]) == (number, body)
        received = received[header.size :]
    assert received == b""


def test_a_peer_that_does_not_read(pair: Pair) -> None:
    wire, _ = pair

    def flood() -> None:
        for _ in range(10000):
            wire.send(Header(1, 9, 0, Flag.REPLY), bytes(60000), [eventfd()])

    with pytest.raises(ProtocolError):
        flood()


def test_a_wire_that_is_closed_owns_nothing(pair: Pair) -> None:
    wire, _ = pair
    wire.close()
    with pytest.raises(Closed):
        wire.send(Header(1, 9, 0), b"", [eventfd()])
    wire.close()


def test_sent_descriptors_are_closed_here(pair: Pair) -> None:
    wire, theirs = pair
    held = eventfd()
    wire.send(Header(1, 9, 0), b"", [held])
    with pytest.raises(ValueError, match="closed"):
        held.fileno()
    other = Wire(theirs.dup(), limit=MAX_MESSAGE)
    message = other.receive()
    assert isinstance(message, Message)
    assert len(message.descriptors) == 1
    message.close()
    other.close()


def test_a_descriptor_is_closed_once() -> None:
    held = eventfd()
    number = held.fileno()
    held.close()
    reused = Descriptor(os.open("/dev/null", os.O_RDONLY))
    assert reused.fileno() == number
    held.close()
    os.fstat(number)
    reused.close()
