"""The log of changes: in the transaction of the change itself, with who made it; and who may use the API."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path

import pytest
from cli_run import Run, ok

from nvmuser.errors import ConflictError, NotFoundError
from nvmuser.model.desired import Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.store import Store, events
from nvmuser.store.credentials import Credential, digest, new_token
from nvmuser.store.events import Actor, acting

SMALL, LARGE = Volume("a", size=512), Volume("a", size=1024)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


def test_every_change_is_an_event(store: Store) -> None:
    with acting(Actor("ci", "10.0.0.1")), store.transaction():
        store.put([Entry(SMALL)])
    with store.transaction():
        store.put([Entry(LARGE)])
        store.mark([SMALL.key])
    with store.transaction():
        store.put([Entry(LARGE, deleting=True)])
    with store.transaction():
        store.remove([SMALL.key])
    found = store.events()
    assert [event.action for event in found] == ["create", "update", "delete", "gone"]
    assert [event.actor for event in found[:2]] == [Actor("ci", "10.0.0.1"), Actor()]
    assert [(event.before, event.after) for event in found[:3]] == [
        (None, SMALL.to_json()), (SMALL.to_json(), LARGE.to_json()), (LARGE.to_json(), None),
    ]  # fmt: skip
    assert store.events(found[1].id) == found[2:]
    assert store.event_bounds() == (found[0].id, found[-1].id)


def test_what_is_not_committed_is_no_event(store: Store) -> None:
    with contextlib.suppress(KeyboardInterrupt), store.transaction():
        store.put([Entry(SMALL)])
        raise KeyboardInterrupt
    assert store.events() == []
    assert store.load().entries == {}


def test_who_may_use_the_api_is_in_it_without_secrets(store: Store) -> None:
    secret, kept = new_token("ci", "operator", 60)
    with acting(Actor("user a", "command line")):
        store.add_credential(kept)
        store.remove_credential("ci")
    made, gone = store.events()
    assert [(one.action, str(one.key), one.actor.who) for one in (made, gone)] == [
        ("create", "token/ci", "user a"), ("gone", "token/ci", "user a"),
    ]  # fmt: skip
    assert made.after == gone.before == kept.recorded()
    assert kept.digest not in str(made.after)
    assert secret not in str(made.after)
    with pytest.raises(NotFoundError):
        store.remove_credential("ci")
    assert len(store.events()) == 2


def test_the_same_again_is_no_event(store: Store) -> None:
    for _ in range(2):
        with store.transaction():
            store.put([Entry(SMALL)])
    assert len(store.events()) == 1


def test_the_latest_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 3)
    for size in range(1, 6):
        with store.transaction():
            store.put([Entry(Volume("a", size=512 * size))])
    assert [event.id for event in store.events()] == [3, 4, 5]


def test_on_a_full_file_system_the_oldest_give_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(1, 101):
        with store.transaction():
            store.put([Entry(Volume("a", size=512 * size))])
    pages = store.path.stat().st_size
    monkeypatch.setattr(events, "_room", lambda path: 0)
    for size in range(101, 201):
        with store.transaction():
            store.put([Entry(Volume("a", size=512 * size))])
    assert store.path.stat().st_size == pages
    assert store.events()[-1].id == 200


def test_a_damaged_log_is_reported(run: Run, tmp_path: Path) -> None:
    ok(run("volume", "create", "a", "--size", "1M"))
    with contextlib.closing(sqlite3.connect(tmp_path / "st/store.sqlite")) as db, db:
        db.execute("UPDATE event SET after = '{'")
    status, out, err = run("events")
    assert (status, out) == (1, "")
    assert "log of changes is damaged" in err


def test_the_command(run: Run, tmp_path: Path) -> None:
    assert json.loads(ok(run("events", "--json"))) == []
    assert not (tmp_path / "st").exists()
    ok(run("volume", "create", "a", "--size", "1M"))
    ok(run("volume", "grow", "a", "2M"))
    created, grown = json.loads(ok(run("events", "--json")))
    assert created["source"] == "command line"
    assert created["who"].startswith("user ")
    assert created["after"]["size"] == 1 << 20
    assert (grown["action"], grown["before"]["size"]) == ("update", 1 << 20)
    assert "update volume a  size: 1M → 2M" in ok(run("events", "-n", "1"))
    assert json.loads(ok(run("events", "--json", "--after", str(created["id"])))) == [grown]


def test_a_rename_is_the_doing_of_who_asked(run: Run) -> None:
    ok(run("volume", "create", "a", "--size", "1M"))
    ok(run("volume", "rename", "a", "b"))
    renamed = json.loads(ok(run("events", "--json")))[1:]
    assert {(event["action"], event["name"]) for event in renamed} == {("gone", "a"), ("create", "b")}
    assert {event["source"] for event in renamed} == {"command line"}


def test_of_a_token_only_a_digest_is_kept(run: Run, tmp_path: Path) -> None:
    token = ok(run("token", "create", "ci", "--role", "operator", "--expires", "1h")).strip()
    for file in (tmp_path / "st").iterdir():
        assert not file.is_file() or token.encode() not in file.read_bytes()
    with Store(tmp_path / "st/store.sqlite") as store:
        (kept,) = store.credentials()
    assert (kept.role, kept.digest, kept.expired) == ("operator", digest(token.encode()), False)
    assert kept.expires == pytest.approx(kept.created + 3600)
    shown = ok(run("token", "list", "--json"))
    assert token not in shown
    assert json.loads(shown)[0]["name"] == "ci"
    ok(run("token", "revoke", "ci"))
    assert json.loads(ok(run("token", "list", "--json"))) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("create", "a b"), "token"),
        (("create", "a", "--role", "king"), "king"),
        (("create", "a", "--expires", "soon"), "such as 90d"),
        (("create", "a", "--certificate", "/dev/null"), "no certificate in PEM"),
        (("revoke", "a"), "no such token"),
    ],
)
def test_tokens_that_cannot_be(run: Run, words: tuple[str, ...], reason: str) -> None:
    status, out, err = run("token", *words)
    assert status in (1, 2)
    assert out == ""
    assert reason in err


def test_a_name_is_used_once(store: Store) -> None:
    _, first = new_token("a", "viewer", 0)
    store.add_credential(first)
    with pytest.raises(ConflictError):
        store.add_credential(new_token("a", "admin", 0)[1])
    assert store.credentials() == [first]
    store.remove_credential("a")
    with pytest.raises(NotFoundError):
        store.remove_credential("a")


def test_what_has_expired() -> None:
    now = time.time()
    assert not Credential("a", "viewer", "token", "", now).expired
    assert not Credential("a", "viewer", "token", "", now, now + 60).expired
    assert Credential("a", "viewer", "token", "", now - 60, now - 1).expired


def test_another_process_is_seen(store: Store) -> None:
    """What has not changed is not parsed again, and what has is."""
    with store.transaction():
        store.put([Entry(SMALL), Entry(Volume("b", size=512))])
    with Store(store.path) as other:
        before = other.load()
        with store.transaction():
            store.put([Entry(LARGE)])
        after = other.load()
    assert after.get(SMALL.key) == LARGE
    assert after.get(Key("volume", "b")) is before.get(Key("volume", "b"))
