"""Who may use the API: what is kept of tokens and client certificates, which is a digest, never the secret.

Owns the table `credential` and how a token is made. Who presents one is the API's to find out.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import ssl
import time
from dataclasses import dataclass
from typing import Any

from nvmuser.errors import ConflictError, NotFoundError, UsageError
from nvmuser.model.names import check_name

ROLES = ("viewer", "operator", "admin")
"""Each may do what those before it may. viewer: look. operator: make, change and take away volumes, controllers,
pools and remotes. admin: targets, which are processes, too."""
EVENTS = "token"
"""Their kind in the log of changes."""
PREFIX = "nvmuser_"
"""Of a token, so that programs that look for secrets in files find it."""
_BYTES = 32


@dataclass(frozen=True)
class Credential:
    """One token or certificate. Times in seconds since the epoch; `expires` 0: never."""

    name: str
    role: str
    kind: str
    """token or certificate."""
    digest: str
    """SHA-256, in hexadecimal: of the token's text, or of the certificate (DER)."""
    created: float
    expires: float = 0.0

    def __post_init__(self) -> None:
        check_name("token", self.name)
        if self.role not in ROLES:
            raise UsageError(f"token {self.name}: role {self.role!r}; choose from {', '.join(ROLES)}")

    @property
    def expired(self) -> bool:
        return 0 < self.expires <= time.time()

    def to_json(self) -> dict[str, Any]:
        """Without the digest."""
        return self.recorded() | {"expired": self.expired}

    def recorded(self) -> dict[str, Any]:
        """For the log of changes; without the digest."""
        return {
            "name": self.name,
            "role": self.role,
            "kind": self.kind,
            "created": self.created,
            "expires": self.expires or None,
        }


def digest(secret: bytes) -> str:
    """What is kept of a secret. A token is random, and long enough that nothing slower is needed."""
    return hashlib.sha256(secret).hexdigest()


def new_token(name: str, role: str, lifetime: float) -> tuple[str, Credential]:
    """A token, which is shown once, and what is kept of it.

    :param lifetime: seconds; 0: for ever.
    :raises UsageError: the name or the role is none.
    """
    token, now = PREFIX + secrets.token_urlsafe(_BYTES), time.time()
    return token, Credential(name, role, "token", digest(token.encode()), now, now + lifetime if lifetime else 0.0)


def of_certificate(name: str, role: str, certificate: bytes, lifetime: float) -> Credential:
    """What is kept of a client certificate.

    :param certificate: DER.
    :param lifetime: seconds; 0: as long as the certificate itself.
    :raises UsageError: the name or the role is none.
    """
    now = time.time()
    return Credential(name, role, "certificate", digest(certificate), now, now + lifetime if lifetime else 0.0)


def der(text: str, what: str) -> bytes:
    """A certificate in PEM as DER, as its digest is made of.

    :param what: where it is from, for the error.
    :raises UsageError: it is none.
    """
    try:
        return ssl.PEM_cert_to_DER_cert(text[text.index(ssl.PEM_HEADER) :])
    except ValueError as error:  # of the header, of base64
        raise UsageError(f"{what}: no certificate in PEM") from error


def put(db: sqlite3.Connection, one: Credential) -> None:
    """:raises ConflictError: there is one of this name, or this certificate has another name."""
    try:
        db.execute(
            "INSERT INTO credential (name, role, kind, digest, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
            (one.name, one.role, one.kind, one.digest, one.created, one.expires),
        )
    except sqlite3.IntegrityError:
        raise ConflictError(f"token {one.name}: there is one of this name, or for this certificate, already") from None


def read(db: sqlite3.Connection) -> list[Credential]:
    """All, by name."""
    fields = "name, role, kind, digest, created, expires"
    return [Credential(*row) for row in db.execute(f"SELECT {fields} FROM credential ORDER BY name")]


def remove(db: sqlite3.Connection, name: str) -> Credential:
    """Returns what there was.

    :raises NotFoundError: there is none of this name.
    """
    found = next((one for one in read(db) if one.name == name), None)
    if found is None:
        raise NotFoundError(f"token {name}: no such token")
    db.execute("DELETE FROM credential WHERE name = ?", (name,))
    return found
