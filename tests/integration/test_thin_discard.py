"""Discards in a thin pool: whenever the target dies, the pool loads and every cluster is where it was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from backing import NQN, call, controller, free_port, sparse, subsystem, uuid
from bare_target import BareTarget, TargetFactory

from nvmuser import initiator
from nvmuser.errors import HostConnectionError
from nvmuser.rpc import methods
from nvmuser.rpc.methods import Request

CLUSTER = 64 << 10
PAGE_OF_EXTENTS = 512 * CLUSTER
"""What one page of the pool's metadata describes (lib/blob/blobstore.h, SPDK_EXTENTS_PER_EP)."""
SIZE = 8 * PAGE_OF_EXTENTS
BLOCK = 4096


def start(factory: TargetFactory, directory: Path, name: str) -> BareTarget:
    """A target whose pool lies on a remote (its own), which sends what is written some time after it was told to."""
    target = factory.start(name, polled=True)
    port = free_port()
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(port)}
    own = {"uuid": uuid(2), "nguid": uuid(2).replace("-", "")}
    call(
        target,
        methods.create_transport(),
        Request("nvmf_create_transport", {"trtype": "TCP"}),
        methods.aio_create("base", str(directory / "base"), BLOCK, uuid(1)),
        *subsystem("store"),
        Request("nvmf_subsystem_add_ns", {"nqn": f"{NQN}:store", "namespace": {"bdev_name": "base", **own}}),
        Request("nvmf_subsystem_add_listener", {"nqn": f"{NQN}:store", "listen_address": address}),
        methods.attach_remote("store", f"{NQN}:store", "127.0.0.1", port),
    )
    return target


def first(factory: TargetFactory, directory: Path) -> BareTarget:
    sparse(directory / "base", 2 * SIZE)
    target = start(factory, directory, "first")
    call(
        target,
        methods.lvstore_create("p", "storen1", CLUSTER),
        methods.lvol_create("thin", "p", SIZE, thin=True),
        *controller(directory, "c0", "p/thin"),
    )
    return target


def again(factory: TargetFactory, directory: Path, number: int) -> BareTarget:
    """The target that finds the pool as the one before has left it."""
    target = start(factory, directory, f"again{number}")
    call(target, methods.examine("storen1"), Request("bdev_wait_for_examine", {}))
    call(target, *controller(directory, f"c{number}", "p/thin"))
    return target


def test_clusters_that_are_released_together(target_factory: TargetFactory, tmp_path: Path) -> None:
    """One command releases a cluster in each page of the pool's metadata; their neighbours stay."""
    rng = random.Random(4)
    kept = {page * PAGE_OF_EXTENTS + n * CLUSTER: rng.randbytes(CLUSTER) for page in range(8) for n in (0, 2)}
    target = first(target_factory, tmp_path)
    with initiator.connect(tmp_path / "c0") as connected, connected.queue(32, timeout=60) as queue:
        namespace = connected.namespace(1)
        gone = [page * PAGE_OF_EXTENTS + CLUSTER for page in range(8)]
        for at, content in (kept | dict.fromkeys(gone, b"\xff" * CLUSTER)).items():
            queue.write(namespace, at // BLOCK, content).wait()
        queue.deallocate(namespace, [(at // BLOCK, CLUSTER // BLOCK) for at in gone]).wait()
        queue.flush(namespace).wait()
        target.kill()
    again(target_factory, tmp_path, 1)
    with initiator.connect(tmp_path / "c1") as connected, connected.queue(2, timeout=60) as queue:
        buffer, namespace = bytearray(CLUSTER), connected.namespace(1)
        for at, content in (kept | dict.fromkeys(gone, bytes(CLUSTER))).items():
            queue.read(namespace, at // BLOCK, buffer).wait()
            assert buffer == content, f"cluster {at // CLUSTER}"


class Clusters:
    """What each cluster may hold: what was answered, and what was asked for since."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.may_hold: dict[int, set[int]] = {}
        self.busy: dict[int, tuple[initiator.Request, int]] = {}

    def submit(self, queue: initiator.Queue, namespace: initiator.Namespace) -> None:
        """Write one that nothing is in flight for, or release it (0)."""
        cluster = self.random.choice([n for n in range(0, SIZE // CLUSTER, 61) if n not in self.busy])
        value = self.random.choice((0, self.random.randrange(1, 256)))
        lba = cluster * (CLUSTER // BLOCK)
        if value:
            request = queue.write(namespace, lba, bytes([value]) * CLUSTER)
        else:
            request = queue.deallocate(namespace, [(lba, CLUSTER // BLOCK)])
        self.may_hold.setdefault(cluster, {0}).add(value)
        self.busy[cluster] = request, value

    def settle(self) -> None:
        for cluster, (request, value) in list(self.busy.items()):
            if request.done:
                del self.busy[cluster]
                if request.error is None:
                    self.may_hold[cluster] = {value}

    def check(self, queue: initiator.Queue, namespace: initiator.Namespace) -> None:
        self.busy.clear()
        buffer = bytearray(CLUSTER)
        for cluster, values in self.may_hold.items():
            queue.read(namespace, cluster * (CLUSTER // BLOCK), buffer).wait()
            found = {bytes(buffer[at : at + BLOCK]) for at in range(0, CLUSTER, BLOCK)}
            allowed = {bytes([value]) * BLOCK for value in values}
            assert found <= allowed, f"cluster {cluster}: not what was written ({values})"
            if len(values) > 1:
                queue.write(namespace, cluster * (CLUSTER // BLOCK), b"\1" * CLUSTER).wait()
                self.may_hold[cluster] = {1}


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.matrix)])
def test_killed_among_discards(target_factory: TargetFactory, tmp_path: Path, rounds: int) -> None:
    clusters, target = Clusters(rounds), first(target_factory, tmp_path)
    for number in range(rounds + 1):
        with initiator.connect(tmp_path / f"c{number}") as connected, connected.queue(32, timeout=60) as queue:
            namespace = connected.namespace(1)
            clusters.check(queue, namespace)
            for _ in range(clusters.random.randrange(500, 1000)):
                while len(clusters.busy) == 32:
                    queue.poll()
                    clusters.settle()
                clusters.submit(queue, namespace)
            target.kill()
            with pytest.raises(HostConnectionError):
                queue.wait([request for request, _ in clusters.busy.values()] + [queue.flush(namespace)])
        clusters.settle()
        target = again(target_factory, tmp_path, number + 1)
