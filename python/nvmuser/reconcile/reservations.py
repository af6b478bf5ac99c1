"""Who may write to the namespaces of remotes: this installation alone, by NVMe reservations.

Owns the order of the commands. Each process that serves volumes is a host of its own to a remote (`hostfs.
reservation_keys`), and takes the reservation from its predecessor before a guest gets to a volume: a write of the
predecessor's that is still on its way then ends with Reservation Conflict, and what the remote was carrying out has
ended (Preempt and Abort, NVM Express Base Specification 2.0, 8.19.7). It is taken from nobody else, unless a person
says so (`take_over`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nvmuser.errors import ConflictError, NvmuserError, RpcError, TargetError
from nvmuser.hostfs import reservation_keys
from nvmuser.hostfs.reservation_keys import ReservationKeys
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Remote, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.peers import Peers
from nvmuser.rpc.client import Client
from nvmuser.rpc.methods import Request, reservations
from nvmuser.rpc.methods.reservations import Completion, Registrant, Report

_COMMAND_S = 5.0
_ABORT_S = 30.0
"""What the predecessor has in flight has to end first. SPDK's own target waits 10 s for it."""
_CONFLICT, _INTERRUPTED = 0x83, 0x21
"""Generic status codes."""


@dataclass(frozen=True)
class Claims:
    """What is known of who may write, volume by volume."""

    refused: Mapping[Key, str] = field(default_factory=dict)
    """Volumes that must not be opened, and why."""
    release: Mapping[Key, Request] = field(default_factory=dict)
    """The call that gives up the reservation that this process has."""
    shared: Mapping[Key, str] = field(default_factory=dict)
    """Volumes to which others may write, and why that is so."""

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(f"{key.words}: other hosts may write to it: {why}" for key, why in self.shared.items())


NO_CLAIMS = Claims()


@dataclass(frozen=True)
class _Namespace:
    """One of a remote, as this process reaches it."""

    rpc: Client
    remote: str
    nsid: int
    host_id: str
    connected: bool

    async def report(self) -> Report:
        """:raises NvmuserError: there is none."""
        reply = await self.send(reservations.report(self.remote, self.nsid), "the reservation cannot be read")
        return Report.parse(reply.data)

    async def send(self, request: Request, failure: str, wait: float = _COMMAND_S) -> Completion:
        """:raises NvmuserError: it has no success; `failure` says of what."""
        if not self.connected:
            raise TargetError(f"{failure}: no path to remote {self.remote} has a connection")
        try:
            reply = await self.rpc.call(request.method, request.params, timeout=wait)
        except RpcError as error:
            raise TargetError(f"{failure}: {getattr(error, 'message', error)}") from error
        completion = Completion.parse(reply)
        if (completion.status_type, completion.status) == (0, _INTERRUPTED):
            raise TargetError(f"{failure}: what another process has in flight there has not ended yet")
        if (completion.status_type, completion.status) == (0, _CONFLICT):
            raise ConflictError(f"{failure}: reservation conflict: another host was faster")
        if not completion.ok:
            raise TargetError(f"{failure}: NVMe status {completion.status_type:#x}/{completion.status:#04x}")
        return completion


class Reservations:
    """Those of one process of a target, and what was last seen of them."""

    def __init__(self, state: StateDir, peers: Peers | None = None) -> None:
        self._state = state
        self._peers = peers or Peers()
        self._rpc: Client | None = None
        self._unended: dict[Key, int] = {}
        """Volume → key of the predecessor whose writes the remote was still carrying out when it was last asked."""
        self._seen: dict[Key, tuple[_Namespace, int]] = {}
        """Volume → where it is, and the key of who had the reservation (0: nobody)."""
        self.claims = NO_CLAIMS

    def lost(self) -> None:
        """The process has ended: its successor is another host."""
        self._rpc, self._unended, self._seen, self.claims = None, {}, {}, NO_CLAIMS

    async def settle(
        self, rpc: Client, desired: Desired, actual: Actual, new: Collection[Key], changed: Collection[Key] = ()
    ) -> Claims:
        """Take the reservation of every remote volume that is wanted here and can be reached.

        :param new: keys of volumes that nobody has opened yet: they are refused where others may write to them, unless
            that was accepted.
        :param changed: keys of what a change is about: there alone a reservation is taken from another (`take_over`).
            It could be taken back by force later, which must not be undone by itself.
        """
        if rpc is not self._rpc:
            self.lost()
            self._rpc = rpc
        entries = [entry for key, entry in desired.entries.items() if key.kind == "volume"]
        volumes = [
            (one.object, one.deleting or one.object.key in desired.closed)
            for one in entries
            if isinstance(one.object, Volume) and one.object.remote
        ]
        refused, release, shared = dict[Key, str](), dict[Key, Request](), dict[Key, str]()

        async def settle(volume: Volume, space: _Namespace, keys: ReservationKeys, leaving: bool) -> None:
            if why := _shared(volume, space):
                shared[volume.key] = why
                return
            try:
                request = await (
                    self._to_release(space, volume)
                    if leaving
                    else self._claim(space, volume, keys, by_force=volume.key in changed)
                )
            except NvmuserError as error:
                request = self.claims.release.get(volume.key)
                if isinstance(error, ConflictError) or not request:
                    # Else no path has a connection: what was ours is ours until another takes it.
                    refused[volume.key] = str(error)
                    return
            if request:
                release[volume.key] = request
            elif not leaving:
                shared[volume.key] = f"remote {volume.remote} offers no reservations for it"

        if volumes:
            keys = await asyncio.to_thread(reservation_keys.load, self._state)
            found = [(volume, leaving, _namespace(volume, rpc, desired, actual)) for volume, leaving in volumes]
            await asyncio.gather(*(settle(volume, space, keys, leaving) for volume, leaving, space in found if space))
        for key in shared.keys() & set(new):
            if not _volume(desired, key).shared_ok:
                refused[key] = f"{shared[key]}: --shared-ok accepts that other hosts may write to it"
        self.claims = Claims(refused, release, shared)
        return self.claims

    async def _to_release(self, space: _Namespace, volume: Volume) -> Request | None:
        """Of what goes, or is another host's for now: who has it from then on is not looked after here."""
        self._seen.pop(volume.key, None)
        mine = (await space.report()).of(space.host_id)
        return reservations.unregister(space.remote, space.nsid, mine.key) if mine else None

    async def _claim(
        self, space: _Namespace, volume: Volume, keys: ReservationKeys, *, by_force: bool
    ) -> Request | None:
        """The call that releases it; None where the namespace offers no reservations.

        :param by_force: it may be taken from whom `take_over` names; from a predecessor in the fleet, in any case.
        :raises ConflictError: another host has it. :raises TargetError: it cannot be taken at this moment.
        """
        request = reservations.identify_namespace(space.remote, space.nsid)
        abilities = (await space.send(request, "the namespace cannot be looked at")).data
        if not reservations.offers_reservations(abilities):
            return None
        report = await space.report()
        mine, holder = report.of(space.host_id), report.holder
        self._seen[volume.key] = (space, holder.key if holder else 0)
        take_over = volume.take_over_key if by_force else None
        predecessors = self._peers.predecessors.get(volume.uuid, ())
        ours = [
            one
            for one in report.registrants
            if keys.is_ours(one.key) or one.key == take_over or reservation_keys.host_in(one.host_id) in predecessors
        ]
        if holder and holder not in (*ours, mine):
            raise ConflictError(_held_by(holder))
        key = mine.key if mine else _own_key(space.host_id, keys)
        if mine is None:
            persistent = reservations.outlives_power(abilities)
            request = reservations.register(space.remote, space.nsid, key, persistent=persistent)
            await space.send(request, "this host cannot be registered")
        if holder is None:
            await space.send(reservations.acquire(space.remote, space.nsid, key), "the reservation cannot be taken")
        # The holder first: from then on nobody else writes.
        others = [one.key for one in sorted((o for o in ours if o != mine), key=lambda one: one is not holder)]
        others += [unended] if (unended := self._unended.get(volume.key)) and unended not in others else []
        for other in others:
            # Once more where it was not enough: the predecessor is registered no longer, and may still be writing.
            self._unended[volume.key] = other
            request = reservations.preempt_and_abort(space.remote, space.nsid, key, other)
            await space.send(request, "the reservation cannot be taken from its predecessor", _ABORT_S)
            del self._unended[volume.key]
        if others or holder is None:
            now = (await space.report()).holder
            if now is None or now.host_id != space.host_id:
                raise ConflictError(_held_by(now) if now else "the reservation was lost at once")
        self._seen[volume.key] = (space, key)
        return reservations.unregister(space.remote, space.nsid, key)

    async def changed(self) -> list[Key]:
        """Volumes whose reservation is in other hands than when it was last looked at. One without a connection is
        as it was."""
        found = []
        for key, (space, seen) in list(self._seen.items()):
            try:
                holder = (await space.report()).holder
            except NvmuserError:
                continue
            if (holder.key if holder else 0) != seen:
                found.append(key)
        return found


def _namespace(volume: Volume, rpc: Client, desired: Desired, actual: Actual) -> _Namespace | None:
    """None where SPDK does not have it."""
    remote = desired.entries.get(Key("remote", volume.remote))
    if remote is None or not isinstance(remote.object, Remote) or not backends.find(volume, desired, actual):
        return None
    present = actual.remotes.get(remote.object.in_spdk)
    if present is None:
        return None
    connected = bool(set(present.paths) - present.down)
    return _Namespace(rpc, present.name, volume.remote_nsid, present.host_id, connected)


def _shared(volume: Volume, space: _Namespace) -> str:
    """Why no reservation is taken; empty when one is, if the namespace offers any."""
    if volume.shared_ok:
        return "so it was declared (--shared-ok)"
    return "" if space.host_id else "this SPDK does not tell under which identifier it reaches remotes"


def _volume(desired: Desired, key: Key) -> Volume:
    volume = desired.get(key)
    assert isinstance(volume, Volume)
    return volume


def _own_key(host_id: str, keys: ReservationKeys) -> int:
    """That in this process's host identifier; one of its own where an earlier nvmuser has attached the remote."""
    key = reservation_keys.key_in(host_id)
    return key if keys.is_ours(key) else keys.new()


def _held_by(holder: Registrant) -> str:
    host = holder.host_id[:18]
    return (
        f"another host writes to it, whose identifier begins with {host} (`nvmuser remote host-id`), by the key "
        f"{holder.key:#x} of its reservation; --take-over {holder.key:#x} takes it from there, whose writes then fail"
    )
