"""What is wanted, kept in SQLite. `Store` is the whole interface."""

from nvmuser.store.store import Store

__all__ = ["Store"]
