"""Volumes by discovery: namespaces that SMA's callers find by a discovery service, and not by a declaration of ours.

Each becomes a remote, shared by all of its subsystem, and a volume, both declared as a person would have; their names
say that they are ours, and they go with the last of what uses them. Nothing is remembered here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nvmuser.api.auth import Principal
from nvmuser.api.host import Host
from nvmuser.errors import ConflictError, NotFoundError, NvmuserError, TargetError, TargetNotRunning, UsageError
from nvmuser.hostfs import host_identity
from nvmuser.hostfs.host_identity import HostIdentity
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.reconcile import discovery
from nvmuser.reconcile.discovery import Offer
from nvmuser.supervisor import control

Submit = Callable[[Change, Principal], Awaitable[None]]


def _remote_name(nqn: str) -> str:
    return f"sma-{hashlib.sha256(nqn.encode()).hexdigest()[:16]}"


def _volume_name(uuid: str) -> str:
    return f"sma-{uuid}"


class Discovered:
    """Of one host.

    :param submit: carries out a change, as who asks for it.
    """

    def __init__(self, host: Host, submit: Submit) -> None:
        self._host = host
        self._submit = submit
        self._turn = asyncio.Lock()
        """A remote is there before its first volume is: nobody may take it away meanwhile."""

    async def declare(self, uuid: str, nvmf: Any, who: Principal) -> None:
        """Have a volume with this UUID, from where a call says that it is.

        :param nvmf: of the call.
        :raises UsageError: it is another subsystem's, or the host is to go by another name.
        :raises NotFoundError: no such subsystem is offered to this host, or it has no such namespace.
        :raises RpcConnectionError: no discovery service answers. :raises TargetError: one refuses.
        :raises TargetNotRunning: what is recorded so far takes effect when a target runs.
        """
        identity = host_identity.load(self._host.state)
        if nvmf.hostnqn not in ("", identity.nqn):
            raise UsageError(f"volume.nvmf.hostnqn: this host is {identity.nqn} (`nvmuser remote host-id`)")
        async with self._turn:
            desired = await self._host.desired()
            if volume := of(desired, uuid):
                _check_subsystem(desired, volume, nvmf.subnqn)
                return
            remote = await self._remote(desired, nvmf, identity, who)
            try:
                volume = Volume(_volume_name(uuid), "remote", remote=remote.name,
                                remote_nsid=await self._nsid(remote, uuid), uuid=uuid)  # fmt: skip
                await self._submit(Change(create=(volume,)), who)
            except TargetNotRunning:
                raise
            except NvmuserError:
                if of(await self._host.desired(), uuid) is None:
                    await self._drop((), remote, who)
                    raise

    async def _remote(self, desired: Desired, nvmf: Any, identity: HostIdentity, who: Principal) -> Remote:
        """The one that there is for the subsystem, or a new one."""
        if found := _reaching(desired, nvmf.subnqn):
            return found
        offered = await _offered(nvmf, identity)
        if found := _reaching(desired, offered.nqn):
            return found
        offered.check_declared()
        try:
            await self._submit(Change(create=(offered,)), who)
        except ConflictError:
            if _reaching(await self._host.desired(), offered.nqn) is None:
                raise
        found = _reaching(await self._host.desired(), offered.nqn)
        if found is None:
            raise ConflictError(f"remote {offered.name}: it was taken away meanwhile")
        return found

    async def _nsid(self, remote: Remote, uuid: str) -> int:
        actual = await control.actual(self._host.state)
        if actual is None:
            raise TargetNotRunning(f"remote {remote.name}: which namespaces it has is seen when a target runs")
        prefix = f"{remote.in_spdk}n"
        for bdev in actual.bdevs.values():
            number = bdev.name.removeprefix(prefix)
            if bdev.uuid == uuid and bdev.name.startswith(prefix) and number.isdecimal():
                return int(number)
        raise NotFoundError(f"volume_id {uuid}: subsystem {remote.nqn} has no such namespace")

    async def forget(self, uuid: str, who: Principal) -> None:
        """Take away what `declare` has declared, where nothing uses it any more. Its data stays where it is."""
        async with self._turn:
            desired = await self._host.desired()
            volume = of(desired, uuid)
            if volume is None or volume.name != _volume_name(uuid) or desired.users(volume.key):
                return
            remote = next((one for one in desired.remotes() if one.name == volume.remote), None)
            await self._drop((volume,), remote, who)

    async def _drop(self, volumes: Sequence[Volume], remote: Remote | None, who: Principal) -> None:
        """Both at once, but a remote that others use, or that is not ours."""
        desired = await self._host.desired()
        going = [one.key for one in volumes]
        if remote and remote.name == _remote_name(remote.nqn):
            others = set(desired.users(remote.key)) - {key.words for key in going}
            going += [] if others else [remote.key]
        with contextlib.suppress(ConflictError, NotFoundError):  # somebody uses it since, or was faster
            if going:
                await self._submit(Change(delete=tuple(going), expect=tuple(volumes)), who)


def of(desired: Desired, uuid: str) -> Volume | None:
    """The volume with this UUID."""
    return next((one for one in desired.volumes() if one.uuid == uuid), None)


def _reaching(desired: Desired, nqn: str) -> Remote | None:
    return next((one for one in desired.remotes() if nqn and one.nqn == nqn), None)


def _check_subsystem(desired: Desired, volume: Volume, nqn: str) -> None:
    """:raises UsageError: it is another's."""
    remote = next((one for one in desired.remotes() if one.name == volume.remote), None)
    if nqn and (remote is None or remote.nqn != nqn):
        raise UsageError(f"volume {volume.name}: it is not of subsystem {nqn[:223]}")


async def _offered(nvmf: Any, identity: HostIdentity) -> Remote:
    """A remote with every path to the subsystem that is meant.

    :raises NvmuserError: as `Discovered.declare`.
    """
    offers = await _ask(_services(nvmf.discovery.discovery_endpoints), identity)
    mine = [one for one in offers if one.kind == "NVM" and one.transport == "TCP" and nvmf.subnqn in ("", one.nqn)]
    names = sorted({one.nqn for one in mine})
    if not names:
        raise NotFoundError(f"volume.nvmf.subnqn {nvmf.subnqn[:223]!r}: not offered to {identity.nqn}")
    if len(names) > 1:
        raise UsageError(f"volume.nvmf.subnqn: several are offered: name one of {', '.join(names)}")
    if any(one.tls for one in mine):
        raise ConflictError(f"{names[0]} demands TLS: declare it with its key (`nvmuser remote create --psk`)")
    paths = dict.fromkeys(RemotePath(one.address, int(one.port)) for one in mine if one.port.isdecimal())
    return Remote(_remote_name(names[0]), nqn=names[0], paths=tuple(paths))


def _services(endpoints: Sequence[Any]) -> list[RemotePath]:
    """:raises UsageError: there is none, or one over something else than TCP."""
    found = []
    for one in endpoints:
        if one.trtype.lower() != "tcp" or not one.trsvcid.isdecimal():
            raise UsageError("volume.nvmf.discovery: an endpoint has the trtype tcp, and a port as trsvcid")
        found.append(RemotePath(one.traddr, int(one.trsvcid)))
    if not found:
        raise UsageError("volume.nvmf.discovery: needs a discovery endpoint")
    return found


async def _ask(services: Sequence[RemotePath], identity: HostIdentity) -> list[Offer]:
    """What those offer that answer.

    :raises NvmuserError: none does.
    """
    tries = (discovery.discover(one.address, one.port, identity) for one in services)
    answers = await asyncio.gather(*tries, return_exceptions=True)
    if all(isinstance(one, BaseException) for one in answers):
        first = answers[0]
        raise first if isinstance(first, NvmuserError) else TargetError(f"{services[0]}: {first}")
    return [offer for one in answers if not isinstance(one, BaseException) for offer in one]
