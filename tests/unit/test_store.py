"""The store: durable, one schema version after the other, whole after a SIGKILL at any point."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmuser.errors import ConflictError, SetupError
from nvmuser.model.desired import Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Limits, Namespace, Pool, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.store import Store, schema

OBJECTS: tuple[AnyObject, ...] = (
    Volume("a", "raid1", members=("b", "c"), limits=Limits(iops=1000), uuid="u"),
    Pool("p", base="a"),
    Remote("r", nqn="nqn.2026-11.org.x:y", paths=(RemotePath("127.0.0.1", 1), RemotePath("::1"))),
    Controller("c", (Namespace("a", 3),), serial="S", cntlid=7),
)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    entries = [Entry(one, provisioned=n % 2 == 0, deleting=n > 2) for n, one in enumerate(OBJECTS)]
    with Store(tmp_path / "s") as store, store.transaction():
        store.put(entries)
    with Store(tmp_path / "s") as store:
        assert sorted(store.load().entries.values(), key=str) == sorted(entries, key=str)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_a_transaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    def entries() -> Iterator[Entry]:
        yield Entry(OBJECTS[0])
        raise TypeError("in the middle")

    with Store(tmp_path / "s") as store:
        with pytest.raises(TypeError, match="in the middle"), store.transaction():
            store.put(entries())
        assert store.load().entries == {}


def test_durable_settings(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("persist",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_two_writers_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvmuser.store.store._BUSY_S", 0.05)
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two, one.transaction():
        one.put([Entry(OBJECTS[0])])
        assert two.load().entries == {}
        with pytest.raises(ConflictError, match="another process"), two.transaction():
            pass


def test_migration_from_nothing_and_refusal_of_the_future(tmp_path: Path) -> None:
    with Store(tmp_path / "s"):
        pass
    connection = sqlite3.connect(tmp_path / "s")
    assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SetupError, match="schema version 99"):
        Store(tmp_path / "s")


def test_a_later_migration_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "s") as store, store.transaction():
        store.put([Entry(OBJECTS[0])])
    step = "CREATE TABLE extra (x); INSERT INTO extra VALUES (1)"
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, step))
    with Store(tmp_path / "s") as store:
        assert list(store.load().entries) == [Key("volume", "a")]
        assert store._db.execute("SELECT x FROM extra").fetchone() == (1,)


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "s") as store, store.transaction():
        store.put([Entry(OBJECTS[0])])
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "DROP TABLE object; NONSENSE"))
        with pytest.raises(SetupError, match="NONSENSE"):
            Store(tmp_path / "s")
    with Store(tmp_path / "s") as store:
        assert list(store.load().entries) == [Key("volume", "a")]


def test_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(b"something else entirely" * 100)
    with pytest.raises(SetupError, match="not usable as a store"):
        Store(tmp_path / "s")


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="use another --state-dir"):
        Store(tmp_path / "file" / "s")


_WRITER = """
import sys
from collections.abc import Iterator
from pathlib import Path
from nvmuser.model.desired import Entry
from nvmuser.model.objects import Volume
from nvmuser.store import Store
with Store(Path(sys.argv[1])) as store:
    for round in range(100000):
        size = (round + 1) * 512
        with store.transaction():
            store.put([Entry(Volume(f"v{n}", "null", size=size, volatile=True)) for n in range(20)])
        print(round, flush=True)
"""


def test_killed_at_any_point(tmp_path: Path) -> None:
    """Each transaction writes 20 objects of one size: after a kill all have the size of one that was
    committed."""
    for rounds in (0, 1, 5, 23):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout
        with writer.stdout as output:
            said = [int(output.readline()) for _ in range(rounds + 1)][-1]
            os.kill(writer.pid, signal.SIGKILL)
            rest = output.read().split()
        writer.wait()
        committed = int(rest[-1]) if rest else said
        with Store(tmp_path / "s") as store:
            sizes = {one.size // 512 - 1 for one in store.load().volumes()}
        assert len(sizes) == 1
        assert sizes.pop() in (committed, committed + 1)
