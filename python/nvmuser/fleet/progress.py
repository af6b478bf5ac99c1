"""Up to where a host has carried out what its fleet wants: by this it sees that etcd went back in time.

Owns one small file of the state directory. It is written when this host's own part has changed, and never otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Self

from nvmuser.fleet.settings import write_whole
from nvmuser.paths import StateDir


@dataclass(frozen=True)
class Progress:
    """:param cluster: which etcd it was; 0: none yet.
    :param revision: of the last change that was carried out here.
    """

    cluster: int = 0
    revision: int = 0

    @classmethod
    def load(cls, state: StateDir) -> Self:
        """None yet where the file is not there, or cannot be read."""
        try:
            return cls(**json.loads(state.fleet_progress.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, state: StateDir) -> None:
        """:raises NvmuserError: it cannot be written."""
        write_whole(state.fleet_progress, dataclasses.asdict(self))

    def conflict(self, cluster: int, revision: int) -> str:
        """Why what etcd has now cannot be what it had, in words; empty where it can."""
        if self.cluster and cluster != self.cluster:
            what = "is another one than it was"
        elif revision < self.revision:
            what = f"went back in time, from revision {self.revision} or later to {revision}"
        else:
            return ""
        return (
            f"etcd {what}: nothing that it says is carried out here until it is known what is right: `nvmuser fleet "
            "import` writes back what this host has"
        )
