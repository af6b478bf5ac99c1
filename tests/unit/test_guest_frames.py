"""The codec of the agent's line: what goes in comes out, whatever stands between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmuser.guest.frames import MAX_PAYLOAD, Decoder, Frame, cobs_decode, cobs_encode, encode

frames = st.builds(
    Frame,
    kind=st.sampled_from([b"o", b"e", b"x", b"R"]),
    sequence=st.integers(0, 0xFFFF),
    command=st.integers(0, 0xFFFFFFFF),
    payload=st.one_of(st.binary(max_size=64), st.binary(min_size=250, max_size=600)),
)


@given(st.binary(max_size=1000))
def test_cobs_round_trip(data: bytes) -> None:
    encoded = cobs_encode(data)
    assert 0 not in encoded
    assert cobs_decode(encoded) == data


@pytest.mark.parametrize("length", [253, 254, 255, 508, 509])
def test_cobs_at_the_edge_of_a_block(length: int) -> None:
    for data in (b"x" * length, b"x" * length + b"\0", b"\0" + b"x" * length, b"\0" * length):
        assert cobs_decode(cobs_encode(data)) == data


@given(st.binary(max_size=1000))
def test_any_bytes_decode_to_frames_or_nothing(noise: bytes) -> None:
    assert all(isinstance(frame, Frame) for frame in Decoder().feed(noise))


@given(st.lists(frames, max_size=5), st.data())
def test_frames_survive_garbage_and_any_split(sent: list[Frame], data: st.DataObject) -> None:
    # Kernel messages and other text hold no zero byte; a frame brings its own separators.
    noise = st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"\n"))
    stream = b"".join(data.draw(noise) + encode(frame) for frame in sent) + data.draw(noise)
    decoder, received = Decoder(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert received == sent


@given(frames, st.data())
def test_a_damaged_frame_is_dropped_and_the_next_one_read(frame: Frame, data: st.DataObject) -> None:
    encoded = bytearray(encode(frame))
    at = data.draw(st.integers(1, len(encoded) - 2))
    encoded[at] ^= data.draw(st.integers(1, 255))
    after = Frame(b"x", 1, 2, b"after")
    assert [*Decoder().feed(bytes(encoded) + encode(after))] == [after]


def test_an_endless_frame_takes_no_endless_memory() -> None:
    decoder = Decoder()
    for _ in range(64):
        assert not [*decoder.feed(b"x" * MAX_PAYLOAD)]
    assert len(decoder._buffer) < 2 * MAX_PAYLOAD
    assert [*decoder.feed(encode(Frame(b"h", 0, 0, b"")))] == [Frame(b"h", 0, 0, b"")]


def test_a_payload_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ValueError, match="16384"):
        encode(Frame(b"I", 0, 1, bytes(MAX_PAYLOAD + 1)))
