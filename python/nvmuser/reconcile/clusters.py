"""Ceph clusters of one target: connected to, and their images made, grown, and free of earlier holders, before SPDK is
asked to open them.

Owns the order: our address in a cluster is in the journal of fences before an image is opened, and a predecessor is
kept out before its images are. What the cluster is asked, and in which words it refuses, is `nvmuser.ceph.images`'.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from nvmuser.ceph import images
from nvmuser.ceph.asking import Asker, Standing, unconnected
from nvmuser.ceph.images import Image
from nvmuser.errors import ConflictError, NvmuserError, RpcServerError
from nvmuser.hostfs.fences import Fence, Journal
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Cluster, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.calls import Problem
from nvmuser.reconcile.peers import Peers
from nvmuser.rpc import methods
from nvmuser.rpc.client import Client

_CONNECT_S = 30.0
"""librados gives up after 10."""
_SEEN_S = 5.0
"""In which SPDK shows that an image has grown; it is told at once."""
_LOOK_S = 0.01

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What has to be done with images of one cluster before SPDK's turn."""

    cluster: Cluster
    opening: tuple[Volume, ...]
    growing: tuple[Volume, ...]
    """Of those that are open."""
    inflating: tuple[Volume, ...] = ()

    @property
    def volumes(self) -> tuple[Volume, ...]:
        return tuple(dict.fromkeys((*self.opening, *self.growing, *self.inflating)))


@dataclass(frozen=True)
class Readied:
    """What has been done beforehand."""

    made: tuple[Key, ...] = ()
    problems: dict[Key, Problem] | None = None


def wanted(desired: Desired, actual: Actual) -> list[Work]:
    """Of each cluster with something to do. Pure."""
    closed, found = desired.closed, dict[str, list[Volume]]()
    for volume in desired.volumes():
        if volume.cluster and volume.key not in closed:
            found.setdefault(volume.cluster, []).append(volume)
    works = []
    for name, volumes in found.items():
        cluster = next(one for one in desired.clusters() if one.name == name)
        there = {volume.key: backends.find(volume, desired, actual) for volume in volumes}
        opening = tuple(sorted((volume for volume in volumes if not there[volume.key]), key=_order))
        growing = tuple(v for v in volumes if (bdev := there[v.key]) and bdev.size < v.size)
        work = Work(cluster, opening, growing, tuple(volume for volume in volumes if volume.inflated))
        if work.volumes:
            works.append(work)
    return works


async def away(desired: Desired, actual: Actual) -> tuple[str, ...]:
    """What does not answer of the clusters that a target is connected to, in words."""
    asked = [one for one in desired.clusters() if one.in_spdk in actual.clusters]
    found = await asyncio.gather(*(asyncio.to_thread(images.away, one) for one in asked), return_exceptions=True)
    return tuple(str(one) for one in found if one and (isinstance(one, str | NvmuserError)))


def _order(volume: Volume) -> int:
    """Snapshots after what they are of, clones after those."""
    return 2 if volume.clone_of else 1 if volume.snapshot_of else 0


class Clusters:
    """Of one target."""

    def __init__(self, state: StateDir, peers: Peers | None = None) -> None:
        self._journal = Journal(state.fences)
        self._peers = peers or Peers()
        self._standing = Standing()
        """By which a predecessor is kept out the moment that it has ended."""
        self._connecting: asyncio.Future[None] | None = None
        self._fencing: asyncio.Future[None] | None = None
        self._pid = 0
        """Of the process that serves."""
        self._looked: dict[str, dict[Volume, Image | OSError]] = {}
        """What a cluster had of each image when a predecessor was kept out, for its successor."""

    def lost(self, desired: Desired) -> None:
        """The process that may have images open has ended: it is kept out from now on, while its successor wakes.

        :param desired: what was wanted in it. What it was to close is among that: the next host to open it would find
            it locked.
        """
        all_ = (*desired.volumes(), *desired.deleted())
        volumes = [volume for volume in all_ if isinstance(volume, Volume) and volume.cluster]
        if volumes and self._pid:
            self._fencing = asyncio.ensure_future(asyncio.to_thread(self._keep_out, desired, volumes, self._pid))
        self._pid = 0

    def stop(self) -> None:
        """Nobody is to be kept out at a moment's notice any more. May be called again."""
        if self._connecting and not self._connecting.done():
            self._connecting.cancel()
        self._standing.close()

    def stand_by(self, desired: Desired) -> None:
        """From now on be connected to the clusters with volumes here."""
        used = {volume.cluster for volume in desired.volumes()}
        kept = [cluster for cluster in desired.clusters() if cluster.name in used]
        if not self._connecting or self._connecting.done():
            self._connecting = asyncio.ensure_future(asyncio.to_thread(self._keep, kept))

    def _keep(self, kept: Collection[Cluster]) -> None:
        try:
            self._standing.keep(kept)
        except (NvmuserError, OSError) as error:
            log.info("%s", error)

    def _keep_out(self, desired: Desired, volumes: list[Volume], pid: int) -> None:
        """What fails is tried again when the images are opened."""
        for cluster in desired.clusters():
            mine = [volume for volume in volumes if volume.cluster == cluster.name]
            try:
                ended = [one for one in self._journal.read() if one.pid == pid and not one.alive]
                if addresses := [one.address for one in ended if mine and one.cluster == cluster.in_spdk]:
                    self._looked[cluster.name] = self._fenced(cluster, addresses, mine)
            except NvmuserError as error:
                log.warning("%s", error)

    async def ready(self, desired: Desired, actual: Actual, rpc: Client) -> Readied:
        """Connect, and have images as they are to be opened. What is wrong is in the result, by volumes."""
        works, self._pid = wanted(desired, actual), rpc.peer_pid or 0
        if works and not actual.rbd:
            reason = (
                "the target runs without SPDK's module for Ceph: `nvmuser target restart` loads it, once "
                "`nvmuser setup --with rbd` has built it"
            )
            return Readied((), _all(works, reason))
        found = await asyncio.gather(*(self._one(work, desired, actual, rpc) for work in works))
        made = tuple(key for one in found for key in one.made)
        return Readied(made, {key: problem for one in found for key, problem in (one.problems or {}).items()})

    async def _one(self, work: Work, desired: Desired, actual: Actual, rpc: Client) -> Readied:
        # Both at once: a predecessor is kept out while its successor connects. Neither opens anything.
        idle = not any(
            backends.find(volume, desired, actual)
            for volume in desired.volumes()
            if volume.cluster == work.cluster.name
        )
        connecting = self._connect(work.cluster, actual, rpc, idle=idle)
        readying = self._after_fencing(work, desired)
        failed, readied = await asyncio.gather(connecting, readying, return_exceptions=True)
        for error in (failed, readied):
            if isinstance(error, NvmuserError):
                return Readied((), _all([work], str(error)))
            if isinstance(error, BaseException):
                raise error
        assert isinstance(readied, Readied)
        problems = readied.problems or {}
        problems |= await _seen([v for v in work.growing if v.key not in problems], desired, rpc)
        return Readied(readied.made, problems)

    async def _connect(self, cluster: Cluster, actual: Actual, rpc: Client, *, idle: bool) -> None:
        """:param idle: nothing is open there."""
        if cluster.in_spdk in actual.clusters and not (idle and self._peers.opening and await _left(cluster, rpc)):
            return
        request = methods.register_cluster(cluster.in_spdk, cluster.user, cluster.conf, cluster.keyring)
        try:
            address = await rpc.call(request.method, request.params, timeout=_CONNECT_S)
        except RpcServerError as error:
            raise unconnected(cluster, -error.code) from error
        try:
            fence = Fence.of(cluster.in_spdk, address, rpc.peer_pid or 0)
            await asyncio.to_thread(self._journal.add, fence)
            if self._peers.opening:
                await self._peers.opening(cluster, address)
        except NvmuserError:
            # Nothing may be opened by an address that nobody could fence.
            request = methods.unregister_cluster(cluster.in_spdk)
            await rpc.call(request.method, request.params, timeout=_CONNECT_S)
            raise

    async def _after_fencing(self, work: Work, desired: Desired) -> Readied:
        if self._fencing:
            await asyncio.wait([self._fencing])
        return await asyncio.to_thread(self._images, work, desired)

    def _images(self, work: Work, desired: Desired) -> Readied:
        """:raises NvmuserError: the cluster does not answer, or a predecessor could not be fenced."""
        known = self._looked.pop(work.cluster.name, {})
        if known.keys() >= set(work.volumes):
            looked = {volume: known[volume] for volume in work.volumes}
        else:
            looked = images.look_at(work.cluster, work.volumes, self._standing.ask)
        looked |= self._fence(work.cluster, looked)
        mine = self._journal.addresses(work.cluster.in_spdk, alive=True)
        problems, made = dict[Key, Problem](), list[Key]()
        for volume, image in looked.items():
            if volume not in work.opening + work.growing:
                continue
            try:
                if _ready(work.cluster, volume, image, desired, mine, self._standing.ask):
                    made.append(volume.key)
            except NvmuserError as error:
                problems[volume.key] = Problem(volume.key, str(error))
        for volume in work.inflating:
            image = looked[volume]
            if volume.key not in problems and isinstance(image, Image) and image.shared:
                _flatten(work.cluster, volume, problems)
        return Readied(tuple(made), problems)

    def _fence(self, cluster: Cluster, looked: dict[Volume, Image | OSError]) -> dict[Volume, Image | OSError]:
        """Keep out those of our processes that have ended and still hold a lock. Returns what the cluster has then."""
        dead = self._journal.addresses(cluster.in_spdk, alive=False)
        held = {volume: image.held_by(dead) for volume, image in looked.items() if isinstance(image, Image)}
        holders = {address for addresses in held.values() for address in addresses}
        volumes = [volume for volume, addresses in held.items() if addresses]
        return self._fenced(cluster, sorted(holders), volumes) if holders else {}

    def _fenced(
        self, cluster: Cluster, addresses: Sequence[str], volumes: Sequence[Volume]
    ) -> dict[Volume, Image | OSError]:
        fenced, looked = images.fence(cluster, addresses, volumes, self._standing.ask)
        if fenced:
            log.info("cluster %s: fenced %s", cluster.name, ", ".join(fenced))
        return looked


async def _left(cluster: Cluster, rpc: Client) -> bool:
    """Leave a cluster of which nothing is open. In a fleet, another host may have had this connection shut out, and
    nothing could be opened by it for a month. False where it is in use after all."""
    request = methods.unregister_cluster(cluster.in_spdk)
    try:
        await rpc.call(request.method, request.params, timeout=_CONNECT_S)
    except RpcServerError as error:
        log.info("cluster %s: %s", cluster.name, error)
        return False
    return True


def _all(works: Iterable[Work], reason: str) -> dict[Key, Problem]:
    volumes = [volume for work in works for volume in work.volumes]
    return {volume.key: Problem(volume.key, reason) for volume in volumes}


def _ready(
    cluster: Cluster, volume: Volume, image: Image | OSError, desired: Desired, mine: Collection[str], ask: Asker
) -> bool:
    """Have one image as it is to be opened. Returns whether it was made.

    :param mine: our addresses in the cluster that live.
    :param ask: by what the cluster is asked.
    :raises NvmuserError: it cannot be.
    """
    new = not desired.entries[volume.key].provisioned
    if volume.snapshot_of:
        return _ready_snapshot(cluster, volume, image, ask, new=new)
    if isinstance(image, OSError):
        if image.errno != errno.ENOENT or image.filename == "rados_ioctx_create" or not (volume.owned and new):
            raise images.explained(image, cluster, volume)
        source = desired.entries.get(Key("volume", volume.clone_of)) if volume.clone_of else None
        images.make(cluster, volume, source.object if source and isinstance(source.object, Volume) else None, ask)
        image = images.look_at(cluster, [volume], ask)[volume]
        if isinstance(image, OSError):
            raise images.explained(image, cluster, volume)
    else:
        new = new and volume.owned
    images.check_lockable(volume, image)
    if image.lockers and not image.held_by(list(mine)):
        raise ConflictError(f"image {images.named(volume)}: locked by {image.holders}{images.seizing(volume)}")
    if image.size < volume.size:
        images.grow(cluster, volume)
    return new


def _ready_snapshot(cluster: Cluster, volume: Volume, image: Image | OSError, ask: Asker, *, new: bool) -> bool:
    if new and (isinstance(image, OSError) or volume.in_spdk not in image.snapshots):
        images.make(cluster, volume, asker=ask)
        return True
    if isinstance(image, OSError):
        raise images.explained(image, cluster, volume)
    if volume.in_spdk not in image.snapshots:
        raise images.explained(OSError(errno.ENOENT, "", "rbd_snap_list"), cluster, volume)
    return new


def _flatten(cluster: Cluster, volume: Volume, problems: dict[Key, Problem]) -> None:
    try:
        images.flatten(cluster, volume)
    except NvmuserError as error:
        problems[volume.key] = Problem(volume.key, str(error))


async def _seen(volumes: Sequence[Volume], desired: Desired, rpc: Client) -> dict[Key, Problem]:
    """Wait until SPDK shows what has grown."""
    waiting = {backends.bdev_name(volume, desired): volume for volume in volumes}
    try:
        async with asyncio.timeout(_SEEN_S):
            while waiting:
                for name, volume in list(waiting.items()):
                    (bdev,) = await rpc.call("bdev_get_bdevs", {"name": name})
                    if bdev["num_blocks"] * bdev["block_size"] >= volume.size:
                        del waiting[name]
                await asyncio.sleep(_LOOK_S if waiting else 0)
    except TimeoutError:
        reason = f"its image has grown, but SPDK has not shown it within {_SEEN_S:g} s"
        return {volume.key: Problem(volume.key, reason) for volume in waiting.values()}
    return {}
