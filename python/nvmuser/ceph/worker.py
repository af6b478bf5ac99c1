"""A process that asks a cluster some things and ends: `python -m nvmuser.ceph.worker`, JSON on stdin and stdout.

With `--stay` it connects once, and answers each line of its input with one, until that ends.

librados has threads, waits for what does not answer, and aborts on its own defects: none of that may be the
supervisor's. Nothing is decided here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
_ID, _HEADER, _LOCK = "rbd_id.{}", "rbd_header.{}", "rbd_lock"
"""An image's objects, by its name and by the identity that the first holds, and the exclusive lock, which the second
has: as every format 2 image has had them."""
_LENGTH = 4
"""Bytes before the identity's text."""
_AT_ONCE = 8
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


def _fence(cluster: _Cluster, addresses: list[str], images: list[list[str]]) -> dict[str, Any]:
    """Keep out those clients that hold a lock on one of these images, and break it. Returns their addresses, and a look
    at each image.

    Nothing of theirs lands any more on an OSD that has heard of it. What has to be asked besides is asked while the
    monitors commit that, which they put off to a second after their last commit.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = threads.map(lambda one: _locked(cluster, *one), images)
        locks = [lock for image in found for lock in image if any(same_client(lock.address, one) for one in addresses)]
        holders = sorted({lock.address for lock in locks})
        keeping_out = [threads.submit(_keep_out, cluster, address) for address in holders]
        looks = list(threads.map(lambda one: _answered(_look, cluster, pool=one[0], image=one[1]), images))
        for one in keeping_out:
            one.result()
        raw.rados("rados_wait_for_latest_osdmap", cluster)
        list(threads.map(lambda lock: _break(cluster, lock), locks))
    for look in looks:
        if result := look.get("result"):
            result["lockers"] = [
                [client, address] for client, address in result["lockers"]
                if not any(same_client(address, one) for one in holders)
            ]  # fmt: skip
    return {"fenced": holders, "looks": looks}


@dataclass(frozen=True)
class _Lock:
    pool: str
    header: str
    """The object that has it."""
    client: str
    cookie: str
    address: str


def _locked(cluster: _Cluster, pool: str, image: str) -> list[_Lock]:
    """An image's lock, by its objects: to open it would take many times as long."""
    with raw.pool(cluster, pool) as context:
        try:
            identity = raw.content(context, _ID.format(image))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return []
        header = _HEADER.format(identity[_LENGTH:].decode())
        return [_Lock(pool, header, *one) for one in raw.object_lockers(context, header, _LOCK)]


def _keep_out(cluster: _Cluster, address: str) -> None:
    raw.rados("rados_blocklist_add", cluster, address.encode(), ctypes.c_uint32(FENCED_S))


def _break(cluster: _Cluster, lock: _Lock) -> None:
    """Nothing happens when it is not there any more."""
    names = (lock.header, _LOCK, lock.client, lock.cookie)
    try:
        with raw.pool(cluster, lock.pool) as context:
            raw.rados("rados_break_lock", context, *(name.encode() for name in names))
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
    try:
        with _connected(request) as cluster:
            return _answers(cluster, request)
    except OSError as error:
        return {"failure": _failure(error)}


def stay(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The same for request after request, by one connection; the first says which. Ends where there is none."""
    requests = map(json.loads, lines)
    first = next(requests, None)
    if first is None:
        return
    try:
        with _connected(first) as cluster:
            yield _answers(cluster, first)
            for request in requests:
                yield _answers(cluster, request)
    except OSError as error:
        yield {"failure": _failure(error)}


def _connected(request: Mapping[str, Any]) -> AbstractContextManager[_Cluster]:
    options = _OPTIONS | dict.fromkeys(_PATIENCE, str(request["patience"]))
    options |= {"keyring": request["keyring"]} if request["keyring"] else {}
    return raw.connected(request["user"], request["conf"], options)


def _answers(cluster: _Cluster, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"results": [_act(cluster, one) for one in request["acts"]]}


def _act(cluster: _Cluster, act: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(act)
    return _answered(_ACTS[arguments.pop("act")], cluster, **arguments)


def _answered(do: Callable[..., Any], cluster: _Cluster, /, **arguments: Any) -> dict[str, Any]:
    try:
        return {"result": do(cluster, **arguments)}
    except OSError as error:
        return {"failure": _failure(error)}


def main(arguments: list[str]) -> None:
    """Answer what comes on standard input."""
    if arguments != ["--stay"]:
        json.dump(answer(json.load(sys.stdin)), sys.stdout)
        return
    # A terminal's interrupt is its owner's, who ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for one in stay(sys.stdin):
        print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
