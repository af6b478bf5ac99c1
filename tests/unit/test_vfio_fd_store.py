"""What outlives the endpoint: the record and the stored descriptors."""

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vfio_fds import descriptors_open, eventfd

from nvmf_vfio.keeper.fd_store import Encoded, FdStore, Record, RecordFull
from nvmf_vfio.protocol.descriptors import Descriptor

MIB = 1 << 20


def reopened(descriptor: Descriptor, first: int = 0) -> object:
    return Record(descriptor, first).document


@given(st.lists(st.lists(st.integers()), min_size=1, max_size=5))
def test_a_record_holds_the_last_document(documents: list[list[int]]) -> None:
    with Record.create("test") as descriptor:
        record = Record(descriptor)
        for document in documents:
            record.write(document)
            assert reopened(descriptor) == document


def test_a_new_record_is_empty() -> None:
    with Record.create("test") as descriptor:
        assert reopened(descriptor) is None


@given(st.integers(0, 80), st.integers(0, 3))
def test_a_write_cut_short(length: int, earlier: int) -> None:
    """However much of the newest document is there: it counts when it is whole, else the one before; and the next
    write repairs it."""
    with Record.create("test") as descriptor:
        record = Record(descriptor)
        for number in range(earlier):
            record.write(["earlier", number, "y" * 50])
        record.write(["old"])
        slots = [os.pread(descriptor.fileno(), 100, slot * MIB).ljust(100, b"\0") for slot in (0, 1)]
        record.write(["new", "x" * 40])
        for slot, before in enumerate(slots):
            after = os.pread(descriptor.fileno(), 100, slot * MIB).ljust(100, b"\0")
            if after != before:
                torn = after[:length] + before[length:]
                os.pwrite(descriptor.fileno(), torn, slot * MIB)
                is_whole = torn[:75] == after[:75]
        assert reopened(descriptor) == (["new", "x" * 40] if is_whole else ["old"])
        Record(descriptor).write(["newer"])
        assert reopened(descriptor) == ["newer"]


@given(st.integers(0, 60), st.binary(min_size=1, max_size=60))
def test_garbage_over_the_newest_document(start: int, garbage: bytes) -> None:
    with Record.create("test") as descriptor:
        record = Record(descriptor)
        record.write(["old"])
        record.write(["new", "x" * 40])
        os.pwrite(descriptor.fileno(), garbage, start)
        assert reopened(descriptor) in (["old"], ["new", "x" * 40])


def test_two_documents_share_a_memfd() -> None:
    with Record.create("test") as descriptor:
        first, second = Record(descriptor), Record(descriptor, 2)
        for number in range(5):
            first.write(["first", number])
            second.write(["second", number, "x" * 1000])
        assert reopened(descriptor) == ["first", 4]
        assert reopened(descriptor, 2) == ["second", 4, "x" * 1000]


def test_a_document_that_is_too_large_harms_nothing() -> None:
    with Record.create("test") as descriptor:
        first, second = Record(descriptor), Record(descriptor, 2)
        first.write("small")
        second.write("neighbour")
        with pytest.raises(RecordFull):
            first.write("x" * MIB)
        assert reopened(descriptor) == "small"
        assert reopened(descriptor, 2) == "neighbour"


class Supervisor:
    """Notes what is pushed and popped."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.store = FdStore("c/1", lambda name, _: self.calls.append(("push", name)), self.pop)

    def pop(self, name: str) -> None:
        self.calls.append(("pop", name))


def test_only_what_no_record_names_is_popped() -> None:
    fds = Supervisor()
    kept = fds.store.push(eventfd())
    kept.release()
    assert fds.calls == [("push", "c/1/0")]
    fds.store.commit()
    fds.store.commit()
    assert fds.calls == [("push", "c/1/0"), ("pop", "c/1/0")]


def test_names_are_not_used_again() -> None:
    fds = Supervisor()
    fds.store.adopt("c/1/7", eventfd())
    assert fds.store.push(eventfd()).name == "c/1/8"
    fds.store.close()


def test_closing_releases_everything_once() -> None:
    before = descriptors_open()
    fds = Supervisor()
    kept = [fds.store.push(eventfd()) for _ in range(3)]
    kept[0].release()
    fds.store.close()
    fds.store.close()
    assert descriptors_open() == before
    assert [what for what, _ in fds.calls].count("pop") == 3


def test_a_descriptor_has_its_owner_when_it_cannot_be_pushed() -> None:
    before = descriptors_open()

    def fail(_name: str, _descriptor: Descriptor) -> None:
        raise OSError

    store = FdStore("c/1", fail, lambda _name: None)
    with pytest.raises(OSError):  # noqa: PT011 (any will do)
        store.push(eventfd())
    store.close()
    assert descriptors_open() == before


def test_what_no_record_names_is_released() -> None:
    fds = Supervisor()
    for name in ("c/1/conn", "c/1/record", "c/1/0", "c/1/1"):
        fds.store.adopt(name, eventfd())
    fds.store.remove_others({"c/1/1"})
    fds.store.commit()
    assert fds.calls == [("pop", "c/1/0")]
    fds.store.push_all()
    assert [name for what, name in fds.calls if what == "push"] == ["c/1/conn", "c/1/record", "c/1/1"]
    fds.store.close()


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"a": 1},
        {"a": Encoded("[1,2]")},
        {"b": Encoded('{"x":null}'), "a": [True, "é"], "c": Encoded('"t"')},
        [],
        "p",
    ],
)
def test_what_is_encoded_already_is_part_of_the_document(document: Any) -> None:
    with Record.create("r") as held:
        Record(held).write(document)
        wanted = document
        if isinstance(document, dict):
            wanted = {k: json.loads(v) if isinstance(v, Encoded) else v for k, v in document.items()}
        assert Record(held).document == wanted
