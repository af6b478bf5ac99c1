"""A bare target with volumes of each kind that nvmuser knows, as namespaces of its controllers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bare_target import BareTarget, TargetFactory

from nvmuser.rpc import Client, methods
from nvmuser.rpc.methods import Request

MIB = 1 << 20
NQN = "nqn.2026-11.org.nvmuser"
MEMBER = 4 * MIB
"""Where a concatenation goes on in its second member."""
GROWN = 6 * MIB
"""Where a volume that was grown after its snapshot goes on: behind this its parent has nothing."""


def call(target: BareTarget, *requests: Request) -> list[Any]:
    """Call each, one after the other. :raise RpcError: the target refused one."""

    async def run() -> list[Any]:
        async with await Client.connect(target.rpc_socket) as client:
            return [await client.call(request.method, dict(request.params)) for request in requests]

    return asyncio.run(run())


def subsystem(name: str, *bdevs: str) -> list[Request]:
    """The calls that make a subsystem of these namespaces, without a listener."""
    nqn = f"{NQN}:{name}"
    namespaces = [
        Request("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": bdev, "nsid": number}})
        for number, bdev in enumerate(bdevs, 1)
    ]
    created = {"nqn": nqn, "serial_number": name.upper(), "allow_any_host": True, "max_namespaces": 64}
    return [Request("nvmf_create_subsystem", created), *namespaces]


def controller(directory: Path, name: str, *bdevs: str) -> list[Request]:
    """The calls that make a vfio-user controller of these namespaces, and its directory."""
    (directory / name).mkdir()
    return [*subsystem(name, *bdevs), methods.add_listener(f"{NQN}:{name}", str(directory / name))]


def uuid(number: int) -> str:
    return f"0f2d9a52-5a3e-4a9a-9a3f-1c5a35f5{number:04x}"


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def files(directory: Path, block_size: int) -> list[Request]:
    """Files of this block size: a volume, members of a mirror and of a concatenation, the base of a pool."""
    kinds = {"file": 64 * MIB, "m0": 64 * MIB, "m1": 64 * MIB, "k0": MEMBER, "k1": MEMBER, "base": 64 * MIB}
    sizes = {f"{kind}-{block_size}": size for kind, size in kinds.items()}
    return [
        methods.aio_create(name, str(sparse(directory / name, size)), block_size, uuid(block_size + number))
        for number, (name, size) in enumerate(sizes.items())
    ]


def pool(block_size: int) -> list[Request]:
    """A pool on `base-N`: thick, thin, a snapshot, what it was taken of (grown), a clone, a grown clone."""
    name = f"p{block_size}"

    def lvol(kind: str, size: int, thin: bool) -> Request:
        return methods.lvol_create(kind, name, size, thin=thin)

    return [
        methods.lvstore_create(name, f"base-{block_size}", 64 << 10),
        lvol("thick", 8 * MIB, False),
        lvol("thin", 8 * MIB, True),
        lvol("grown", GROWN, True),
        methods.lvol_snapshot(f"{name}/grown", "snapshot"),
        methods.lvol_resize(f"{name}/grown", 8 * MIB),
        methods.lvol_clone(f"{name}/snapshot", "clone"),
        methods.lvol_clone(f"{name}/snapshot", "grown-clone"),
        methods.lvol_resize(f"{name}/grown-clone", 8 * MIB),
    ]


def local(directory: Path, block_size: int) -> list[Request]:
    """Everything that lies in this machine."""
    mirror, concat = ([f"{kind}{n}-{block_size}" for n in range(2)] for kind in "mk")
    return [
        *files(directory, block_size),
        *pool(block_size),
        methods.raid_create(f"mirror-{block_size}", "raid1", mirror, uuid(block_size + 11)),
        methods.raid_create(f"concat-{block_size}", "concat", concat, uuid(block_size + 12)),
        methods.malloc_create(f"malloc-{block_size}", 8 * MIB, block_size, uuid(block_size + 13)),
        methods.null_create(f"null-{block_size}", 8 * MIB, block_size, uuid(block_size + 14)),
    ]


LVOLS = ("thick", "thin", "snapshot", "grown", "clone", "grown-clone")


def names(block_size: int) -> list[str]:
    plain = [f"{kind}-{block_size}" for kind in ("file", "mirror", "concat", "malloc")]
    lvols = [f"p{block_size}/{kind}" for kind in LVOLS]
    return [*plain, *lvols, f"remote{block_size}n1", f"null-{block_size}"]


def owner(name: str) -> str:
    """The controller that has this volume: what cannot deallocate would take it away from all others of its own."""
    return "others" if name.startswith("null") or name.endswith("snapshot") else "all"


def remote(directory: Path, block_size: int, port: int) -> list[Request]:
    """A remote, by way of this same target."""
    name, address = f"r{block_size}", {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
    nqn = f"{NQN}:{name}"
    # An identity of its own: the target, which is its own client here, has a volume of the other already.
    own = {"uuid": uuid(block_size + 16), "nguid": uuid(block_size + 16).replace("-", "")}
    return [
        methods.aio_create(name, str(sparse(directory / name, 8 * MIB)), block_size, uuid(block_size + 15)),
        *subsystem(name),
        Request("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": name, **own}}),
        Request("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address}),
        methods.attach_remote(f"remote{block_size}", nqn, "127.0.0.1", port),
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def every_backend(directory: Path, block_sizes: tuple[int, ...]) -> Iterator[tuple[BareTarget, dict[str, list[str]]]]:
    """A target that polls, as remotes need, with all volumes on the controllers that `owner` names.

    :return: the target, and for each controller's directory its namespaces' names, in order.
    """
    factory = TargetFactory(directory)
    bdevs: dict[str, list[str]] = {"all": [], "others": []}
    for name in (name for block_size in block_sizes for name in names(block_size)):
        bdevs[owner(name)].append(name)
    try:
        target = factory.start(polled=True)
        call(target, methods.create_transport(), Request("nvmf_create_transport", {"trtype": "TCP"}))
        for block_size in block_sizes:
            call(target, *local(directory, block_size), *remote(directory, block_size, free_port()))
        for name, of_it in bdevs.items():
            call(target, *controller(directory, name, *of_it))
        yield target, bdevs
    finally:
        factory.end()
