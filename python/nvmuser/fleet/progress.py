"""Up to where a host has carried out what its fleet wants: by this it sees that etcd went back in time.

Owns one small file of the state directory. It is written when this host's own part has changed, and never otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from nvmuser.fleet.settings import write_whole
from nvmuser.paths import StateDir

_WAY_OUT = (
    ": nothing that it says is carried out here until it is known what is right: `nvmuser fleet import` writes back "
    "what this host has"
)


@dataclass(frozen=True)
class Progress:
    """:param cluster: which etcd it was; 0: none yet.
    :param revision: of the last change that was carried out here.
    :param objects: this host's objects → revision of each; None: not known.
    """

    cluster: int = 0
    revision: int = 0
    objects: Mapping[str, int] | None = None

    @classmethod
    def load(cls, state: StateDir) -> Self:
        """None yet where the file is not there, or cannot be read."""
        try:
            return cls(**json.loads(state.fleet_progress.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, state: StateDir) -> None:
        """:raises NvmuserError: it cannot be written."""
        write_whole(state.fleet_progress, vars(self))

    def conflict(self, cluster: int, revision: int, objects: Mapping[str, int] | None = None) -> str:
        """Why what etcd has now cannot have come from what it had, in words; empty where it can.

        :param objects: this host's now, without what many hosts reach, which others may bring.
        """
        if self.cluster and cluster != self.cluster:
            return f"etcd is another one than it was{_WAY_OUT}"
        if revision < self.revision:
            return f"etcd went back in time, from revision {self.revision} or later to {revision}{_WAY_OUT}"
        for key, number in (objects or {}).items():
            # What is not newer than this host's last change was there then.
            if self.objects is not None and number <= self.revision and self.objects.get(key) != number:
                return f"etcd went back in time: {key.replace('/', ' ')} is not as it was{_WAY_OUT}"
        return ""
