"""A process that asks a cluster some things and ends: `python -m nvmuser.ceph.worker`, JSON on stdin and stdout.

librados has threads, waits for what does not answer, and aborts on its own defects: none of that may be the
supervisor's. Nothing is decided here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from nvmuser.ceph import raw

FENCED_S = 30 * 24 * 3600
"""For so long a fenced client is kept out: one that is stopped, and wakes later, would write again."""
_OPTIONS = {
    "rados_osd_op_timeout": "20",
    "rbd_cache": "false",
    "rbd_blocklist_on_break_lock": "false",
    "admin_socket": "",
}
"""`fence` blocklists before it breaks a lock, and for longer than librbd does."""
_PATIENCE = ("client_mount_timeout", "rados_mon_op_timeout")
"""Seconds, of monitors."""
_EXCLUSIVE_LOCK = 1 << 2
"""RBD_FEATURE_EXCLUSIVE_LOCK."""
_CLONE_FORMAT = 12
"""RBD_IMAGE_OPTION_CLONE_FORMAT; 2 needs no protection of the snapshot, and outlives it."""
_ADDRESS = re.compile(r"([^\[\],]+):\d+/(\d+)")

_Cluster = ctypes.c_void_p


def same_client(one: str, other: str) -> bool:
    """Whether two addresses are one client's: monitors, locks and clients write them in different ways."""
    return not _parts(one).isdisjoint(_parts(other))


def _parts(address: str) -> set[tuple[str, str]]:
    return {(host.removeprefix("v1:").removeprefix("v2:"), nonce) for host, nonce in _ADDRESS.findall(address)}


def _look(cluster: _Cluster, pool: str, image: str) -> dict[str, Any]:
    with raw.pool(cluster, pool) as context, raw.image(context, image) as opened:
        return {
            "size": raw.number("rbd_get_size", opened),
            "lockable": bool(raw.number("rbd_get_features", opened) & _EXCLUSIVE_LOCK),
            "lockers": [[client, address] for client, _, address in raw.lockers(opened)],
            "snapshots": raw.snapshots(opened),
            "shared": raw.number("rbd_get_overlap", opened),
        }


def _create(cluster: _Cluster, pool: str, image: str, size: int) -> None:
    with raw.pool(cluster, pool) as context, raw.image_options({}) as options:
        raw.rbd("rbd_create4", context, image.encode(), ctypes.c_uint64(size), options)


def _resize(cluster: _Cluster, pool: str, image: str, size: int) -> None:
    with raw.pool(cluster, pool) as context, raw.image(context, image, writable=True) as opened:
        raw.rbd("rbd_resize", opened, ctypes.c_uint64(size))


def _remove(cluster: _Cluster, pool: str, image: str) -> None:
    with raw.pool(cluster, pool) as context:
        raw.rbd("rbd_remove", context, image.encode())


def _snapshot(cluster: _Cluster, pool: str, image: str, function: str, name: str) -> None:
    with raw.pool(cluster, pool) as context, raw.image(context, image, writable=True) as opened:
        raw.rbd(function, opened, name.encode())


def _clone(cluster: _Cluster, pool: str, image: str, snapshot: str, name: str) -> None:
    with raw.pool(cluster, pool) as context, raw.image_options({_CLONE_FORMAT: 2}) as options:
        of = (context, image.encode(), snapshot.encode())
        raw.rbd("rbd_clone3", *of, context, name.encode(), options)


def _flatten(cluster: _Cluster, pool: str, image: str) -> None:
    with raw.pool(cluster, pool) as context, raw.image(context, image, writable=True) as opened:
        raw.rbd("rbd_flatten", opened)


def _fence(cluster: _Cluster, addresses: list[str], images: list[list[str]]) -> list[str]:
    """Keep out those clients that hold a lock on one of these images, and break it. Returns their addresses.

    Nothing of theirs lands any more on an OSD that has heard of it.
    """
    locks = []
    for pool, image in images:
        with raw.pool(cluster, pool) as context, raw.image(context, image) as opened:
            found = raw.lockers(opened)
        locks += [
            (pool, image, client, cookie, address)
            for client, cookie, address in found
            if any(same_client(address, one) for one in addresses)
        ]
    holders = sorted({address for *_, address in locks})
    for address in holders:
        raw.rados("rados_blocklist_add", cluster, address.encode(), ctypes.c_uint32(FENCED_S))
    raw.rados("rados_wait_for_latest_osdmap", cluster)
    for pool, image, client, cookie, _ in locks:
        with raw.pool(cluster, pool) as context, raw.image(context, image, writable=True) as opened:
            _break(opened, client, cookie)
    return holders


def _break(opened: ctypes.c_void_p, client: str, cookie: str) -> None:
    """Nothing happens when the lock is not there any more."""
    try:
        raw.rbd("rbd_break_lock", opened, client.encode(), cookie.encode())
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _health(cluster: _Cluster) -> Any:
    return json.loads(raw.command(cluster, {"prefix": "osd stat", "format": "json"}))


_ACTS: dict[str, Callable[..., Any]] = {
    "look": _look,
    "create": _create,
    "resize": _resize,
    "remove": _remove,
    "snapshot": _snapshot,
    "clone": _clone,
    "flatten": _flatten,
    "fence": _fence,
    "health": _health,
}


def _failure(error: OSError) -> dict[str, Any]:
    return {"errno": error.errno or 0, "text": error.strerror or str(error), "function": error.filename or ""}


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Of each act a result, or its error; or why there is no connection."""
    options = _OPTIONS | dict.fromkeys(_PATIENCE, str(request["patience"]))
    options |= {"keyring": request["keyring"]} if request["keyring"] else {}
    try:
        with raw.connected(request["user"], request["conf"], options) as cluster:
            return {"results": [_act(cluster, one) for one in request["acts"]]}
    except OSError as error:
        return {"failure": _failure(error)}


def _act(cluster: _Cluster, act: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(act)
    try:
        return {"result": _ACTS[arguments.pop("act")](cluster, **arguments)}
    except OSError as error:
        return {"failure": _failure(error)}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
