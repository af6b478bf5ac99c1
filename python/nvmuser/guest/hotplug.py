"""Controllers of a deployment into a running guest: `nvmuser.guest.plug` together with the control plane.

Owns what neither knows alone: that a controller serves another guest, and that one which was left empty in the guest
can show the volumes of one that finds no free port.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qemu.qmp import QMPClient

from nvmuser.errors import ConflictError
from nvmuser.guest.plug import Intent, carry_out, intend
from nvmuser.guest.preflight import Problem
from nvmuser.guest.qemu import device_id
from nvmuser.guest.qmp import Facts, look
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.hostfs.sockets import answers
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control


@dataclass(frozen=True)
class Plugged:
    """What became of a controller that was to be plugged in."""

    controller: str
    device: str
    """The device in QEMU that shows its volumes."""
    how: Literal["plugged", "present", "reused"]
    """`reused`: another controller, empty and in the guest, shows its volumes from now on."""


@dataclass(frozen=True)
class Way:
    """How QEMU reaches the deployment's controllers."""

    direct: bool = False
    libvfio: bool = False
    user: int | None = None
    """As whom QEMU runs; None: as we do."""


@dataclass(frozen=True)
class Hotplug:
    """What is going to be done."""

    intent: Intent
    present: tuple[Controller, ...]
    reuse: tuple[tuple[Controller, Controller], ...]
    """A controller, and the empty one that shows its volumes instead."""
    change: Change

    @property
    def problems(self) -> list[Problem]:
        """What stands in the way."""
        return self.intent.problems


async def prepare(state: StateDir, qmp: QMPClient, names: Sequence[str], way: Way) -> Hotplug:
    """Decide, without any change.

    :raise NotFoundError: there is no such controller.
    :raise ConflictError: one of them serves another guest.
    """
    desired, facts = control.load(state), await look(qmp)
    controllers = [desired.controller(name) for name in names]
    inside = {name for name in names if _device(state, name) in facts.devices}
    missing = [one for one in controllers if one.name not in inside]
    await _check_free(state, missing, way)
    reuse = _reuse(state, desired, facts, missing, names)
    new = missing[: len(missing) - len(reuse)]
    devices = Devices(state, direct=way.direct)
    intent = intend(
        facts,
        [state.socket(one.name, direct=way.direct) for one in new],
        user=way.user,
        directories=[devices.provide(one) for one in new] if way.libvfio else None,
    )
    return Hotplug(intent, tuple(one for one in controllers if one.name in inside), reuse, _moves(desired, reuse, way))


async def execute(state: StateDir, qmp: QMPClient, hotplug: Hotplug) -> list[Plugged]:
    """Do it; all or nothing, as far as QEMU can take back what it has done.

    :raise GuestError: something stands in the way, or QEMU refused.
    """
    done = await carry_out(qmp, hotplug.intent)
    if hotplug.reuse:
        await control.submit(state, hotplug.change)
    names = [path.parent.name for path in hotplug.intent.sockets]
    return [
        *(Plugged(one.name, _device(state, one.name), "present") for one in hotplug.present),
        *(Plugged(name, device, "plugged") for name, device in zip(names, done, strict=True)),
        *(Plugged(one.name, _device(state, empty.name), "reused") for one, empty in hotplug.reuse),
    ]


async def _check_free(state: StateDir, controllers: Sequence[Controller], way: Way) -> None:
    """QEMU would wait for its turn for ever, and its guest would stand still meanwhile."""
    for one, who in (await _taken(state, controllers, way)).items():
        raise ConflictError(f"controller {one} serves another guest already{who}")


async def _taken(state: StateDir, controllers: Sequence[Controller], way: Way) -> dict[str, str]:
    """Those that are connected, and to whom."""
    if way.direct:
        if not answers(state.rpc_socket):
            return {}
        async with await Client.connect(state.rpc_socket) as target:
            calls = (target.call("nvmf_subsystem_get_controllers", {"nqn": one.nqn}) for one in controllers)
            connected = await asyncio.gather(*calls)
        return {one.name: "" for one, found in zip(controllers, connected, strict=True) if found}
    async with control.supervisor(state) as supervisor:
        guests = (await supervisor.call("status"))["guests"] if supervisor else []
    names = {one.name for one in controllers}
    return {guest["controller"]: f" (process {guest['pid']})" for guest in guests if guest["controller"] in names}


def _reuse(
    state: StateDir, desired: Desired, facts: Facts, missing: Sequence[Controller], names: Sequence[str]
) -> tuple[tuple[Controller, Controller], ...]:
    """For those for which there is no port: the empty controllers that the guest has."""
    short = max(0, len(missing) - len(facts.free_ports))
    empty = [
        one
        for one in desired.controllers()
        if not one.namespaces and one.name not in names and _device(state, one.name) in facts.devices
    ]
    return tuple(zip(missing[-short:], empty, strict=False)) if 0 < short <= len(empty) else ()


def _moves(desired: Desired, reuse: Sequence[tuple[Controller, Controller]], way: Way) -> Change:
    heirs = [replace(empty, namespaces=one.namespaces) for one, empty in reuse]
    if not way.direct:
        for heir in heirs:
            desired.check_surviving(heir)
    return Change(update=(*(replace(one, namespaces=()) for one, _ in reuse), *heirs))


def _device(state: StateDir, name: str) -> str:
    return device_id(state.socket(name))
