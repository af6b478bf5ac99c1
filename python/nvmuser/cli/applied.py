"""The specification that was found to be what there is: while nothing has changed since, it need not be read again.

Owns `run/applied`, which may be lost at any time. Reading thousands of objects and comparing them takes longer than all
else that `nvmuser apply` does with a file that it has seen before, as from a timer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nvmuser.fleet.settings import FleetSettings
from nvmuser.paths import StateDir
from nvmuser.supervisor import control
from nvmuser.supervisor.remote import Remote


@dataclass(frozen=True)
class Applied:
    """A specification on a state directory as it was before it was read.

    :param mark: the latest change of what is wanted, and the text with all that its meaning depends on.
    """

    path: Path
    mark: str

    @classmethod
    def of(cls, state: StateDir, text: str, *, prune: bool) -> Applied | None:
        """None where what is wanted is kept elsewhere, too: in a fleet, or on another host.

        :raises NvmuserError: the store cannot be read.
        """
        if isinstance(state, Remote) or FleetSettings.load(state):
            return None
        with control.opened(state) as store:
            last = store.events(store.event_bounds()[1] - 1, 1) if store else []
        # The time too: a store that was put back from a copy counts from there again.
        change = [(event.id, event.time) for event in last]
        meaning = [metadata.version("nvmuser"), os.getcwd(), prune, change, text]
        return cls(state.run / "applied", hashlib.sha256(json.dumps(meaning).encode()).hexdigest())

    @property
    def is_known(self) -> bool:
        """Whether this specification, on this state, was found to change nothing."""
        with contextlib.suppress(OSError):
            return self.path.read_text() == self.mark
        return False

    def remember(self) -> None:
        """It was found to change nothing. A failure to record that only costs time."""
        with contextlib.suppress(OSError):
            self.path.write_text(self.mark)
