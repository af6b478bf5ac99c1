"""Messages from tables: what goes over the wire."""

from __future__ import annotations

import pytest

from nvmuser.protobuf import classes

TABLES = {
    "Inner": {"text": (1, "string")},
    "Outer": {"number": (2, "int64"), "inner": (3, "Inner"), "many": (4, "repeated Inner"), "some_words": (5, "map")},
}
NEWER = TABLES | {"Inner": {"text": (1, "string"), "more": (7, "bytes")}}


def test_fields_are_where_the_table_has_them() -> None:
    made = classes("test", TABLES)
    message = made["Outer"](number=150, inner=made["Inner"](text="a"), many=[made["Inner"](), made["Inner"](text="b")])
    assert message.SerializeToString() == bytes.fromhex("1096011a030a0161220022030a0162")
    assert made["Outer"].FromString(message.SerializeToString()) == message


def test_a_map_is_a_repeated_pair() -> None:
    message = classes("test", TABLES)["Outer"](some_words={"k": "v"})
    assert message.SerializeToString() == bytes.fromhex("2a060a016b120176")
    assert dict(message.some_words) == {"k": "v"}


def test_unknown_fields_are_kept() -> None:
    newer, older = classes("test", NEWER)["Inner"], classes("test", TABLES)["Inner"]
    data = newer(text="a", more=b"b").SerializeToString()
    assert older.FromString(data).SerializeToString() == data


def test_a_type_that_is_none() -> None:
    with pytest.raises(AttributeError, match="TYPE_NUMBER"):
        classes("test", {"A": {"b": (1, "number")}})
