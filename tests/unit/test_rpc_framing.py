"""The splitter finds every object whole, wherever the chunks end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmuser.rpc.framing import FramingError, ObjectSplitter

_JSON = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@given(st.lists(_JSON, max_size=6), st.data(), st.booleans(), st.booleans())
def test_objects_come_out_whole(objects: list[dict[str, Any]], data: st.DataObject, raw: bool, pretty: bool) -> None:
    texts = [json.dumps(one, ensure_ascii=not raw, indent=2 if pretty else None) for one in objects]
    stream = "\n".join(texts).encode("utf-8", "surrogatepass")
    splitter = ObjectSplitter(1 << 20)
    found: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, max(1, min(len(stream), 9))), label="chunk")
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert [json.loads(one.decode("utf-8", "surrogatepass")) for one in found] == objects
    assert splitter.pending == 0


@given(st.lists(_JSON, min_size=1, max_size=6))
def test_one_chunk_may_hold_many(objects: list[dict[str, Any]]) -> None:
    stream = b"".join(json.dumps(one).encode() for one in objects)
    assert [json.loads(one) for one in ObjectSplitter(1 << 20).feed(stream)] == objects


def test_character_split_across_chunks() -> None:
    stream = json.dumps({"grüße": "名前"}, ensure_ascii=False).encode()
    splitter = ObjectSplitter(100)
    found = [one for byte in stream for one in splitter.feed(bytes([byte]))]
    assert found == [stream]


def test_escaped_quotes_and_braces_in_strings() -> None:
    stream = rb'{"a":"}\"{\\"}{"b":"\\\\"}'
    for cut in range(len(stream)):
        splitter = ObjectSplitter(100)
        assert splitter.feed(stream[:cut]) + splitter.feed(stream[cut:]) == [
            rb'{"a":"}\"{\\"}',
            rb'{"b":"\\\\"}',
        ]


@pytest.mark.parametrize("stray", [b"[1]", b"hello {}", b'"text"', b"}{", b"{} x {}"])
def test_anything_but_objects_is_refused(stray: bytes) -> None:
    with pytest.raises(FramingError, match="expected a JSON object"):
        ObjectSplitter(100).feed(stray)


def test_bounded() -> None:
    splitter = ObjectSplitter(100)
    with pytest.raises(FramingError, match="exceeds 100 bytes"):
        splitter.feed(b'{"a":"' + b"x" * 100)
