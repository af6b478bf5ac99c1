"""Keys for reservations: by which a remote knows each process of this installation, and we know our own again.

Owns the secret in the state directory that they come from. It is written once, when the first remote is reached, so
that no later restart has to write anything: a key that an earlier process has used is recognised, not looked up.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import SetupError, reason_of
from nvmuser.hostfs import permissions
from nvmuser.paths import StateDir

_SECRET_BYTES = 16


@dataclass(frozen=True)
class ReservationKeys:
    """Of one installation. Half of a key is chosen, the other half follows from it by the secret: of keys of others,
    one in 2^32 looks like one of ours."""

    secret: bytes

    def new(self) -> int:
        """Of 64 bits, for one more process; never 0."""
        return self._whole(secrets.token_bytes(4))

    def is_ours(self, key: int) -> bool:
        """Has a process of this installation made it?"""
        return self._whole(struct.pack(">Q", key)[4:]) == key

    def _whole(self, chosen: bytes) -> int:
        digest = hashlib.blake2b(chosen, digest_size=4, key=self.secret, person=b"nvmuser:resv").digest()
        return int.from_bytes(digest + chosen) or 1

    def session(self, host_id: str) -> str:
        """An identifier for one process of the host `host_id`: its first half, and a key."""
        return str(uuid.UUID(bytes=uuid.UUID(host_id).bytes[:8] + struct.pack(">Q", self.new())))


def key_in(session: str) -> int:
    """The key in a `session`'s identifier."""
    return int.from_bytes(uuid.UUID(session).bytes[8:])


def host_in(session: str) -> str:
    """What is common to the `session`s of one installation: 16 hexadecimal digits."""
    return uuid.UUID(session).hex[:16]


def load(state: StateDir) -> ReservationKeys:
    """Those of this installation; the first time, its secret is made.

    :raises AccessError: this user may not read or keep it.
    :raises SetupError: it cannot be read or kept.
    """
    path = state.reservation_secret
    try:
        with permissions.explained():
            if not path.exists():
                _make(path)
            secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise SetupError(f"{path}: the secret of this installation's reservations: {reason_of(error)}") from error
    if len(secret) != _SECRET_BYTES:
        raise SetupError(f"{path}: the secret of this installation's reservations is damaged")
    return ReservationKeys(secret)


def _make(path: Path) -> None:
    """Whole or not at all, and on the disk: a key that came from it may be used at once."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_SECRET_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
