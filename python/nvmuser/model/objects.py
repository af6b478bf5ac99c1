"""What a person declares: volumes, pools, remotes, clusters, controllers, how the target is run. Frozen, validated, and
JSON both ways.

Owns the shape of each object alone. The rules across objects (references, uniqueness) are
`nvmuser.model.desired`'s, where identities come from is `nvmuser.model.identity`'s, and how they are made in SPDK is
`nvmuser.reconcile.backends`'.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from nvmuser.errors import UsageError
from nvmuser.model.backends import BACKENDS, check_declared
from nvmuser.model.keys import Key
from nvmuser.model.named import NamedInSpdk, Object, Rules
from nvmuser.model.names import NAME, check_name
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import DEFAULT_TARGET

NQN = "nqn\\.[0-9]{4}-[0-9]{2}\\.[a-z0-9.-]+(:[!-~]+)?"
REMOTE_NQN = r"nqn\.[0-9]{4}-[0-9]{2}\.[A-Za-z0-9.-]+(:[^\s]+)?"
"""Of others, who need not write it as we do; what SPDK takes (lib/nvmf/subsystem.c, `nvmf_nqn_is_valid`)."""
NQN_MAX = 223
"""Bytes (NVM Express Base Specification, NVMe Qualified Names)."""
RECONNECT_MAX_S = 600
FAIL_AFTER_MAX_S = 24 * 3600
KEEP_ALIVE_S = 10
"""SPDK's own (`SPDK_BDEV_NVME_DEFAULT_KEEP_ALIVE_TIMEOUT_IN_MS`)."""
KEEP_ALIVE_MAX_S = 600
BLOCK_SIZES = (512, 4096)
SERIAL_MAX = 20
_NQN = re.compile(NQN)
_RESERVATION_KEY = "0x[0-9a-fA-F]{1,16}"
CEPH_NAME = r"([^\s/@]{1,96})?"
"""Of a pool, an image or a user; `/` and `@` divide them where they are written together."""

MAX_CONTROLLERS = 0xFFEF
"""Of one target: controller ids FFF0h to FFFFh are reserved (NVM Express Base Specification, Controller Identifier)."""
MAX_NAMESPACES = 32
"""SPDK's default `max_namespaces` of a subsystem; more cost memory in each."""

MEMORY_MIN = 512 << 20
"""Of a target. With 256 MiB, nvmf_tgt fails: 'could not allocate spdk_bdev_io pool'."""

KIOPS = 1000
"""SPDK rounds I/O limits up to multiples of this; we refuse others, so that a limit is what it was set to."""


@dataclass(frozen=True)
class Limits:
    """Quality of service of a volume; 0 is no limit."""

    rules: ClassVar[Rules] = {
        "iops": {"minimum": 0, "multipleOf": KIOPS},
        **{field: {"minimum": 0} for field in ("mbps", "read_mbps", "write_mbps")},
    }

    iops: int = 0
    mbps: int = 0
    read_mbps: int = 0
    write_mbps: int = 0

    def __post_init__(self) -> None:
        if self.iops % KIOPS or self.iops < 0:
            up = max(0, -(-self.iops // KIOPS) * KIOPS)
            raise UsageError(
                f"limit of {self.iops} IOPS: SPDK counts in thousands; take {up} or another multiple of 1000"
            )
        if min(self.mbps, self.read_mbps, self.write_mbps) < 0:
            raise UsageError("a bandwidth limit is a number of MiB/s, 0 for none")


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Volume(NamedInSpdk):
    """A bdev: what a namespace shows to a guest, or what another volume or a pool lies on.

    Its identifiers belong to the data: they stay when it is detached here and attached there.
    """

    kind: ClassVar[str] = "volume"
    identity: ClassVar[tuple[str, ...]] = ("uuid", "nguid", "eui64", "key_check", *NamedInSpdk.identity)
    refers: ClassVar[Mapping[str, str]] = {
        "pool": "pool",
        "remote": "remote",
        "cluster": "cluster",
        **dict.fromkeys(("members", "stale", "base", "snapshot_of", "clone_of"), "volume"),
    }
    rules: ClassVar[Rules] = {
        **NamedInSpdk.rules,
        "backend": {"enum": list(BACKENDS)},
        "block_size": {"enum": list(BLOCK_SIZES)},
        "remote_nsid": {"minimum": 0},
        "take_over": {"pattern": f"({_RESERVATION_KEY})?"},
        "latency_us": {"minimum": 0},
        "pool_name": {"pattern": CEPH_NAME},
        "image": {"pattern": CEPH_NAME},
    }

    backend: str = "file"
    size: int = 0
    block_size: int = 512
    volatile: bool = False
    path: str = ""
    """file: the backing file or block device; empty in a declaration: one of our own, in the state directory."""
    owned: bool = False
    """file, rbd: we made the backing file or image, so that deleting the volume deletes it."""
    pool: str = ""
    thin: bool = False
    """file, lvol: more may be promised than there is space. lvol: it takes space from its pool only as it is written;
    a file always does so."""
    snapshot_of: str = ""
    clone_of: str = ""
    inflated: bool = False
    """lvol, rbd: has been made independent of the snapshot it came from."""
    remote: str = ""
    remote_nsid: int = 0
    cluster: str = ""
    pool_name: str = ""
    """rbd: of a pool in the cluster."""
    image: str = ""
    """rbd: its name there; empty in a declaration: the volume's own. A snapshot is of this image, by its own name."""
    create: bool = False
    """rbd: make the image where there is none."""
    shared_ok: bool = False
    """remote: other hosts may write to it; no reservation is taken."""
    take_over: str = ""
    """remote: the reservation key of a host from which it may be taken, as `0x…`."""
    base: str = ""
    """crypt, delay, error: the volume below."""
    key_file: str = ""
    """crypt: file of the key; empty, as is the command: one is made, and kept in the state directory."""
    key_command: str = ""
    """crypt: what prints the key, each time that the volume is opened."""
    key_check: str = ""
    """crypt: by which a key that was given is recognised. It says nothing else of the key."""
    latency_us: int = 0
    members: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    """raid1: members that have missed writes, or are being rebuilt; recorded by the engine."""
    limits: Limits = NO_LIMITS
    uuid: str = ""
    nguid: str = ""
    eui64: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend not in BACKENDS:
            raise UsageError(f"volume {self.name}: backend {self.backend!r}; choose from {', '.join(BACKENDS)}")
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"volume {self.name}: block size {self.block_size}; choose 512 or 4096")
        if self.size < 0 or self.size % self.block_size:
            raise UsageError(
                f"volume {self.name}: size {self.size} is not a multiple of its block size, {self.block_size}"
            )
        self._check_backend()

    def _check_backend(self) -> None:
        def refuse(reason: str) -> UsageError:
            return UsageError(f"volume {self.name}: {reason}")

        backend = BACKENDS[self.backend]
        needs_size = backend.sized and not (self.path or self.cluster or self.snapshot_of or self.clone_of)
        if needs_size and not self.size:
            raise refuse(f"{backend.article} {self.backend} volume needs a size above 0, such as --size 1G")
        if backend.volatile and not self.volatile:
            raise refuse(f"the data of a {self.backend} volume dies with the target; pass --volatile to accept that")
        if backend.lacks(self):
            raise refuse(f"{backend.article} {self.backend} volume needs {backend.needs}")
        if self.take_over and not re.fullmatch(_RESERVATION_KEY, self.take_over):
            raise refuse(f"reservation key {self.take_over!r}: expected 0x and up to 16 hexadecimal digits")
        if self.latency_us < 0:
            raise refuse(f"latency of {self.latency_us} microseconds: it is 0 or more")
        for field in ("pool_name", "image"):
            if (text := getattr(self, field)) and not re.fullmatch(CEPH_NAME, text):
                raise refuse(f"its {field}, {text!r}, cannot be one in Ceph: no /, @ and spaces")
        if len(self.path.encode()) > 4095:
            raise refuse("its path is longer than 4095 bytes")

    def check_declared(self) -> None:
        if reason := check_declared(self):
            raise UsageError(f"volume {self.name}: {reason}")

    @property
    def take_over_key(self) -> int | None:
        """As a number."""
        return int(self.take_over, 16) if self.take_over else None

    @functools.cached_property
    def depends_on(self) -> tuple[Key, ...]:
        """Keys of the objects that this lies on, and that so must come first and go last."""
        volumes = (*self.members, *filter(None, (self.base, self.snapshot_of, self.clone_of)))
        if self.inflated:
            volumes = tuple(name for name in volumes if name != self.clone_of)
        keys = [Key("volume", name) for name in volumes]
        keys += [Key("pool", self.pool)] if self.pool else []
        keys += [Key("remote", self.remote)] if self.remote else []
        keys += [Key("cluster", self.cluster)] if self.cluster else []
        return tuple(keys)


@dataclass(frozen=True)
class Pool(NamedInSpdk):
    """An lvstore: a volume divided into volumes."""

    kind: ClassVar[str] = "pool"
    refers: ClassVar[Mapping[str, str]] = {"base": "volume"}

    base: str = ""
    cluster_size: int = 4 << 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.base:
            raise UsageError(f"pool {self.name}: needs a base volume")
        if self.cluster_size < 1 << 16 or self.cluster_size & (self.cluster_size - 1):
            raise UsageError(f"pool {self.name}: cluster size {self.cluster_size}: a power of two from 64K")

    @functools.cached_property
    def depends_on(self) -> tuple[Key, ...]:
        return (Key("volume", self.base),)


@dataclass(frozen=True)
class Remote(NamedInSpdk):
    """A subsystem of another target, reached over NVMe-oF TCP by one path or more."""

    kind: ClassVar[str] = "remote"
    rules: ClassVar[Rules] = {
        **NamedInSpdk.rules,
        "nqn": {"pattern": REMOTE_NQN, "maxLength": NQN_MAX},
        "reconnect_s": {"minimum": 1, "maximum": RECONNECT_MAX_S},
        "fail_after_s": {"minimum": 0, "maximum": FAIL_AFTER_MAX_S},
        "keep_alive_s": {"minimum": 1, "maximum": KEEP_ALIVE_MAX_S},
    }

    keys: ClassVar[tuple[str, ...]] = ("dhchap_key", "dhchap_ctrlr_key", "psk")
    """Fields that name files with a secret; what is in them is read by SPDK alone."""

    nqn: str = ""
    paths: tuple[RemotePath, ...] = ()
    dhchap_key: str = ""
    """File of the secret by which this host shows who it is (DH-HMAC-CHAP)."""
    dhchap_ctrlr_key: str = ""
    """File of the secret by which the remote shows who it is."""
    psk: str = ""
    """File of the pre-shared key for TLS."""
    reconnect_s: int = 1
    """Seconds between two attempts to connect by a path that is down; there is no last one."""
    fail_after_s: int = 0
    """Seconds without any path after which I/O ends with errors; 0: it waits."""
    keep_alive_s: int = KEEP_ALIVE_S
    """Seconds in which the remote has to answer, or a connection to it counts as lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nqn or not self.paths:
            raise UsageError(f"remote {self.name}: needs an NQN and one path or more")
        if not 1 <= self.reconnect_s <= RECONNECT_MAX_S:
            raise UsageError(f"remote {self.name}: reconnect_s {self.reconnect_s}: 1 to {RECONNECT_MAX_S} seconds")
        if not 1 <= self.keep_alive_s <= KEEP_ALIVE_MAX_S:
            raise UsageError(f"remote {self.name}: keep_alive_s {self.keep_alive_s}: 1 to {KEEP_ALIVE_MAX_S} seconds")
        if self.fail_after_s and not self.reconnect_s <= self.fail_after_s <= FAIL_AFTER_MAX_S:
            raise UsageError(
                f"remote {self.name}: fail_after_s {self.fail_after_s}: {self.reconnect_s} (reconnect_s) to "
                f"{FAIL_AFTER_MAX_S} seconds, or 0 to wait for ever"
            )
        if self.dhchap_ctrlr_key and not self.dhchap_key:
            raise UsageError(f"remote {self.name}: the remote is asked for its key only by a host that has one too")

    @property
    def key_files(self) -> dict[str, str]:
        """Path of each file with a secret, by SPDK's name of the key."""
        return {f"{self.in_spdk}.{field}": path for field in self.keys if (path := getattr(self, field))}

    def check_declared(self) -> None:
        if not re.fullmatch(REMOTE_NQN, self.nqn) or len(self.nqn.encode()) > NQN_MAX:
            raise UsageError(f"remote {self.name}: NQN {self.nqn!r} is not of the form nqn.yyyy-mm.domain:name")

    @functools.cached_property
    def depends_on(self) -> tuple[Key, ...]:
        return ()


@dataclass(frozen=True)
class Cluster(NamedInSpdk):
    """A Ceph cluster, in whose pools images are volumes. Several targets may be connected to it."""

    kind: ClassVar[str] = "cluster"
    rules: ClassVar[Rules] = {**NamedInSpdk.rules, "user": {"pattern": r"[^\s/@]{1,96}"}}

    conf: str = "/etc/ceph/ceph.conf"
    """Path of its ceph.conf, which names the monitors."""
    user: str = "admin"
    """By which name we are known there, without `client.`."""
    keyring: str = ""
    """Path of the file with the user's key; empty: as `conf` says. What is in it is read by librados alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.user or not re.fullmatch(CEPH_NAME, self.user) or self.user.startswith("client."):
            raise UsageError(f"cluster {self.name}: user {self.user!r}: as in client.USER, without `client.`")

    def check_declared(self) -> None:
        for field in ("conf", "keyring"):
            if (path := getattr(self, field)) and not path.startswith("/"):
                raise UsageError(f"cluster {self.name}: {field} {path}: give an absolute path")

    @functools.cached_property
    def depends_on(self) -> tuple[Key, ...]:
        return ()


@dataclass(frozen=True)
class Namespace:
    """A volume as a guest sees it: by its number."""

    rules: ClassVar[Rules] = {"nsid": {"minimum": 0, "maximum": MAX_NAMESPACES}}
    refers: ClassVar[Mapping[str, str]] = {"volume": "volume"}

    volume: str
    nsid: int = 0
    """0 in a declaration: the lowest free."""


@dataclass(frozen=True)
class Controller(Object):
    """An NVMe controller for one guest: a subsystem of its own with one vfio-user listener."""

    kind: ClassVar[str] = "controller"
    identity: ClassVar[tuple[str, ...]] = ("nqn", "serial", "cntlid")
    modes: ClassVar[tuple[str, ...]] = ("0600", "0660", "0666")
    renamed: ClassVar[Mapping[str, str]] = {"volatile_ok": "volatile"}
    """Earlier names of fields, still read."""
    rules: ClassVar[Rules] = {
        **Object.rules,
        "mode": {"enum": list(modes)},
        "nqn": {"pattern": f"({NQN})?", "maxLength": NQN_MAX},
        "serial": {"maxLength": SERIAL_MAX},
        "target": {"pattern": NAME},
    }

    namespaces: tuple[Namespace, ...] = ()
    owner: str = ""
    """User whose QEMU may connect, besides root: the socket's owner where we are root, else by way of a group."""
    group: str = ""
    """Group whose QEMU may connect; empty: the owner's own."""
    mode: str = "0660"
    """Of the socket, in octal, as in a file's listing."""
    volatile: bool = False
    """Guests may connect through the endpoint although data of theirs dies with the target."""
    target: str = DEFAULT_TARGET
    """By which it is served, with everything that lies below it."""
    away: bool = False
    """Its guest has left, or is expected: its volumes are another host's, and closed here. The engine records it."""
    nqn: str = ""
    serial: str = ""
    cntlid: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nqn and (not _NQN.fullmatch(self.nqn) or len(self.nqn) > NQN_MAX):
            raise UsageError(f"controller {self.name}: NQN {self.nqn!r} is not of the form nqn.yyyy-mm.domain:name")
        if self.mode not in self.modes:
            raise UsageError(f"controller {self.name}: mode {self.mode!r}; choose from {', '.join(self.modes)}")
        check_name(TargetSettings.kind, self.target)
        if len(self.serial) > SERIAL_MAX or not self.serial.isascii():
            raise UsageError(f"controller {self.name}: serial {self.serial!r}: at most {SERIAL_MAX} ASCII characters")
        if len(self.namespaces) > MAX_NAMESPACES:
            raise UsageError(f"controller {self.name}: {len(self.namespaces)} namespaces; at most {MAX_NAMESPACES}")
        numbers = [namespace.nsid for namespace in self.namespaces if namespace.nsid]
        if len(set(numbers)) < len(numbers) or any(
            not 0 <= namespace.nsid <= MAX_NAMESPACES for namespace in self.namespaces
        ):
            raise UsageError(f"controller {self.name}: NSIDs are 1 to {MAX_NAMESPACES}, each once")

    @functools.cached_property
    def depends_on(self) -> tuple[Key, ...]:
        return tuple(Key("volume", namespace.volume) for namespace in self.namespaces)


@dataclass(frozen=True)
class TargetSettings(Object):
    """A target, and how it is run. The default one is there without being declared."""

    kind: ClassVar[str] = "target"
    profiles: ClassVar[tuple[str, ...]] = ("throughput", "balanced", "eco")
    """throughput: its cores poll. balanced: SPDK's dynamic scheduler; one core polls, the others sleep while they
    are not needed. eco: interrupts, no polling."""

    rules: ClassVar[Rules] = {
        **Object.rules,
        "profile": {"enum": list(profiles)},
        "cores": {"uniqueItems": True},
        "max_controllers": {"minimum": 1, "maximum": MAX_CONTROLLERS},
    }

    name: str = DEFAULT_TARGET
    profile: str = "throughput"
    cores: tuple[int, ...] = ()
    """CPU numbers; empty: chosen among those that the supervisor may use."""
    max_controllers: int = MAX_CONTROLLERS
    """How many it has room for: 80 bytes each, on each core."""
    memory: int = MEMORY_MIN
    """Bytes that it takes when it starts."""
    standby: bool = False
    """It has a standby, also where `nvmuser target start --standby` does not say so for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile not in self.profiles:
            raise UsageError(f"{self.subject}: profile {self.profile!r}; choose from {', '.join(self.profiles)}")
        if len(set(self.cores)) < len(self.cores) or min(self.cores, default=0) < 0:
            raise UsageError(f"{self.subject}: cores are CPU numbers from 0, each once")
        if not 0 < self.max_controllers <= MAX_CONTROLLERS:
            raise UsageError(f"{self.subject}: max_controllers {self.max_controllers}: 1 to {MAX_CONTROLLERS}")
        if self.memory < MEMORY_MIN or self.memory % (1 << 20):
            raise UsageError(f"{self.subject}: memory of {self.memory} bytes: whole MiB, {MEMORY_MIN >> 20} or more")

    @property
    def subject(self) -> str:
        """How messages name it: the default one without its name."""
        return self.kind if self.name == DEFAULT_TARGET else self.key.words

    @functools.cached_property
    def depends_on(self) -> tuple[Key, ...]:
        return ()


AnyObject = Volume | Pool | Remote | Cluster | Controller | TargetSettings
KINDS: dict[str, type[AnyObject]] = {
    kind.kind: kind for kind in (Volume, Pool, Remote, Cluster, Controller, TargetSettings)
}


def object_from_json(data: Mapping[str, Any]) -> AnyObject:
    """:raises UsageError: it is no object that we know."""
    kind = KINDS.get(str(data.get("kind")))
    if kind is None:
        raise UsageError(f"kind {data.get('kind')!r}: choose from {', '.join(KINDS)}")
    return kind.from_json(data)
