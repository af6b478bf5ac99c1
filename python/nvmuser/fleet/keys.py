"""Where things are in etcd: one place for every key of a fleet.

Everything that a host must follow lies between `meta/` and `place/`, so that one watch has it in order; the log of
changes and the hosts lie before, and what hosts report after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from nvmuser.errors import UsageError
from nvmuser.fleet.etcd.client import range_end
from nvmuser.model.keys import Key
from nvmuser.model.names import check_name

VERSION = 1
TENANT = "default"
Range = tuple[bytes, bytes]
"""First key, and the first one after the last."""


@dataclass(frozen=True)
class FleetKeys:
    """Of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        check_name("fleet", self.fleet)

    @cached_property
    def root(self) -> str:
        return f"/nvmuser/{VERSION}/{self.fleet}/"

    @property
    def fleet_key(self) -> str:
        """What the fleet is: it is there as long as the fleet."""
        return f"{self.root}meta/fleet"

    @property
    def change(self) -> str:
        """A change of more objects than fit into one transaction, while it lasts: nothing else is changed, and no host
        carries out half of it."""
        return f"{self.root}meta/change"

    @property
    def writer(self) -> str:
        """That the one who makes it lives: with a lease."""
        return f"{self.root}meta/writer"

    @property
    def arbiter(self) -> str:
        """Which host decides what becomes of what a dead one had: with its lease."""
        return f"{self.root}meta/arbiter"

    def tenant(self, name: str) -> str:
        return f"{self.root}meta/tenant/{name}"

    def journey(self, controller: str) -> str:
        """A guest on its way, by one of its controllers."""
        return f"{self.root}meta/guest/{controller}"

    def object(self, key: Key) -> str:
        return f"{self.root}object/{TENANT}/{key}"

    def host(self, name: str) -> str:
        return f"{self.root}host/{name}"

    def live(self, host: str) -> str:
        return f"{self.root}live/{host}"

    def own(self, uuid: str) -> str:
        return f"{self.root}own/{uuid}"

    def seen(self, host: str) -> str:
        return f"{self.root}seen/{host}/state"

    def event(self, ulid: str) -> str:
        return f"{self.root}event/{ulid}"

    @property
    def followed(self) -> Range:
        """What commands look at."""
        return f"{self.root}host/".encode(), range_end(f"{self.root}place/")

    @property
    def carried_out(self) -> Range:
        """What hosts follow: all of that but the hosts themselves, who come and go."""
        return f"{self.root}meta/".encode(), range_end(f"{self.root}place/")

    @property
    def hosts(self) -> Range:
        """The hosts that there are."""
        return prefix(f"{self.root}host/")

    @property
    def lives(self) -> Range:
        """Which hosts live."""
        return prefix(f"{self.root}live/")

    @property
    def reports(self) -> Range:
        """What hosts report."""
        return prefix(f"{self.root}seen/")

    @property
    def events(self) -> Range:
        """The log of changes."""
        return prefix(f"{self.root}event/")

    def split(self, key: str) -> tuple[str, str]:
        """The kind of a key of this fleet, and the rest: `host`, `h1`.

        :raises UsageError: it is none.
        """
        if not key.startswith(self.root):
            raise UsageError(f"{key}: not a key of fleet {self.fleet}")
        kind, _, rest = key.removeprefix(self.root).partition("/")
        return kind, rest


def prefix(text: str) -> Range:
    """All keys that begin with it."""
    return text.encode(), range_end(text)


def object_key(rest: str) -> Key:
    """Of `FleetKeys.object`, from what comes after the kind."""
    return Key.parse(rest.partition("/")[2])
