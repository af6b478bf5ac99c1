"""A damaged store: whatever is in the file, what is raised says so."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.model.desired import Entry
from nvmuser.model.objects import Volume
from nvmuser.store import Store

PAGE = 4096


def volume(name: str) -> Entry:
    return Entry(Volume(name, size=1 << 20, backend="null", volatile=True))


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a store of several pages."""
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    with Store(path) as store, store.transaction():
        store.put([volume(f"v{number}") for number in range(60)])
    return path.read_bytes()


def use(path: Path) -> None:
    """Everything that commands do with a store; SetupError is what they expect of it."""
    with contextlib.suppress(SetupError), Store(path) as store:
        store.load()
        with store.transaction():
            store.put([volume("new")])
        store.load()


def truncated(content: bytes) -> Iterator[bytes]:
    return (content[:size] for size in range(0, len(content), 512))


def with_empty_pages(content: bytes) -> Iterator[bytes]:
    return (content[:at] + bytes(PAGE) + content[at + PAGE :] for at in range(0, len(content), PAGE))


def with_wrong_bytes(content: bytes) -> Iterator[bytes]:
    """Some of them in text, which then is no UTF-8; some in the schema, which SQLite quotes in its message."""
    chance = random.Random(1)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(20):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        yield bytes(damaged)


@pytest.mark.parametrize("damage", [truncated, with_empty_pages, with_wrong_bytes])
def test_a_damaged_file(tmp_path: Path, content: bytes, damage: Callable[[bytes], Iterator[bytes]]) -> None:
    for number, damaged in enumerate(damage(content)):
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(damaged)
        use(path)


@pytest.mark.parametrize("value", ["5", "x'00ff'", "'null'", "'[]'", "''", """'{"kind": null}'""", "x'ff'", "1e999"])
@pytest.mark.parametrize("column", ["spec", "kind", "name", "provisioned", "deleting"])
def test_a_row_of_something_else(tmp_path: Path, content: bytes, column: str, value: str) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(content)
    with sqlite3.connect(path) as damaged:
        damaged.execute(f"UPDATE object SET {column} = {value} WHERE name = 'v3'")
    damaged.close()
    use(path)


def test_a_row_without_a_specification(tmp_path: Path, content: bytes) -> None:
    """As in a store whose table was made without NOT NULL."""
    path = tmp_path / "store.sqlite"
    path.write_bytes(content)
    with sqlite3.connect(path) as damaged:
        damaged.execute("PRAGMA writable_schema = ON")
        damaged.execute("UPDATE sqlite_schema SET sql = replace(sql, 'spec TEXT NOT NULL', 'spec TEXT')")
    damaged.close()
    with sqlite3.connect(path) as damaged:
        damaged.execute("UPDATE object SET spec = NULL")
    damaged.close()
    with Store(path) as store, pytest.raises(SetupError, match="damaged, or of another version"):
        store.load()
