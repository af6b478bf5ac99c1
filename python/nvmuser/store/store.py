"""The SQLite file of what is wanted: transactional, durable, one writer at a time.

Owns the file and its connection. It does not know the rules across objects: `nvmuser.model.desired` has them, and
nothing is committed here that its caller has not checked.

A rollback journal with `synchronous=FULL`: a committed change is on the disk, and a process killed at any point leaves
the last one that was committed. Not a write-ahead log, whose index is a mapped file that every reader needs: on a full
file system the store could not even be read. So reading takes no room; and the journal, once made, keeps what it has
(PERSIST), so that a small change has room too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from nvmuser.errors import ConflictError, NvmuserError, SetupError
from nvmuser.hostfs.permissions import denied
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, object_from_json
from nvmuser.store import credentials, events
from nvmuser.store.credentials import Credential
from nvmuser.store.events import Event
from nvmuser.store.schema import check_version, migrate

_BUSY_S = 10.0
"""How long to wait for another process's transaction; ours take milliseconds."""

_NEW, _MADE, _ASKED = 0, 1, 2
"""In the column `provisioned`."""


class Store:
    """A context manager around one connection, for any thread. Every method may raise SetupError for a store that
    cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.RLock()
        self._cached: tuple[int, Desired] | None = None
        self._committed: Desired | None = None
        self._parsed: dict[str, AnyObject] = {}
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        except PermissionError as error:
            raise denied(path.parent) from error
        except OSError as error:
            raise SetupError(f"{path.parent}: {error.strerror}; use another --state-dir") from error
        with self._explained():
            # Autocommit mode: transactions begin and end where this module does it.
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                check_version(self._db)
                self._set_up()
                migrate(self._db)
            except BaseException:
                self._db.close()
                raise
        with contextlib.suppress(OSError):  # another's that we may use
            os.chmod(path, 0o600)

    def _set_up(self) -> None:
        # An earlier nvmuser used a write-ahead log; while one of its supervisors lives it stays, and works.
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA busy_timeout = 0")
            self._db.execute("PRAGMA journal_mode = PERSIST")
        self._db.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
        self._db.execute("PRAGMA synchronous = FULL")
        # A large transaction would lock readers out before it is committed.
        self._db.execute("PRAGMA cache_spill = OFF")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called again."""
        with self._turn:
            self._db.close()

    def load(self) -> Desired:
        """Everything, by kind and name. What was committed last while another thread is in a transaction."""
        if not self._turn.acquire(blocking=self._committed is None):
            assert self._committed is not None
            return self._committed
        try:
            return self._load()
        finally:
            self._turn.release()

    def _load(self) -> Desired:
        with self._explained():
            # It changes when another connection commits; what this one writes, it remembers itself.
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            if self._cached and self._cached[0] == version:
                return self._cached[1]
            rows = self._db.execute("SELECT spec, provisioned, deleting FROM object ORDER BY kind, name").fetchall()
        # What another process has not changed need not be parsed again.
        parsed = {spec: self._parsed.get(spec) or self._object(spec) for spec, _, _ in rows}
        self._parsed = parsed
        entries = [
            Entry(parsed[spec], provisioned == _MADE, bool(deleting), provisioned == _ASKED)
            for spec, provisioned, deleting in rows
        ]
        desired = Desired({entry.object.key: entry for entry in entries})
        self._cached = (version, desired)
        if not self._db.in_transaction:
            self._committed = desired
        return desired

    def _object(self, spec: str) -> AnyObject:
        try:
            return object_from_json(json.loads(spec))
        except (NvmuserError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SetupError(f"{self.path}: damaged, or of another version: {error!r} in {str(spec)[:80]!r}") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside, or nothing; nobody else writes meanwhile. What is read inside is what is
        changed."""
        with self._turn, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # What is remembered was not recorded. SQLite may have rolled back itself, as where the disk is full.
                self._cached = None
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._committed = self._cached[1] if self._cached else None

    def put(self, entries: Iterable[Entry]) -> None:
        """Insert or replace, and log what that changes."""
        entries = list(entries)
        self._log({entry.object.key: entry for entry in entries})
        self._remember({entry.object.key: entry for entry in entries})
        self._db.executemany(
            "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?)",
            (
                (
                    entry.object.kind,
                    entry.object.name,
                    json.dumps(entry.object.to_json()),
                    _MADE if entry.provisioned else _ASKED if entry.asked else _NEW,
                    entry.deleting,
                )
                for entry in entries
            ),
        )

    def mark(self, keys: Iterable[Key], *, asked: bool = False) -> None:
        """Record that they are made, or only `asked` for, and nothing else: another process may have changed them."""
        keys = list(keys)
        if self._cached:
            known = self._cached[1].entries
            marked = {key: replace(known[key], provisioned=not asked, asked=asked) for key in keys if key in known}
            self._remember(marked)
        value = _ASKED if asked else _MADE
        self._db.executemany(
            "UPDATE object SET provisioned = ? WHERE kind = ? AND name = ?",
            ((value, *key) for key in keys),
        )

    def remove(self, keys: Iterable[Key]) -> None:
        """Forget. Nothing happens to what is not there."""
        keys = list(keys)
        self._log(dict.fromkeys(keys))
        self._remember(dict.fromkeys(keys))
        self._db.executemany("DELETE FROM object WHERE kind = ? AND name = ?", keys)

    def _log(self, changed: Mapping[Key, Entry | None]) -> None:
        before = self._load().entries
        events.record(self._db, self.path, [(key, before.get(key), after) for key, after in changed.items()])

    def events(self, after: int = 0, limit: int = events.KEPT) -> list[Event]:
        """What has changed since the event with the id `after`, in order."""
        with self._turn, self._explained():
            return events.read(self._db, after, limit)

    def event_bounds(self) -> tuple[int, int]:
        """The ids of the oldest event that is kept and of the latest; 0 where there is none."""
        with self._turn, self._explained():
            return events.bounds(self._db)

    def credentials(self) -> list[Credential]:
        """Who may use the API, by name."""
        with self._turn, self._explained():
            return credentials.read(self._db)

    def add_credential(self, one: Credential) -> None:
        """:raises ConflictError: there is one of this name, or of this certificate."""
        with self.transaction():
            credentials.put(self._db, one)
            events.note(self._db, self.path, Key(credentials.EVENTS, one.name), None, one.recorded())

    def remove_credential(self, name: str) -> None:
        """:raises NotFoundError: there is none of this name."""
        with self.transaction():
            gone = credentials.remove(self._db, name)
            events.note(self._db, self.path, Key(credentials.EVENTS, name), gone.recorded(), None)

    def _remember(self, changed: Mapping[Key, Entry | None]) -> None:
        """What this connection writes need not be read again; what another has written meanwhile is."""
        if self._cached:
            version, before = self._cached
            after = {**before.entries, **changed}
            self._cached = (version, Desired({key: entry for key in sorted(after) if (entry := after[key])}))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ConflictError(f"{self.path}: another process has been changing it for {_BUSY_S:g} s") from error
            if "is full" in str(error):
                raise SetupError(f"{self.path}: no room to record it: {error}") from error
            if self.path.exists() and not os.access(self.path, os.R_OK | os.W_OK):
                raise denied(self.path) from error
            raise SetupError(f"{self.path}: {self._reason(error)}") from error
        except sqlite3.DatabaseError as error:
            raise SetupError(f"{self.path}: not usable as a store: {error}") from error
        except UnicodeDecodeError as error:
            # A damaged schema: Python's sqlite3 cannot decode the message in which SQLite quotes it.
            raise SetupError(f"{self.path}: damaged: {error.object!a}") from error

    def _reason(self, error: sqlite3.OperationalError) -> str:
        """SQLite's own words, except for a full file system, which it reports as 'disk I/O error'."""
        # Python's own ('Could not decode to UTF-8 column', of damaged text) have no code.
        is_io = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
        if is_io and os.statvfs(self.path.parent).f_bavail == 0:
            return "its file system is full: make room, or move the state directory"
        return str(error)
