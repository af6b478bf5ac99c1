"""How a supervisor runs, kept for the next one: what `target start` was asked for holds until something else is.

Owns one small file of the state directory. Profile and cores are not in it: they can be declared, and are in the store.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from typing import Any, Self

from nvmuser.errors import SetupError
from nvmuser.hostfs import permissions
from nvmuser.paths import StateDir
from nvmuser.supervisor.logs import Limits


@dataclass(frozen=True)
class Settings:
    """What holds from one supervisor to the next.

    :param hugepages: None decides by what the machine has.
    :param log_size: bytes after which a log is put aside; `log_files` is how many of these are kept.
    """

    standby: bool = False
    hugepages: bool | None = None
    log_size: int = Limits.size
    log_files: int = Limits.files

    @property
    def limits(self) -> Limits:
        return Limits(self.log_size, self.log_files)

    @classmethod
    def load(cls, state: StateDir) -> Self:
        """Read what holds; the defaults where nothing is kept.

        :raises AccessError: this user may not read it.
        :raises SetupError: the file is damaged, or of another version.
        """
        try:
            content = json.loads(state.settings.read_text())
            return cls(**content)
        except FileNotFoundError:
            return cls()
        except PermissionError as error:
            raise permissions.denied(state.settings) from error
        except OSError as error:
            raise SetupError(f"{state.settings}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise SetupError(f"{state.settings}: damaged, or of another version; remove it to go without") from error

    def with_said(self, **said: bool | int | None) -> Self:
        """With what is said this time; None says nothing."""
        changes: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        return dataclasses.replace(self, **changes)

    def save(self, state: StateDir) -> None:
        """Keep it, all of it or nothing; nothing is written when it is kept already.

        :raises OSError: there is no room.
        """
        if self == type(self).load(state):
            return
        scratch = state.settings.with_name(f"{state.settings.name}.new")
        try:
            with scratch.open("w") as file:
                json.dump(dataclasses.asdict(self), file)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(state.settings)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
