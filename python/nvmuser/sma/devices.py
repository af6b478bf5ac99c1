"""What SMA's calls come to here: a device is a controller, and what is attached to it are its namespaces.

Everything is a change of what is declared, so that it outlives this process and the target; and each call may be
repeated, as the protocol wants it. Nothing is remembered here. Plugging into QEMU is `nvmuser.guest`'s.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from nvmuser.api import guard
from nvmuser.api.auth import Principal
from nvmuser.api.host import Host
from nvmuser.errors import ConflictError, NotFoundError, NvmuserError, StaleError, TargetNotRunning, UsageError
from nvmuser.hostfs.volume_keys import VolumeKey
from nvmuser.model import change as changes
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import KIOPS, Controller, Limits, Volume
from nvmuser.sma import discovered, sealed
from nvmuser.sma.discovered import Discovered
from nvmuser.sma.messages import CLASSES, NVME, UNCHANGED

_PREFIX = "nvme:"
"""Of handles, as SPDK's agent has them."""
_NQN = "nqn.2016-06.io.spdk:vfiouser-{}"
_OURS = re.compile(_NQN.format("[0-9]+"))
_LIMITS = {"rw_iops": ("iops", KIOPS), "rw_bandwidth": ("mbps", 1), "rd_bandwidth": ("read_mbps", 1),
           "wr_bandwidth": ("write_mbps", 1)}  # fmt: skip
"""SMA's limits → ours, and how many of ours one of SMA's is."""

Plug = Callable[[str], Awaitable[None]]
"""Puts a controller into a guest, or takes it out, by its name; nothing happens where that is so already."""


class Refused(Exception):
    """:param code: the name of gRPC's status."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def _nothing(name: str) -> None:
    """There is no guest that controllers are plugged into."""


@dataclass
class Devices:
    """Of one host.

    :param plug: called when a controller is there.
    :param unplug: called before it goes.
    """

    host: Host
    plug: Plug = _nothing
    unplug: Plug = _nothing

    def __post_init__(self) -> None:
        self._discovered = Discovered(self.host, self._submit)

    async def create_device(self, request: Any, who: Principal) -> Any:
        if not request.HasField("nvme"):
            raise Refused("INVALID_ARGUMENT", "only devices of the type nvme are served here")
        if request.nvme.virtual_id:
            raise Refused("INVALID_ARGUMENT", f"virtual_id {request.nvme.virtual_id}: there is 0 alone")
        number = request.nvme.physical_id
        nqn = _NQN.format(number)
        if _found(await self.host.desired(), nqn) is None:
            wanted = Controller(f"vfiouser-{number}", nqn=nqn)
            try:
                await self._submit(Change(create=(wanted,)), who)
            except ConflictError:
                if _found(await self.host.desired(), nqn) is None:
                    raise
        controller = _controller(await self.host.desired(), _PREFIX + nqn)
        if request.HasField("volume"):
            await self._attach(controller, request.volume, who)
        await self.plug(controller.name)
        return CLASSES["CreateDeviceResponse"](handle=_PREFIX + nqn)

    async def delete_device(self, request: Any, who: Principal) -> Any:
        try:
            controller = _controller(await self.host.desired(), request.handle)
        except NotFoundError:
            if not request.handle.startswith(_PREFIX):
                raise
            return CLASSES["DeleteDeviceResponse"]()
        if controller.namespaces:
            names = ", ".join(namespace.volume for namespace in controller.namespaces)
            raise Refused("FAILED_PRECONDITION", f"{request.handle}: has volumes: {names}; detach them first")
        await self.unplug(controller.name)
        await self._submit(Change(delete=(controller.key,), expect=(controller,)), who)
        return CLASSES["DeleteDeviceResponse"]()

    async def attach_volume(self, request: Any, who: Principal) -> Any:
        if not request.HasField("volume"):
            raise Refused("INVALID_ARGUMENT", "volume: is missing")
        await self._attach(_controller(await self.host.desired(), request.device_handle), request.volume, who)
        return CLASSES["AttachVolumeResponse"]()

    async def _attach(self, controller: Controller, wanted: Any, who: Principal) -> None:
        identity = _uuid(wanted.volume_id)
        key = sealed.key_of(wanted.crypto) if wanted.HasField("crypto") else None
        try:
            if wanted.HasField("nvmf") and wanted.nvmf.HasField("discovery"):
                await self._discovered.declare(identity, wanted.nvmf, who)
            await self._show(controller, identity, key, who)
        except TargetNotRunning:
            raise
        except (NvmuserError, Refused):
            await self._discovered.forget(identity, who)
            raise

    async def _show(self, controller: Controller, identity: str, key: VolumeKey | None, who: Principal) -> None:
        while True:
            desired = await self.host.desired()
            volume, present = _volume(desired, identity), desired.controller(controller.name)
            if key:
                volume = await self._opened(desired, volume, key, who)
                desired = await self.host.desired()
            if _shows(present, volume):
                return
            for user in desired.controllers():
                if _shows(user, volume):
                    raise Refused("ALREADY_EXISTS", f"volume {volume.name}: is controller {user.name}'s")
            after = changes.attach(present, volume.name)
            desired.check_surviving(after)
            try:
                await self._submit(Change(update=(after,), expect=(present,)), who)
                return
            except StaleError:
                continue

    async def _opened(self, desired: Desired, base: Volume, key: VolumeKey, who: Principal) -> Volume:
        """What shows a volume decrypted."""
        volume = sealed.over(desired, base)
        if volume is None:
            volume = sealed.declared(base, key, self.host.state)
            await self._submit(Change(create=(volume,)), who)
        sealed.check(volume, key, self.host.state)
        return volume

    async def detach_volume(self, request: Any, who: Principal) -> Any:
        identity = _uuid(request.volume_id)
        while True:
            desired = await self.host.desired()
            present = _controller(desired, request.device_handle)
            base = discovered.of(desired, identity)
            volume = _shown(desired, present, base) if base else None
            if volume is None:
                break
            # The guest is told of it, as with SPDK's agent, and not asked: that is the orchestrator's.
            update = Change(update=(changes.detach(present, volume.name),), expect=(present,), force=True)
            try:
                await self._submit(update, who)
                if volume != base:
                    await self._submit(Change(delete=(volume.key,), wipe=True), who)
                break
            except StaleError:
                continue
        await self._discovered.forget(identity, who)
        return CLASSES["DetachVolumeResponse"]()

    async def set_qos(self, request: Any, who: Principal) -> Any:
        if not request.volume_id:
            raise Refused("INVALID_ARGUMENT", "volume_id: limits are those of volumes, not of devices")
        for field, value in request.maximum.ListFields():
            if field.name not in _LIMITS and value != UNCHANGED:
                raise Refused("INVALID_ARGUMENT", f"maximum.{field.name}: there is no such limit here")
        while True:
            desired = await self.host.desired()
            base = _volume(desired, _uuid(request.volume_id))
            volume = _shown(desired, _controller(desired, request.device_handle), base)
            if volume is None:
                raise Refused("INVALID_ARGUMENT", f"volume {base.name}: is not attached to {request.device_handle}")
            after = replace(volume, limits=_limited(volume.limits, request.maximum))
            try:
                if after != volume:
                    await self._submit(Change(update=(after,), expect=(volume,)), who)
                break
            except StaleError:
                continue
        return CLASSES["SetQosResponse"]()

    async def get_qos_capabilities(self, request: Any, who: Principal) -> Any:
        if request.device_type != NVME:
            raise Refused("INVALID_ARGUMENT", f"device_type {request.device_type}: only nvme ({NVME}) is served here")
        able = CLASSES["QosCapabilities"](**dict.fromkeys(_LIMITS, True))
        return CLASSES["GetQosCapabilitiesResponse"](max_volume_caps=able)

    async def _submit(self, change: Change, who: Principal) -> None:
        """:raises TargetNotRunning: it is recorded, and takes effect with the next target: to be asked again."""
        guard.check(who, self.host.state, await self.host.desired(), change)
        if (await self.host.submit(change, who.actor)).pending:
            raise TargetNotRunning("recorded; it takes effect when a target runs")


def _found(desired: Desired, nqn: str) -> Controller | None:
    return next((one for one in desired.controllers() if one.nqn == nqn), None)


def _controller(desired: Desired, handle: str) -> Controller:
    """:raises NotFoundError: there is no such device."""
    found = _found(desired, handle.removeprefix(_PREFIX)) if handle.startswith(_PREFIX) else None
    if found is None:
        raise NotFoundError(f"{handle[:300]!r}: no such device")
    return found


def _uuid(identity: bytes) -> str:
    """:raises UsageError: it is none."""
    try:
        return str(uuid.UUID(bytes=identity))
    except ValueError:
        raise UsageError(f"volume_id: {len(identity)} bytes, not the 16 of a UUID") from None


def _volume(desired: Desired, identity: str) -> Volume:
    """:raises NotFoundError: no volume has this UUID."""
    found = discovered.of(desired, identity)
    if found is None:
        raise NotFoundError(f"volume_id {identity}: no such volume")
    return found


def _shows(controller: Controller, volume: Volume) -> bool:
    return any(namespace.volume == volume.name for namespace in controller.namespaces)


def _shown(desired: Desired, controller: Controller, base: Volume) -> Volume | None:
    """The volume, or what shows it decrypted, where this controller has one of both."""
    return next((one for one in (base, sealed.over(desired, base)) if one and _shows(controller, one)), None)


def _limited(before: Limits, maximum: Any) -> Limits:
    wanted = {ours: getattr(maximum, name) * factor for name, (ours, factor) in _LIMITS.items()
              if getattr(maximum, name) != UNCHANGED}  # fmt: skip
    return replace(before, **wanted)
