"""Who this installation is to remotes: a host NQN and a host identifier, made once and kept in the state directory.

Owns both files, which have the form of Linux's own in /etc/nvme: one line each.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import SetupError, UsageError, reason_of
from nvmuser.hostfs import permissions
from nvmuser.paths import StateDir

_NQN = re.compile(r"nqn\.\d{4}-\d{2}\.[\x21-\x7e]+")
_LONGEST = 223
"""Bytes of an NQN (NVM Express Base Specification 2.0, 4.5)."""


@dataclass(frozen=True)
class HostIdentity:
    """A host as NVMe over Fabrics knows it."""

    nqn: str
    id: str
    """A UUID."""

    def __post_init__(self) -> None:
        if not _NQN.fullmatch(self.nqn) or len(self.nqn) > _LONGEST:
            raise UsageError(f"host NQN {self.nqn!r}: expected nqn.yyyy-mm.domain:name, at most {_LONGEST} bytes")
        try:
            uuid.UUID(self.id)
        except ValueError:
            raise UsageError(f"host id {self.id!r}: expected a UUID") from None


def load(state: StateDir) -> HostIdentity:
    """The identity of this installation; the first time, it is made.

    :raises AccessError: this user may not read or keep it.
    :raises SetupError: it cannot be read or kept.
    """
    try:
        with permissions.explained():
            if not state.host_id.exists():
                _write(state.host_id, str(uuid.uuid4()))
            host_id = state.host_id.read_text(encoding="ascii").strip()
            if not state.host_nqn.exists():
                _write(state.host_nqn, f"nqn.2014-08.org.nvmexpress:uuid:{host_id}")
            return HostIdentity(state.host_nqn.read_text(encoding="ascii").strip(), host_id)
    except (OSError, UnicodeDecodeError, UsageError) as error:
        reason = reason_of(error)
        raise SetupError(f"{state.root}: who this host is to remotes cannot be read or kept: {reason}") from error


def keep(state: StateDir, nqn: str = "", host_id: str = "") -> HostIdentity:
    """Take another name or identifier, for what is attached from now on. What is empty stays.

    :raises UsageError: they are malformed. :raises SetupError: they cannot be kept.
    """
    present = load(state)
    wanted = HostIdentity(nqn or present.nqn, str(uuid.UUID(host_id)) if _is_uuid(host_id) else host_id or present.id)
    try:
        with permissions.explained():
            _write(state.host_id, wanted.id)
            _write(state.host_nqn, wanted.nqn)
    except OSError as error:
        raise SetupError(f"{state.root}: {error.strerror}") from error
    return wanted


def _is_uuid(text: str) -> bool:
    try:
        return bool(text and uuid.UUID(text))
    except ValueError:
        return False


def _write(path: Path, line: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(line + "\n", encoding="ascii")
    new.replace(path)
