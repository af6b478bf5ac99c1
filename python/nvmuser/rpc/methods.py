"""SPDK's methods that nvmuser uses, typed: each returns the call to make. Everything else is for `nvmuser
rpc`.

Parameter names and units are SPDK's own (its `schema/schema.json`); sizes go in as bytes and are converted
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvmuser.hostfs.host_identity import HostIdentity

ACCEPTOR_POLL_US = 100_000
"""How often each idle listener looks for a guest. At SPDK's 10 ms, 500 idle listeners halve the throughput of
a busy controller; at 1 s they cost nothing, but a guest waits that long after its target came back. 100 ms is
between."""

IRQ_WAIT_US, IRQ_WAIT_ENTRIES = 200, 16
"""How long an interrupt may wait for more completions, and for how many, while commands are outstanding (a parameter
of our patch; other builds of SPDK ignore it). Measured in docs/benchmarks.md: more IOPS at depth 32, none lost at
depth 1, where nothing else is outstanding and nothing waits."""

MODEL_NUMBER = "nvmuser"

_MIB = 1 << 20


@dataclass(frozen=True)
class Request:
    """A method with its parameters."""

    method: str
    params: Mapping[str, Any]


def create_transport() -> Request:
    """Doorbells trapped and shadow doorbells on: what recovery (`nvmf_vfio`) needs, and interrupt mode
    too."""
    return Request(
        "nvmf_create_transport",
        {
            "trtype": "VFIOUSER",
            "disable_mappable_bar0": True,
            "acceptor_poll_rate": ACCEPTOR_POLL_US,
            "irq_coalescing_us": IRQ_WAIT_US,
            "irq_coalescing_entries": IRQ_WAIT_ENTRIES,
        },
    )


def create_subsystem(nqn: str, serial: str, cntlid: int, max_namespaces: int) -> Request:
    """One controller id only, so that a guest's controller keeps its id when it connects again."""
    return Request(
        "nvmf_create_subsystem",
        {
            "nqn": nqn,
            "serial_number": serial,
            "model_number": MODEL_NUMBER,
            "allow_any_host": True,
            "max_namespaces": max_namespaces,
            "min_cntlid": cntlid,
            "max_cntlid": cntlid,
        },
    )


def delete_subsystem(nqn: str) -> Request:
    return Request("nvmf_delete_subsystem", {"nqn": nqn})


def add_namespace(nqn: str, nsid: int, bdev: str, *, uuid: str, nguid: str, eui64: str) -> Request:
    namespace = {"nsid": nsid, "bdev_name": bdev, "uuid": uuid, "nguid": nguid, "eui64": eui64}
    return Request("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace})


def remove_namespace(nqn: str, nsid: int) -> Request:
    return Request("nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": nsid})


def add_listener(nqn: str, directory: str) -> Request:
    address = {"trtype": "VFIOUSER", "traddr": directory, "trsvcid": "0"}
    return Request("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})


def remove_listener(nqn: str, directory: str) -> Request:
    """lib/nvmf/nvmf_rpc.c. Ends the guest's connection; answered after its requests have."""
    address = {"trtype": "VFIOUSER", "traddr": directory, "trsvcid": "0"}
    return Request("nvmf_subsystem_remove_listener", {"nqn": nqn, "listen_address": address})


def allow_any_host(nqn: str) -> Request:
    return Request("nvmf_subsystem_allow_any_host", {"nqn": nqn, "allow_any_host": True})


def examine(bdev: str) -> Request:
    """Look for SPDK's own metadata (a pool, a mirror's superblock) in the bdev of this name, as soon as there is one.

    lib/bdev/bdev.c, `spdk_bdev_examine`: it refuses a name that it knows already.
    """
    return Request("bdev_examine", {"name": bdev})


def aio_create(name: str, path: str, block_size: int, uuid: str) -> Request:
    """`fallocate`: unmap and write-zeroes reach the file, so that a guest's discard gives space back."""
    params = {"name": name, "filename": path, "block_size": block_size, "fallocate": True, "uuid": uuid}
    return Request("bdev_aio_create", params)


def aio_rescan(name: str) -> Request:
    return Request("bdev_aio_rescan", {"name": name})


def malloc_create(name: str, size: int, block_size: int, uuid: str) -> Request:
    params = {"name": name, "num_blocks": size // block_size, "block_size": block_size, "uuid": uuid}
    return Request("bdev_malloc_create", params)


def null_create(name: str, size: int, block_size: int, uuid: str) -> Request:
    params = {"name": name, "num_blocks": size // block_size, "block_size": block_size, "uuid": uuid}
    return Request("bdev_null_create", params)


def null_resize(name: str, size: int) -> Request:
    return Request("bdev_null_resize", {"name": name, "new_size": _mib(size)})


def delete_bdev(module: str, name: str) -> Request:
    """`module` as in the method's name: aio, malloc, null, raid, delay, error, lvol."""
    return Request(f"bdev_{module}_delete", {"name": name})


def lvstore_create(name: str, base: str, cluster_size: int) -> Request:
    return Request("bdev_lvol_create_lvstore", {"lvs_name": name, "bdev_name": base, "cluster_sz": cluster_size})


def lvstore_delete(name: str) -> Request:
    return Request("bdev_lvol_delete_lvstore", {"lvs_name": name})


def lvstore_grow(name: str) -> Request:
    return Request("bdev_lvol_grow_lvstore", {"lvs_name": name})


def lvol_create(name: str, pool: str, size: int, *, thin: bool) -> Request:
    """Its parameter `uuid` is not the volume's: it names the pool, in place of `lvs_name`."""
    params = {"lvol_name": name, "lvs_name": pool, "size_in_mib": _mib(size), "thin_provision": thin}
    return Request("bdev_lvol_create", params)


def lvol_snapshot(bdev: str, name: str) -> Request:
    return Request("bdev_lvol_snapshot", {"lvol_name": bdev, "snapshot_name": name})


def lvol_clone(snapshot: str, name: str) -> Request:
    return Request("bdev_lvol_clone", {"snapshot_name": snapshot, "clone_name": name})


def lvol_inflate(bdev: str) -> Request:
    return Request("bdev_lvol_inflate", {"name": bdev})


def lvol_resize(bdev: str, size: int) -> Request:
    return Request("bdev_lvol_resize", {"name": bdev, "size_in_mib": _mib(size)})


def raid_create(name: str, level: str, members: Sequence[str], uuid: str) -> Request:
    """raid1 with a superblock: a member that missed writes is known as such after a restart, and not read."""
    params: dict[str, Any] = {"name": name, "raid_level": level, "base_bdevs": list(members), "uuid": uuid}
    params |= {"superblock": True} if level == "raid1" else {"strip_size_kb": 64}
    return Request("bdev_raid_create", params)


def raid_start_degraded(name: str) -> Request:
    """A method of our patch: serve a mirror without the members that are missing."""
    return Request("bdev_raid_start_degraded", {"name": name})


def raid_remove_member(bdev: str) -> Request:
    return Request("bdev_raid_remove_base_bdev", {"name": bdev})


def raid_add_member(name: str, bdev: str) -> Request:
    """Into a free place. What it holds is overwritten; answered when the rebuild has begun."""
    return Request("bdev_raid_add_base_bdev", {"raid_bdev": name, "base_bdev": bdev})


def delay_create(name: str, base: str, latency_us: int, uuid: str) -> Request:
    latencies = ("avg_read_latency", "p99_read_latency", "avg_write_latency", "p99_write_latency")
    params = {"name": name, "base_bdev_name": base, "uuid": uuid} | dict.fromkeys(latencies, latency_us)
    return Request("bdev_delay_create", params)


def error_create(base: str) -> Request:
    return Request("bdev_error_create", {"base_name": base})


def attach_remote(
    name: str, nqn: str, address: str, port: int, *, host: HostIdentity | None = None, keys: Iterable[str] = ()
) -> Request:
    """Lost paths are tried again for ever: what a guest has in flight waits, as it would for a slow disk.

    `hostid` is a parameter of our patch.

    :param host: who we are to it; None: SPDK's choice, another at each start.
    :param keys: keys in SPDK's keyring, each named by the remote and the parameter that takes it: `store.psk`.
    """
    params = _path(name, nqn, address, port)
    params |= {"multipath": "multipath", "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1}
    params |= {"hostnqn": host.nqn, "hostid": host.id} if host else {}
    params |= {key.rpartition(".")[2]: key for key in keys}
    return Request("bdev_nvme_attach_controller", params)


def add_key(name: str, path: str) -> Request:
    """SPDK reads the file when it needs the key; it must be readable by its user alone (mode 0600)."""
    return Request("keyring_file_add_key", {"name": name, "path": path})


def remove_key(name: str) -> Request:
    return Request("keyring_file_remove_key", {"name": name})


def detach_remote(name: str) -> Request:
    return Request("bdev_nvme_detach_controller", {"name": name})


def detach_path(name: str, nqn: str, address: str, port: int) -> Request:
    """One way of several; without the last, the remote would be gone."""
    return Request("bdev_nvme_detach_controller", _path(name, nqn, address, port))


def _path(name: str, nqn: str, address: str, port: int) -> dict[str, Any]:
    """One way to a remote, over TCP."""
    return {
        "name": name,
        "trtype": "TCP",
        "adrfam": "IPv6" if ":" in address else "IPv4",
        "traddr": address,
        "trsvcid": str(port),
        "subnqn": nqn,
    }


def set_limits(bdev: str, iops: int, mbps: int, read_mbps: int, write_mbps: int) -> Request:
    params = {
        "name": bdev,
        "rw_ios_per_sec": iops,
        "rw_mbytes_per_sec": mbps,
        "r_mbytes_per_sec": read_mbps,
        "w_mbytes_per_sec": write_mbps,
    }
    return Request("bdev_set_qos_limit", params)


def _mib(size: int) -> int:
    """For parameters that are in MiB: never less than was asked for."""
    return -(-size // _MIB)
