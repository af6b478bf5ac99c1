"""Stores in every state that a disk can leave them in: of an older or a newer nvmuser, damaged, without room."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from pathlib import Path

import pytest

from nvmuser.errors import ConflictError, SetupError
from nvmuser.model.desired import Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Remote, TargetSettings, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.store import Store, schema

OLD = Path(__file__).parent / "data/store-43f6887.sql"
A, B = Volume("a", size=1 << 20), Volume("b", size=1 << 20)


def old_store(path: Path) -> Path:
    """What an earlier nvmuser left, in its journal mode."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(OLD.read_text())
    connection.close()
    return path


def digest(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_a_store_of_an_older_nvmuser_opens_with_all_that_is_in_it(tmp_path: Path) -> None:
    with Store(old_store(tmp_path / "s")) as store:
        entries = store.load().entries
        assert sorted(entries) == [
            Key("controller", "c"),
            Key("pool", "p"),
            Key("remote", "r"),
            Key("target", "spdk"),
            Key("volume", "a"),
            Key("volume", "f"),
        ]
        assert entries[Key("remote", "r")].deleting
        remote = entries[Key("remote", "r")].object
        assert isinstance(remote, Remote)
        assert remote.paths == (RemotePath("127.0.0.1", 1), RemotePath("::1")), "`name` there, `address` here"
        assert (entries[Key("volume", "a")].provisioned, entries[Key("volume", "f")].provisioned) == (True, False)
        assert store.load().target() == TargetSettings(profile="eco", cores=(1,))
        with store.transaction():
            store.put([Entry(A)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s-journal"]


def test_a_store_that_an_older_nvmuser_has_open_is_used_as_it_is(tmp_path: Path) -> None:
    other = sqlite3.connect(old_store(tmp_path / "s"), isolation_level=None)
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM object").fetchone() == (6,)
    with Store(tmp_path / "s") as store, store.transaction():
        store.put([Entry(B)])
    other.execute("COMMIT")
    assert other.execute("SELECT count(*) FROM object").fetchone() == (7,)
    other.close()


def test_one_of_a_newer_nvmuser_is_not_touched(tmp_path: Path) -> None:
    connection = sqlite3.connect(old_store(tmp_path / "s"))
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    before = digest(tmp_path)
    with pytest.raises(SetupError, match="use the newer one"):
        Store(tmp_path / "s")
    assert digest(tmp_path) == before


@pytest.mark.parametrize(
    "spec", ["", "{", "[]", "null", "{}", '{"kind": "volume"}', '{"kind": "volume", "name": "a", "color": "red"}']
)
def test_a_damaged_entry_is_one_line_and_changes_nothing(tmp_path: Path, spec: str) -> None:
    with Store(tmp_path / "s") as store, store.transaction():
        store.put([Entry(A)])
        store._db.execute("UPDATE object SET spec = ?", (spec,))
    before = digest(tmp_path)
    with Store(tmp_path / "s") as store, pytest.raises(SetupError, match="damaged, or of another version") as failure:
        store.load()
    assert "\n" not in str(failure.value)
    assert digest(tmp_path) == before


def test_half_a_store(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store, store.transaction():
        store.put([Entry(Volume(f"v{number}", size=1 << 20)) for number in range(500)])
    with (tmp_path / "s").open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)
    with pytest.raises(SetupError, match="not usable as a store"), Store(tmp_path / "s") as store:
        store.load()


def test_without_room_it_is_read_and_what_is_refused_leaves_it_whole(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as store:
        with store.transaction():
            store.put([Entry(A)])
        # As on a full disk: SQLite may take no more pages.
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(SetupError, match=r"no room to record it: database or disk is full"), store.transaction():
            store.put([Entry(Volume(f"v{number}", size=1 << 20)) for number in range(500)])
        assert list(store.load().entries) == [Key("volume", "a")]
        with store.transaction():
            store.mark([Key("volume", "a")])
    with Store(tmp_path / "s") as store:
        assert store.load().entries == {Key("volume", "a"): Entry(A, provisioned=True)}


def test_what_is_marked_stays_as_another_has_left_it(tmp_path: Path) -> None:
    with Store(tmp_path / "s") as one, Store(tmp_path / "s") as two:
        with one.transaction():
            one.put([Entry(A)])
        with two.transaction():
            two.put([Entry(A, deleting=True)])
        with one.transaction():
            one.mark([Key("volume", "a")])
        assert one.load() == two.load()
        assert two.load().entries == {Key("volume", "a"): Entry(A, provisioned=True, deleting=True)}


def test_a_thread_in_a_transaction_keeps_no_other_waiting(tmp_path: Path) -> None:
    """It gets what was committed last."""
    inside, go_on = threading.Event(), threading.Event()
    with Store(tmp_path / "s") as store:
        store.load()

        def write() -> None:
            with store.transaction():
                store.put([Entry(A)])
                inside.set()
                assert go_on.wait(60)

        writer = threading.Thread(target=write)
        writer.start()
        assert inside.wait(60)
        assert store.load().entries == {}
        go_on.set()
        writer.join()
        assert list(store.load().entries) == [Key("volume", "a")]
        with contextlib.suppress(ConflictError), store.transaction():
            store.put([Entry(B)])
            raise ConflictError("no")
        assert list(store.load().entries) == [Key("volume", "a")]
