"""The store's schema, as the steps that lead to it. A step, once released, is never edited: another is
added."""

from __future__ import annotations

import sqlite3

from nvmuser.errors import SetupError

MIGRATIONS: tuple[str, ...] = (
    # 1: one row for each object; `spec` is the object's own JSON.
    """
    CREATE TABLE object (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        spec TEXT NOT NULL,
        provisioned INTEGER NOT NULL DEFAULT 0,
        deleting INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID;
    """,
    # 2: the log of changes, and who may use the API. The pages of the table that goes are free from then on: room for
    # the first events on a file system that is full.
    """
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        who TEXT NOT NULL,
        source TEXT NOT NULL,
        action TEXT NOT NULL,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        before TEXT,
        after TEXT
    );
    CREATE TABLE credential (
        name TEXT PRIMARY KEY,
        role TEXT NOT NULL,
        kind TEXT NOT NULL,
        digest TEXT NOT NULL UNIQUE,
        created REAL NOT NULL,
        expires REAL NOT NULL
    );
    CREATE TABLE room (bytes BLOB);
    INSERT INTO room VALUES (zeroblob(65536));
    DROP TABLE room;
    """,
)


def check_version(connection: sqlite3.Connection) -> int:
    """The version of a store, of which nothing is changed.

    :raises SetupError: it was written by a newer nvmuser.
    """
    version = _version(connection)
    if version > len(MIGRATIONS):
        raise SetupError(
            f"the store has schema version {version}, this nvmuser knows {len(MIGRATIONS)}; use the newer one"
        )
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, all of it or nothing.

    :raises SetupError: the store was written by a newer nvmuser.
    """
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = check_version(connection)  # again: another process may have migrated while we waited
        for script in MIGRATIONS[version:]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
