"""What SPDK has: read in one pipeline, and kept as little as the planner needs.

Owns no judgement: whether something is ours, matches or has drifted is `nvmuser.reconcile.plan`'s.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from nvmuser.errors import RpcConnectionError, RpcServerError
from nvmuser.model.objects import NO_LIMITS, Limits
from nvmuser.rpc.client import Client

_NO_METHOD = -32601
"""JSON-RPC's code: SPDK was built, or started, without this module."""
_ENDING = "Unable to find a target"
"""How its answers about NVMe-oF begin when that side has ended already (lib/nvmf/nvmf_rpc.c)."""
_DOWN = frozenset({"failed", "resetting", "reconnect_is_delayed"})
"""States of a path without a connection (module/bdev/nvme/bdev_nvme.c, `nvme_ctrlr_get_state_str`)."""


@dataclass(frozen=True)
class Bdev:
    name: str
    uuid: str
    size: int
    block_size: int
    aliases: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    lvstore: str = ""
    """lvol: UUID of its store."""
    thin: bool = False
    allocated_clusters: int = 0
    """lvol: clusters of its own; a clone's others are its snapshot's."""
    clone_of: str = ""
    """lvol: the short name of the snapshot that it shares clusters with."""
    claimed: bool = False
    """Somebody writes to it."""
    unmaps: bool = True
    """What is discarded of it is gone."""

    @classmethod
    def from_spdk(cls, data: Mapping[str, Any]) -> Self:
        rates = data.get("assigned_rate_limits", {})
        lvol = data.get("driver_specific", {}).get("lvol", {})
        return cls(
            name=data["name"],
            uuid=data.get("uuid", ""),
            size=data["num_blocks"] * data["block_size"],
            block_size=data["block_size"],
            aliases=tuple(data.get("aliases", ())),
            limits=Limits(
                iops=rates.get("rw_ios_per_sec", 0),
                mbps=rates.get("rw_mbytes_per_sec", 0),
                read_mbps=rates.get("r_mbytes_per_sec", 0),
                write_mbps=rates.get("w_mbytes_per_sec", 0),
            ),
            lvstore=lvol.get("lvol_store_uuid", ""),
            thin=lvol.get("thin_provision", False),
            allocated_clusters=lvol.get("num_allocated_clusters", 0),
            clone_of=lvol.get("base_snapshot", ""),
            claimed=data.get("claimed", False),
            unmaps=data.get("supported_io_types", {}).get("unmap", True),
        )


@dataclass(frozen=True)
class ActualNamespace:
    nsid: int
    bdev: str
    uuid: str = ""
    nguid: str = ""
    eui64: str = ""


@dataclass(frozen=True)
class Subsystem:
    nqn: str
    serial: str
    min_cntlid: int
    max_cntlid: int
    any_host: bool = True
    namespaces: tuple[ActualNamespace, ...] = ()
    listeners: tuple[tuple[str, str], ...] = ()
    """Transport and address."""

    @classmethod
    def from_spdk(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            nqn=data["nqn"],
            serial=data.get("serial_number", ""),
            min_cntlid=data.get("min_cntlid", 0),
            max_cntlid=data.get("max_cntlid", 0),
            any_host=data.get("allow_any_host", False),
            namespaces=tuple(
                ActualNamespace(
                    nsid=namespace["nsid"],
                    bdev=namespace["bdev_name"],
                    uuid=namespace.get("uuid", ""),
                    nguid=namespace.get("nguid", ""),
                    eui64=namespace.get("eui64", ""),
                )
                for namespace in data.get("namespaces", ())
            ),
            listeners=tuple(
                (listener["trtype"].upper(), listener["traddr"]) for listener in data.get("listen_addresses", ())
            ),
        )


@dataclass(frozen=True)
class Lvstore:
    name: str
    uuid: str
    base: str
    cluster_size: int
    total_clusters: int
    free_clusters: int


@dataclass(frozen=True)
class Raid:
    """A `bdev_raid`, which has no bdev as long as it waits for members."""

    name: str
    uuid: str
    online: bool
    members: tuple[str, ...]
    """bdevs that it has, the one that is being rebuilt included."""
    rebuilding: str = ""
    """The bdev that is being written from the others, and not read."""
    percent: int = 0

    @property
    def in_sync(self) -> frozenset[str]:
        """bdevs that have all of the data."""
        return frozenset(self.members) - {self.rebuilding}

    @classmethod
    def from_spdk(cls, data: Mapping[str, Any]) -> Self:
        process = data.get("process", {})
        return cls(
            name=data["name"],
            uuid=data["uuid"],
            online=data["state"] == "online",
            members=tuple(member["name"] for member in data["base_bdevs_list"] if member["is_configured"]),
            rebuilding=process.get("target", ""),
            percent=process.get("progress", {}).get("percent", 0),
        )


@dataclass(frozen=True)
class RemoteController:
    """A `bdev_nvme` controller."""

    name: str
    nqn: str
    paths: tuple[tuple[str, int], ...]
    down: frozenset[tuple[str, int]] = frozenset()
    """Of these, those without a connection at this moment: SPDK tries them again and again."""
    host_id: str = ""
    """Which host SPDK is to it; empty: SPDK does not say."""
    states: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    """By which path which states of its namespaces' access (ANA) were told, each once; a remote may tell none."""


@dataclass(frozen=True)
class Actual:
    transport: bool = False
    bdevs: Mapping[str, Bdev] = field(default_factory=dict)
    subsystems: Mapping[str, Subsystem] = field(default_factory=dict)
    lvstores: Mapping[str, Lvstore] = field(default_factory=dict)
    remotes: Mapping[str, RemoteController] = field(default_factory=dict)
    raids: Mapping[str, Raid] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    """Our address in each Ceph cluster that there is a connection to, by its name."""
    rbd: bool = False
    """It has been started with the module for images in Ceph."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Files with a secret, by the name under which SPDK knows them."""
    profile: str = ""
    """How it runs, in the words of `model.TargetSettings`; empty: not known."""
    cores: tuple[int, ...] = ()

    def find(self, name: str) -> Bdev | None:
        """By name or alias."""
        return self.bdevs.get(name) or self._by_alias().get(name)

    def is_incomplete(self, name: str, uuid: str) -> bool:
        """Is it a raid that has no bdev yet, because it waits for members?"""
        raid = self.raids.get(name)
        return raid is not None and raid.uuid == uuid and not raid.online

    def _by_alias(self) -> Mapping[str, Bdev]:
        found = self.__dict__.get("_aliases")
        if found is None:
            found = {alias: bdev for bdev in self.bdevs.values() for alias in bdev.aliases}
            object.__setattr__(self, "_aliases", found)
        assert isinstance(found, dict)
        return found


def merged(found: Sequence[Actual]) -> Actual:
    """What several targets have together. Only one of them has each object, but for remotes."""
    if len(found) == 1:
        return found[0]
    return Actual(
        transport=any(one.transport for one in found),
        bdevs={name: bdev for one in found for name, bdev in one.bdevs.items()},
        subsystems={nqn: subsystem for one in found for nqn, subsystem in one.subsystems.items()},
        lvstores={name: store for one in found for name, store in one.lvstores.items()},
        remotes={name: remote for one in found for name, remote in one.remotes.items()},
        raids={name: raid for one in found for name, raid in one.raids.items()},
        clusters={name: address for one in found for name, address in one.clusters.items()},
        keys={name: path for one in found for name, path in one.keys.items()},
    )


async def transports(rpc: Client) -> list[dict[str, Any]]:
    """The transports of a target's NVMe-oF side.

    :raises RpcConnectionError: it is ending: it has none any more, and answers to the last (`spdk_subsystem_fini` comes
        before `spdk_rpc_finish` in lib/event/app.c).
    :raises RpcError: SPDK could not be asked.
    """
    try:
        return list(await rpc.call("nvmf_get_transports"))
    except RpcServerError as error:
        if error.message.startswith(_ENDING):
            raise RpcConnectionError("SPDK is ending: it serves nothing any more") from error
        raise


async def query(rpc: Client) -> Actual:
    """Everything at once.

    :raises RpcConnectionError: SPDK is ending. :raises RpcError: SPDK could not be asked.
    """
    # First, and by itself: what ends has other words for it in each call.
    found = await transports(rpc)
    bdevs, subsystems, lvstores, remotes, raids, keys, clusters, scheduler, reactors = await asyncio.gather(
        rpc.call("bdev_get_bdevs"),
        rpc.call("nvmf_get_subsystems"),
        _optional(rpc, "bdev_lvol_get_lvstores"),
        _optional(rpc, "bdev_nvme_get_controllers"),
        _optional(rpc, "bdev_raid_get_bdevs", {"category": "all"}),
        _optional(rpc, "keyring_get_keys"),
        _clusters(rpc),
        rpc.call("framework_get_scheduler"),
        rpc.call("framework_get_reactors"),
    )
    return Actual(
        transport=any(transport["trtype"] == "VFIOUSER" for transport in found),
        bdevs={bdev["name"]: Bdev.from_spdk(bdev) for bdev in bdevs},
        subsystems={
            subsystem["nqn"]: Subsystem.from_spdk(subsystem)
            for subsystem in subsystems
            if subsystem.get("subtype") == "NVMe"
        },
        lvstores={
            store["name"]: Lvstore(
                name=store["name"],
                uuid=store["uuid"],
                base=store["base_bdev"],
                cluster_size=store["cluster_size"],
                total_clusters=store["total_data_clusters"],
                free_clusters=store["free_clusters"],
            )
            for store in lvstores
        },
        remotes=_remotes(remotes, bdevs),
        keys={key["name"]: key["path"] for key in keys if "path" in key},
        clusters=clusters or {},
        rbd=clusters is not None,
        raids={raid["name"]: Raid.from_spdk(raid) for raid in raids},
        profile=_profile(scheduler, reactors["reactors"]),
        cores=tuple(sorted(reactor["lcore"] for reactor in reactors["reactors"])),
    )


async def _clusters(rpc: Client) -> dict[str, str] | None:
    """None without the module (`bdev_rbd_get_clusters_info` in module/bdev/rbd/bdev_rbd_rpc.c)."""
    try:
        found = await rpc.call("bdev_rbd_get_clusters_info")
    except RpcServerError as error:
        if error.code == _NO_METHOD:
            return None
        if error.code == -errno.ENOENT:
            return {}
        raise
    return {one["cluster_name"]: one.get("nonce") or "" for one in found}


def _profile(scheduler: Mapping[str, Any], reactors: Sequence[Mapping[str, Any]]) -> str:
    """The dynamic scheduler puts reactors to sleep too, but never all of them."""
    if all(reactor["in_interrupt"] for reactor in reactors):
        return "eco"
    return "balanced" if scheduler["scheduler_name"] == "dynamic" else "throughput"


async def query_remotes(rpc: Client) -> Actual:
    """The remotes alone, which is asked for often.

    :raises RpcError: SPDK could not be asked.
    """
    return Actual(remotes=_remotes(await _optional(rpc, "bdev_nvme_get_controllers")))


def _remotes(data: Sequence[Mapping[str, Any]], bdevs: Sequence[Mapping[str, Any]] = ()) -> dict[str, RemoteController]:
    states = _access(bdevs) if data else {}
    return {remote["name"]: _remote(remote, states) for remote in data}


def _access(bdevs: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, int], tuple[str, ...]]]:
    """Of each subsystem: by which path its namespaces are in which state (`nvme_namespace_info_json`)."""
    found: dict[str, dict[tuple[str, int], tuple[str, ...]]] = {}
    for bdev in bdevs:
        for one in bdev.get("driver_specific", {}).get("nvme", ()):
            if state := one["ns_data"].get("ana_state"):
                paths, path = found.setdefault(one["trid"].get("subnqn", ""), {}), _address(one["trid"])
                paths[path] = tuple(sorted({*paths.get(path, ()), state}))
    return found


def _remote(
    data: Mapping[str, Any], states: Mapping[str, Mapping[tuple[str, int], tuple[str, ...]]]
) -> RemoteController:
    controllers = data.get("ctrlrs", ())
    addresses = [controller["trid"] for controller in controllers]
    # With multipath, further paths of a controller are listed as alternates of its first.
    addresses += [trid for controller in controllers for trid in controller.get("alternate_trids", ())]
    nqn = addresses[0].get("subnqn", "") if addresses else ""
    return RemoteController(
        name=data["name"],
        nqn=nqn,
        states=states.get(nqn, {}),
        paths=tuple(map(_address, addresses)),
        down=frozenset(_address(one["trid"]) for one in controllers if one.get("state") in _DOWN),
        host_id=controllers[0].get("host", {}).get("id", "") if controllers else "",
    )


def _address(trid: Mapping[str, Any]) -> tuple[str, int]:
    return trid.get("traddr", ""), int(trid.get("trsvcid") or 0)


async def _optional(rpc: Client, method: str, params: Mapping[str, Any] | None = None) -> Any:
    """An empty list from an SPDK that was built without this module."""
    try:
        return await rpc.call(method, params)
    except RpcServerError as error:
        if error.code == _NO_METHOD:
            return []
        raise
