"""The log of changes: what was wanted before and after each, when, by whom and from where.

A row is written in the transaction of the change itself, so that neither is there without the other. Owns the table
`event` and who is acting; what a change is, is the store's.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nvmuser.errors import SetupError
from nvmuser.model.desired import Entry
from nvmuser.model.keys import Key

KEPT = 10_000
"""How many are kept: the oldest go."""
_LITTLE_ROOM = 1 << 20
"""Bytes free in the file system below which older events make room for new ones, so that a change has room too."""
_GIVE_WAY = 32


@dataclass(frozen=True)
class Actor:
    """Who changes something.

    :param who: a user of this machine, the name of a token or certificate, or nvmuser itself.
    :param source: from where: `command line`, `unix`, an address.
    """

    who: str = "nvmuser"
    source: str = ""

    def to_json(self) -> dict[str, str]:
        return {"who": self.who, "source": self.source}

    @classmethod
    def from_json(cls, data: dict[str, str]) -> Self:
        return cls(str(data.get("who", "")), str(data.get("source", "")))


NOBODY = Actor()
"""nvmuser itself, where nobody has asked: a mirror that has lost a member, a tombstone that is not needed any more."""
_acting: ContextVar[Actor] = ContextVar("acting", default=NOBODY)


@contextlib.contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """What is recorded inside, in threads too, is this actor's doing."""
    token = _acting.set(actor)
    try:
        yield
    finally:
        _acting.reset(token)


def current_actor() -> Actor:
    """Whose doing what is recorded here is."""
    return _acting.get()


@dataclass(frozen=True)
class Event:
    """One object's change.

    :param action: create, update, delete (still to be taken away from SPDK), restore (deleted no more), gone.
    :param time: seconds since the epoch.
    :param before: the object as JSON; None: there was none, or it was being deleted.
    """

    id: int
    time: float
    actor: Actor
    action: str
    key: Key
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "time": round(self.time, 3),
            **self.actor.to_json(),
            "action": self.action,
            "kind": self.key.kind,
            "name": self.key.name,
            "before": self.before,
            "after": self.after,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` has made."""
        key, actor = Key(data["kind"], data["name"]), Actor(data["who"], data["source"])
        return cls(data["id"], data["time"], actor, data["action"], key, data["before"], data["after"])


def _action(before: Entry | None, after: Entry | None) -> str:
    """Empty where what is wanted has not changed."""
    if after is None:
        return "gone" if before else ""
    if before is None:
        return "create"
    if before.deleting != after.deleting:
        return "delete" if after.deleting else "restore"
    return "update" if before.object != after.object else ""


def record(db: sqlite3.Connection, path: Path, changed: Iterable[tuple[Key, Entry | None, Entry | None]]) -> None:
    """Write what changed, within the transaction that changes it.

    :param path: of the store.
    :param changed: each with how it was and is; None: not there.
    """
    actor, now = current_actor(), time.time()
    rows = [
        (now, actor.who, actor.source, action, *key, _text(before), _text(after))
        for key, before, after in changed
        if (action := _action(before, after))
    ]
    if rows:
        _write(db, path, rows)


def note(
    db: sqlite3.Connection, path: Path, key: Key, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> None:
    """Write what changed of something that is no object of `Desired`, as `record` does; None: not there."""
    actor, action = current_actor(), "create" if before is None else "gone" if after is None else "update"
    texts = (json.dumps(one) if one is not None else None for one in (before, after))
    _write(db, path, [(time.time(), actor.who, actor.source, action, *key, *texts)])


def _write(db: sqlite3.Connection, path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    if _room(path) < _LITTLE_ROOM:
        oldest = "SELECT id FROM event ORDER BY id LIMIT ?"
        db.execute(f"DELETE FROM event WHERE id IN ({oldest})", (max(_GIVE_WAY, 2 * len(rows)),))
    db.executemany(
        "INSERT INTO event (time, who, source, action, kind, name, before, after) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
    )
    db.execute("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?", (KEPT,))


def _text(entry: Entry | None) -> str | None:
    return json.dumps(entry.object.to_json()) if entry and not entry.deleting else None


def _room(path: Path) -> int:
    found = os.statvfs(path.parent)
    return found.f_bavail * found.f_frsize


def read(db: sqlite3.Connection, after: int, limit: int) -> list[Event]:
    """Those with greater ids than `after`, in order."""
    fields = "id, time, who, source, action, kind, name, before, after"
    rows = db.execute(f"SELECT {fields} FROM event WHERE id > ? ORDER BY id LIMIT ?", (after, limit)).fetchall()
    return [
        Event(id_, when, Actor(who, source), action, Key(kind, name), _parsed(before), _parsed(now))
        for id_, when, who, source, action, kind, name, before, now in rows
    ]


def _parsed(text: str | None) -> dict[str, Any] | None:
    """:raises SetupError: it is not what `record` has written."""
    try:
        found = json.loads(text) if text else None
    except (ValueError, TypeError) as error:
        raise SetupError(f"the log of changes is damaged: {error}") from error
    return found if isinstance(found, dict) else None


def bounds(db: sqlite3.Connection) -> tuple[int, int]:
    """The ids of the oldest that is kept and of the latest; 0 where there is none."""
    first, last = db.execute("SELECT min(id), max(id) FROM event").fetchone()
    return first or 0, last or 0
