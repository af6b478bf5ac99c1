"""Which fleet a host belongs to, and how it reaches etcd: one small file of the state directory."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nvmuser.errors import NotFoundError, SetupError, UsageError
from nvmuser.hostfs import permissions
from nvmuser.model.names import check_name
from nvmuser.paths import StateDir


@dataclass(frozen=True)
class FleetSettings:
    """:param host: this host's name in the fleet.
    :param endpoints: addresses of etcd, such as https://etcd1:2379.
    :param ca, cert, key: files in PEM; empty: no TLS.
    """

    fleet: str
    host: str
    endpoints: tuple[str, ...]
    ca: str = ""
    cert: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        check_name("fleet", self.fleet)
        if self.host:
            check_name("host", self.host)
        files = (self.ca, self.cert, self.key)
        if any(files) and not all(files):
            raise UsageError("TLS takes --ca, --cert and --key, all three")

    @classmethod
    def load(cls, state: StateDir) -> Self | None:
        """None where this host belongs to no fleet.

        :raises AccessError: this user may not read it.
        :raises SetupError: the file is damaged, or of another version.
        """
        try:
            content: dict[str, Any] = json.loads(state.fleet.read_text())
            return cls(**content | {"endpoints": tuple(content["endpoints"])})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise permissions.denied(state.fleet) from error
        except OSError as error:
            raise SetupError(f"{state.fleet}: {error.strerror}") from error
        except (ValueError, TypeError, KeyError, UsageError) as error:
            raise SetupError(f"{state.fleet}: damaged, or of another version: {error}") from error

    @classmethod
    def required(cls, state: StateDir) -> Self:
        """:raises NotFoundError: this host belongs to no fleet."""
        if (found := cls.load(state)) is None:
            raise NotFoundError(f"{state.root}: belongs to no fleet; `nvmuser fleet join` makes it part of one")
        return found

    def save(self, state: StateDir) -> None:
        """Keep it, all of it or nothing.

        :raises AccessError: this user may not write it. :raises SetupError: there is no room.
        """
        write_whole(state.fleet, dataclasses.asdict(self))


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Write a small JSON file, all of it or nothing.

    :raises AccessError: this user may not. :raises SetupError: there is no room.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with permissions.explained():
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w") as file:
                file.write(json.dumps(content))  # at once: `dump` encodes piece by piece, in Python
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error
