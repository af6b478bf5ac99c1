"""The SQLite file of what is wanted: transactional, durable, one writer at a time.

Owns the file and its connection. It does not know what objects mean: `nvmuser.model.desired` has the rules, and
nothing is committed here that its caller has not checked.

WAL with `synchronous=FULL`: a committed change is on the disk, and a process killed at any point leaves the
last one that was committed. Readers see one state, while another process writes.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from nvmuser.errors import ConflictError, SetupError
from nvmuser.hostfs.permissions import denied
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.objects import object_from_json
from nvmuser.store.schema import migrate

_BUSY_S = 10.0
"""How long to wait for another process's transaction; ours take milliseconds."""

_NEW, _MADE, _ASKED = 0, 1, 2
"""In the column `provisioned`."""


class Store:
    """A context manager around one connection. Every method may raise SetupError for a store that cannot be
    used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cached: tuple[int, Desired] | None = None
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        except PermissionError as error:
            raise denied(path.parent) from error
        except OSError as error:
            raise SetupError(f"{path.parent}: {error.strerror}; use another --state-dir") from error
        with self._explained():
            # Autocommit mode: transactions begin and end where this module says so.
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                migrate(self._db)
            except BaseException:
                self._db.close()
                raise
        os.chmod(path, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called again."""
        self._db.close()

    def load(self) -> Desired:
        """Everything, by kind and name."""
        with self._explained():
            # It changes when another connection commits; what this one writes, it remembers itself.
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            if self._cached and self._cached[0] == version:
                return self._cached[1]
            rows = self._db.execute("SELECT spec, provisioned, deleting FROM object ORDER BY kind, name").fetchall()
        entries = (
            Entry(object_from_json(json.loads(spec)), provisioned == _MADE, bool(deleting), provisioned == _ASKED)
            for spec, provisioned, deleting in rows
        )
        desired = Desired({entry.object.key: entry for entry in entries})
        self._cached = (version, desired)
        return desired

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside, or nothing; nobody else writes meanwhile. What is read inside is what is
        changed."""
        with self._explained():
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

    def put(self, entries: Iterable[Entry]) -> None:
        """Insert or replace."""
        entries = list(entries)
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

    def remove(self, keys: Iterable[str]) -> None:
        """Forget. Nothing happens to what is not there."""
        keys = list(keys)
        self._remember(dict.fromkeys(keys))
        self._db.executemany("DELETE FROM object WHERE kind = ? AND name = ?", (key.split("/", 1) for key in keys))

    def _remember(self, changed: Mapping[str, Entry | None]) -> None:
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
            if self.path.exists() and not os.access(self.path, os.R_OK | os.W_OK):
                raise denied(self.path) from error
            raise SetupError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise SetupError(f"{self.path}: not usable as a store: {error}") from error
