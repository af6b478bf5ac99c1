"""Where things lie: the cache (what `nvmuser setup` made), what packages installed, the state directory (a deployment).

Owns names only: nothing here creates, opens or removes anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_TARGET = "spdk"
"""The target of controllers that name none, and of what no controller shows. There is always one."""
SUN_PATH_MAX = 107
"""Longest path of a UNIX socket in bytes (unix(7): sun_path is 108 bytes with its terminating null)."""


SETUP = "make setup" if (Path(__file__).parents[2] / "Makefile").is_file() else "nvmuser setup"
"""What provides the parts that are missing: in a checkout make, which also gets what building needs."""

_PACKAGED = Path("/usr/lib/nvmuser")


def packaged_dir() -> Path | None:
    """Where packages have installed SPDK and libvfio: `$NVMUSER_PREFIX`, else /usr/lib/nvmuser for an nvmuser that is
    itself a package's, else None: a checkout never runs on what is not of its own version."""
    if path := os.environ.get("NVMUSER_PREFIX"):
        return Path(path)
    return _PACKAGED if Path(__file__).is_relative_to("/usr/lib/python3") else None


def cache_dir() -> Path:
    """`$NVMUSER_CACHE`, else `~/.cache/nvmuser`."""
    if path := os.environ.get("NVMUSER_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nvmuser"


def default_state_dir() -> Path:
    """`$NVMUSER_STATE`, else /var/lib/nvmuser for root and `~/.local/state/nvmuser` for others."""
    if path := os.environ.get("NVMUSER_STATE"):
        return Path(path)
    if os.geteuid() == 0:
        return Path("/var/lib/nvmuser")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "nvmuser"


@dataclass(frozen=True)
class StateDir:
    """The files of one deployment: one store, one supervisor, one endpoint process, one target at a time."""

    root: Path

    @property
    def store(self) -> Path:
        """SQLite: what is wanted."""
        return self.root / "store.sqlite"

    @property
    def volumes(self) -> Path:
        """Backing files of volumes that were given no `--path`."""
        return self.root / "volumes"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def spdk(self) -> Path:
        """A link to the SPDK that `nvmuser target upgrade` has chosen; none: the one that set-up built."""
        return self.root / "spdk"

    @property
    def settings(self) -> Path:
        """How the supervisor runs (`nvmuser.supervisor.settings`)."""
        return self.root / "supervisor.json"

    @property
    def fences(self) -> Path:
        """As which client each process of ours is known to Ceph clusters (`nvmuser.hostfs.fences`)."""
        return self.root / "fences.json"

    @property
    def fleet(self) -> Path:
        """Which fleet this host belongs to, and how to reach its etcd; none: to no fleet."""
        return self.root / "fleet.json"

    @property
    def fleet_progress(self) -> Path:
        """Up to where this host has carried out what its fleet wants."""
        return self.root / "fleet.progress.json"

    @property
    def host_nqn(self) -> Path:
        """By what name this installation is known to remotes."""
        return self.root / "hostnqn"

    @property
    def host_id(self) -> Path:
        """Its UUID, which belongs to the name."""
        return self.root / "hostid"

    @property
    def reservation_secret(self) -> Path:
        """By which keys of its reservations are known again."""
        return self.root / "reservations"

    @property
    def transfers(self) -> Path:
        """How far imports and exports of volumes have come."""
        return self.root / "transfers"

    def volume_key(self, uuid: str) -> Path:
        """The key that was made for an encrypted volume."""
        return self.root / "keys" / uuid

    @property
    def run(self) -> Path:
        """Sockets, pid files and locks."""
        return self.root / "run"

    @property
    def lock(self) -> Path:
        """Held (flock) by the supervisor as long as it lives; its content is the supervisor's pid."""
        return self.run / "supervisor.pid"

    @property
    def control_socket(self) -> Path:
        """The supervisor's JSON-RPC socket."""
        return self.run / "control.sock"

    @property
    def api_socket(self) -> Path:
        """Where `nvmuser api serve` listens, if nothing else is said."""
        return self.run / "api.sock"

    @property
    def rpc_socket(self) -> Path:
        """The default target's JSON-RPC socket."""
        return self.run / "spdk.sock"

    def rpc_socket_of(self, target: str) -> Path:
        """A target's JSON-RPC socket."""
        return self.rpc_socket if target == DEFAULT_TARGET else self.run / f"spdk.{target}.sock"

    def process_socket(self, target: str, generation: int) -> Path:
        """The JSON-RPC socket of one process of a target."""
        return self.run / f"spdk-{_stem(target, generation)}.sock"

    def process_pid(self, target: str, generation: int) -> Path:
        """The pid file of one process of a target."""
        return self.run / f"target-{_stem(target, generation)}.pid"

    def target_log(self, target: str) -> Path:
        return self.logs / ("target.log" if target == DEFAULT_TARGET else f"target.{target}.log")

    @property
    def endpoint_socket(self) -> Path:
        """The endpoint process's control socket."""
        return self.run / "endpoint.sock"

    def target_dir(self, controller: str) -> Path:
        """SPDK's listener directory for a controller: it creates `cntrl` in there. `--direct` guests connect to it."""
        return self.run / "target" / controller

    def guest_dir(self, controller: str) -> Path:
        """The endpoint's listener directory for a controller; the socket in it is `cntrl`."""
        return self.run / "guest" / controller

    def devices(self, *, direct: bool = False) -> Path:
        """Directories that stand for controllers on the command line of a QEMU with libvfio, by number."""
        return self.run / ("vfio-direct" if direct else "vfio")

    def socket(self, controller: str, *, direct: bool = False) -> Path:
        """The vfio-user socket to which a guest's QEMU connects."""
        return (self.target_dir(controller) if direct else self.guest_dir(controller)) / "cntrl"


def _stem(target: str, generation: int) -> str:
    """Of the files of one process; the default target's are as they were when there was no other."""
    return str(generation) if target == DEFAULT_TARGET else f"{target}-{generation}"


def named_in(pid_file: Path) -> tuple[str, int]:
    """Of which target a pid file is (`StateDir.process_pid`), and its number."""
    name, _, generation = pid_file.stem.removeprefix("target-").rpartition("-")
    return name or DEFAULT_TARGET, int(generation)
