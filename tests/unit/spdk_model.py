"""A model of SPDK: what the calls of a plan do to what SPDK has, and which it refuses, as the real one does.

`tests/integration/test_engine.py` runs the same engine on the real program.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nvmuser.model.desired import Desired
from nvmuser.model.objects import NO_LIMITS, Controller, Limits, Volume
from nvmuser.reconcile.actual import Actual, ActualNamespace, Bdev, Lvstore, RemoteController, Subsystem
from nvmuser.reconcile.calls import Plan


class Refused(Exception):
    """SPDK would have answered with an error."""


def check(condition: object, reason: str) -> None:
    if not condition:
        raise Refused(reason)


def part_of_actual(actual: Actual, part: Desired) -> Actual:
    """What `nvmuser.reconcile.partial.query_part` would return, where nothing is claimed by others."""
    objects = [entry.object for entry in part.entries.values()]
    volumes = {one.in_spdk for one in objects if isinstance(one, Volume)}
    nqns = {one.nqn for one in objects if isinstance(one, Controller)}
    return Actual(
        actual.transport,
        {name: bdev for name, bdev in actual.bdevs.items() if name in volumes},
        {nqn: subsystem for nqn, subsystem in actual.subsystems.items() if nqn in nqns},
    )


@dataclass
class ModelSpdk:
    """Mutable; `actual` is what `nvmuser.reconcile.actual.query` would return."""

    transport: bool = False
    bdevs: dict[str, Bdev] = field(default_factory=dict)
    subsystems: dict[str, Subsystem] = field(default_factory=dict)
    lvstores: dict[str, Lvstore] = field(default_factory=dict)
    remotes: dict[str, RemoteController] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)
    """bdev → who has it."""
    file_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def actual(self) -> Actual:
        return Actual(self.transport, dict(self.bdevs), dict(self.subsystems), dict(self.lvstores), dict(self.remotes))

    def apply(self, plan: Plan) -> None:
        """In waves; within a wave the order must not matter, so it is turned round."""
        for wave in plan.waves():
            for call in reversed(wave):
                self.call(call.request.method, call.request.params)

    def call(self, method: str, params: Mapping[str, Any]) -> None:
        getattr(self, method)(**params)

    def find(self, name: str) -> Bdev:
        found = self.actual.find(name)
        check(found, f"no bdev {name}")
        assert found
        return found

    def _claim(self, name: str, user: str) -> Bdev:
        bdev = self.find(name)
        check(bdev.name not in self.claims, f"{name} is claimed by {self.claims.get(bdev.name)}")
        self.claims[bdev.name] = user
        return bdev

    def _new(self, bdev: Bdev) -> None:
        taken = {*self.bdevs, *(alias for one in self.bdevs.values() for alias in one.aliases)}
        check(not taken & {bdev.name, *bdev.aliases}, f"{bdev.name} exists")
        check(bdev.uuid not in {one.uuid for one in self.bdevs.values()}, "UUID exists")
        self.bdevs[bdev.name] = bdev

    def _gone(self, name: str) -> None:
        bdev = self.find(name)
        del self.bdevs[bdev.name]
        self.claims.pop(bdev.name, None)
        for nqn, one in self.subsystems.items():
            left = tuple(ns for ns in one.namespaces if ns.bdev != bdev.name)
            self.subsystems[nqn] = replace(one, namespaces=left)
        for user in [store.name for store in self.lvstores.values() if store.base == bdev.name]:
            self.bdev_lvol_delete_lvstore(user)

    def bdev_lvol_get_lvstores(self, lvs_name: str) -> list[dict[str, Any]]:
        store = self.lvstores[lvs_name]
        fields = {"total_data_clusters": store.total_clusters, "free_clusters": store.free_clusters}
        return [fields | {"cluster_size": store.cluster_size}]

    # -- bdevs -----------------------------------------------------------------------------------------------

    def bdev_examine(self, name: str) -> None:
        """What is to be found comes by itself here."""

    def bdev_wait_for_examine(self) -> None:
        """It has been looked at already."""

    def bdev_aio_create(self, name: str, filename: str, block_size: int, fallocate: bool, uuid: str) -> None:
        assert fallocate
        check(filename in self.file_sizes, "no such file")
        self._new(Bdev(name, uuid, self.file_sizes[filename], block_size))

    def bdev_aio_rescan(self, name: str) -> None:
        path = next(path for path in self.file_sizes if path.endswith("/" + name))
        self.bdevs[name] = replace(self.find(name), size=self.file_sizes[path])

    def bdev_null_create(self, name: str, num_blocks: int, block_size: int, uuid: str) -> None:
        self._new(Bdev(name, uuid, num_blocks * block_size, block_size))

    bdev_malloc_create = bdev_null_create

    def bdev_null_resize(self, name: str, new_size: int) -> None:
        check(new_size << 20 >= self.find(name).size, "cannot shrink")
        self.bdevs[name] = replace(self.find(name), size=new_size << 20)

    def bdev_set_qos_limit(
        self, name: str, rw_ios_per_sec: int, rw_mbytes_per_sec: int, r_mbytes_per_sec: int, w_mbytes_per_sec: int
    ) -> None:
        limits = Limits(rw_ios_per_sec, rw_mbytes_per_sec, r_mbytes_per_sec, w_mbytes_per_sec)
        bdev = self.find(name)
        self.bdevs[bdev.name] = replace(bdev, limits=limits)

    def bdev_aio_delete(self, name: str) -> None:
        self._gone(name)

    bdev_null_delete = bdev_malloc_delete = bdev_aio_delete

    def _release(self, user: str) -> None:
        for name in [name for name, by in self.claims.items() if by == user]:
            del self.claims[name]

    def bdev_raid_create(
        self,
        name: str,
        raid_level: str,
        base_bdevs: list[str],
        uuid: str,
        superblock: bool = False,
        strip_size_kb: int = 0,
    ) -> None:
        sizes = [self._claim(base, f"raid {name}").size for base in base_bdevs]
        size = min(sizes) if raid_level == "raid1" else sum(sizes)
        self._new(Bdev(name, uuid, size, self.find(base_bdevs[0]).block_size))

    def bdev_raid_delete(self, name: str) -> None:
        check(name not in self.claims, f"{name} is in use")
        self._gone(name)
        self._release(f"raid {name}")

    def bdev_delay_create(self, name: str, base_bdev_name: str, uuid: str, **latencies: int) -> None:
        base = self._claim(base_bdev_name, f"delay {name}")
        self._new(Bdev(name, uuid, base.size, base.block_size))

    def bdev_delay_delete(self, name: str) -> None:
        check(name not in self.claims, f"{name} is in use")
        self._gone(name)
        self._release(f"delay {name}")

    # -- pools -----------------------------------------------------------------------------------------------

    def bdev_lvol_create_lvstore(self, lvs_name: str, bdev_name: str, cluster_sz: int, clear_method: str = "") -> None:
        check(lvs_name not in self.lvstores, "lvstore exists")
        base = self._claim(bdev_name, f"lvstore {lvs_name}")
        clusters = base.size // cluster_sz
        self.lvstores[lvs_name] = Lvstore(lvs_name, str(uuid.uuid4()), base.name, cluster_sz, clusters, clusters)

    def bdev_lvol_delete_lvstore(self, lvs_name: str) -> None:
        check(lvs_name in self.lvstores, "no such lvstore")
        store = self.lvstores.pop(lvs_name)
        for bdev in [one for one in self.bdevs.values() if one.lvstore == store.uuid]:
            self._gone(bdev.name)
        self._release(f"lvstore {lvs_name}")

    def bdev_lvol_grow_lvstore(self, lvs_name: str) -> None:
        store = self.lvstores[lvs_name]
        more = self.find(store.base).size // store.cluster_size - store.total_clusters
        self.lvstores[lvs_name] = replace(
            store, total_clusters=store.total_clusters + more, free_clusters=store.free_clusters + more
        )

    def bdev_lvol_create(
        self, lvol_name: str, lvs_name: str, size_in_mib: int, thin_provision: bool, clear_method: str = ""
    ) -> None:
        check(lvs_name in self.lvstores, "no such lvstore")
        store, alias, new = self.lvstores[lvs_name].uuid, f"{lvs_name}/{lvol_name}", str(uuid.uuid4())
        self._new(Bdev(new, new, size_in_mib << 20, 512, (alias,), NO_LIMITS, store, thin_provision))

    def bdev_lvol_snapshot(self, lvol_name: str, snapshot_name: str) -> None:
        one = self.find(lvol_name)
        new, alias = str(uuid.uuid4()), f"{lvol_name.split('/')[0]}/{snapshot_name}"
        self._new(replace(one, name=new, uuid=new, aliases=(alias,), limits=NO_LIMITS))
        self.bdevs[one.name] = replace(one, clone_of=snapshot_name)

    def bdev_lvol_clone(self, snapshot_name: str, clone_name: str) -> None:
        one = self.find(snapshot_name)
        pool, short = snapshot_name.split("/")
        new = str(uuid.uuid4())
        self._new(replace(one, name=new, uuid=new, aliases=(f"{pool}/{clone_name}",), clone_of=short, limits=NO_LIMITS))

    def bdev_lvol_inflate(self, name: str) -> None:
        one = self.find(name)
        self.bdevs[one.name] = replace(one, clone_of="")

    def bdev_lvol_resize(self, name: str, size_in_mib: int) -> None:
        one = self.find(name)
        self.bdevs[one.name] = replace(one, size=size_in_mib << 20)

    def bdev_lvol_delete(self, name: str) -> None:
        one = self.find(name)
        short = one.aliases[0].split("/")[1]
        children = [b for b in self.bdevs.values() if b.lvstore == one.lvstore and b.clone_of == short]
        check(len(children) <= 1, "has clones")
        self._gone(name)
        for child in children:
            self.bdevs[child.name] = replace(child, clone_of=one.clone_of)

    # -- NVMe-oF ---------------------------------------------------------------------------------------------

    def nvmf_create_transport(
        self,
        trtype: str,
        disable_mappable_bar0: bool,
        acceptor_poll_rate: int,
        irq_coalescing_us: int,
        irq_coalescing_entries: int,
    ) -> None:
        check(not self.transport, "transport exists")
        self.transport = True

    def nvmf_create_subsystem(
        self,
        nqn: str,
        serial_number: str,
        model_number: str,
        allow_any_host: bool,
        max_namespaces: int,
        min_cntlid: int,
        max_cntlid: int,
    ) -> None:
        check(nqn not in self.subsystems, "subsystem exists")
        self.subsystems[nqn] = Subsystem(nqn, serial_number, min_cntlid, max_cntlid, allow_any_host)

    def nvmf_delete_subsystem(self, nqn: str) -> None:
        check(nqn in self.subsystems, "no such subsystem")
        del self.subsystems[nqn]
        self._release(f"subsystem {nqn}")

    def nvmf_subsystem_allow_any_host(self, nqn: str, allow_any_host: bool) -> None:
        self.subsystems[nqn] = replace(self.subsystems[nqn], any_host=allow_any_host)

    def nvmf_subsystem_add_ns(self, nqn: str, namespace: Mapping[str, Any]) -> None:
        check(nqn in self.subsystems, "no such subsystem")
        one = self.subsystems[nqn]
        check(namespace["nsid"] not in {ns.nsid for ns in one.namespaces}, "NSID in use")
        bdev = self._claim(namespace["bdev_name"], f"subsystem {nqn}")
        ids = (namespace.get("uuid", ""), namespace.get("nguid", ""), namespace.get("eui64", ""))
        new = ActualNamespace(namespace["nsid"], bdev.name, *ids)
        self.subsystems[nqn] = replace(one, namespaces=(*one.namespaces, new))

    def nvmf_subsystem_remove_ns(self, nqn: str, nsid: int) -> None:
        one = self.subsystems[nqn]
        gone = [ns for ns in one.namespaces if ns.nsid == nsid]
        check(gone, "no such namespace")
        self.claims.pop(gone[0].bdev, None)
        left = tuple(ns for ns in one.namespaces if ns.nsid != nsid)
        self.subsystems[nqn] = replace(one, namespaces=left)

    def nvmf_subsystem_add_listener(self, nqn: str, listen_address: Mapping[str, str]) -> None:
        check(self.transport, "no transport")
        one = self.subsystems[nqn]
        address = (listen_address["trtype"], listen_address["traddr"])
        check(address not in one.listeners, "listener exists")
        self.subsystems[nqn] = replace(one, listeners=(*one.listeners, address))
