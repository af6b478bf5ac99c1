"""Remotes, reached over NVMe/TCP, and the keys for them. Errors and units: see the package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nvmuser.hostfs.host_identity import HostIdentity
from nvmuser.rpc.methods.request import Request


def attach_remote(
    name: str,
    nqn: str,
    address: str,
    port: int,
    *,
    host: HostIdentity | None = None,
    keys: Iterable[str] = (),
    reconnect_s: int = 1,
    fail_after_s: int = 0,
    keep_alive_s: int = 0,
) -> Request:
    """Attach a remote by one path, or add the path to it (module/bdev/nvme/bdev_nvme_rpc.c).

    Lost paths are tried again for ever: what a guest has in flight waits, as it would for a slow disk. `hostid` and
    `keep_alive_timeout_ms` are parameters of our patches; `ctrlr_loss_timeout_sec`, `reconnect_delay_sec` and
    `fast_io_fail_timeout_sec` are in seconds.

    :param host: who we are to it; None: SPDK's choice, another at each start.
    :param reconnect_s: seconds between two attempts; the same for all paths of a remote.
    :param fail_after_s: seconds without a path after which I/O fails, until there is one again; 0: it waits.
    :param keep_alive_s: seconds in which it has to answer; 0: SPDK's own, 10, which one without the patch has too.
    :param keys: keys in SPDK's keyring, each named by the remote and the parameter that takes it: `store.psk`.

    Errors: EALREADY for a path that is attached; else an errno without the reason, for which
    `nvmuser.reconcile.remotes` asks the remote.
    """
    params = _path(name, nqn, address, port)
    params |= {"multipath": "multipath", "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": reconnect_s}
    params |= {"fast_io_fail_timeout_sec": fail_after_s} if fail_after_s else {}
    params |= {"keep_alive_timeout_ms": keep_alive_s * 1000} if keep_alive_s else {}
    params |= {"hostnqn": host.nqn, "hostid": host.id} if host else {}
    params |= {key.rpartition(".")[2]: key for key in keys}
    return Request("bdev_nvme_attach_controller", params)


def add_key(name: str, path: str) -> Request:
    """Name a file with a key (module/keyring/file/keyring_rpc.c). SPDK reads it when it needs the key.

    Errors: EPERM unless it is SPDK's user's and readable by it alone (mode 0600); EEXIST for a name in use.
    """
    return Request("keyring_file_add_key", {"name": name, "path": path})


def remove_key(name: str) -> Request:
    """Forget a key (module/keyring/file/keyring_rpc.c). Connections that use it stay.

    Errors: ENOKEY when there is none of this name.
    """
    return Request("keyring_file_remove_key", {"name": name})


def detach_remote(name: str) -> Request:
    """End every path to a remote, and remove the bdevs of its namespaces (module/bdev/nvme/bdev_nvme_rpc.c).

    Errors: ENODEV when there is no controller of this name.
    """
    return Request("bdev_nvme_detach_controller", {"name": name})


def detach_path(name: str, nqn: str, address: str, port: int) -> Request:
    """End one path of several (module/bdev/nvme/bdev_nvme_rpc.c). With its last one the remote is gone.

    Errors: ENODEV when there is no controller of this name, or no such path.
    """
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
