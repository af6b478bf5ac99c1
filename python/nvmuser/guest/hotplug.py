"""Controllers of a deployment into a running guest: `nvmuser.guest.plug` together with the control plane.

Owns what neither knows alone: that a controller serves another guest, and that one which was left empty in the guest
can show the volumes of one that finds no free port.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from qemu.qmp import QMPClient

from nvmuser.errors import GuestError, StaleError
from nvmuser.guest import migration
from nvmuser.guest.plug import Intent, carry_out, intend
from nvmuser.guest.preflight import PlugProblem
from nvmuser.guest.qemu import device_id
from nvmuser.guest.qmp import Facts, look
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir
from nvmuser.supervisor import control, occupancy


@dataclass(frozen=True)
class Plugged:
    """What became of a controller that was to be plugged in."""

    controller: str
    device: str
    """The device in QEMU that shows its volumes."""
    how: Literal["plugged", "present", "reused"]
    """`reused`: another controller, empty and in the guest, shows its volumes from now on."""


@dataclass(frozen=True)
class Transport:
    """How QEMU reaches the deployment's controllers."""

    direct: bool = False
    libvfio: bool = False
    user: int | None = None
    """User ID of QEMU; None: ours."""


@dataclass(frozen=True)
class Hotplug:
    """What is going to be done."""

    intent: Intent
    new: tuple[Controller, ...]
    """Each gets a device of its own."""
    present: tuple[Controller, ...]
    reuse: tuple[tuple[Controller, Controller], ...]
    """A controller, and the empty one that shows its volumes instead."""
    change: Change
    transport: Transport

    @property
    def problems(self) -> list[PlugProblem]:
        """What stands in the way."""
        return self.intent.problems


async def prepare(state: StateDir, qmp: QMPClient, names: Sequence[str], transport: Transport) -> Hotplug:
    """Decide, without any change.

    :raises NotFoundError: there is no such controller.
    :raises ConflictError: one of them serves another guest.
    """
    desired, facts = control.load(state), await look(qmp)
    controllers = [desired.controller(name) for name in names]
    inside = {name for name in names if _device(state, name) in facts.devices}
    missing = [controller for controller in controllers if controller.name not in inside]
    await occupancy.check_free(state, [controller.name for controller in missing], direct=transport.direct)
    reuse = _reuse(state, desired, facts, missing, names)
    new = missing[: len(missing) - len(reuse)]
    devices = Devices(state, direct=transport.direct)
    intent = intend(
        facts,
        migration.image_beside([state.socket(controller.name, direct=transport.direct) for controller in controllers]),
        [state.socket(controller.name, direct=transport.direct) for controller in new],
        user=transport.user,
        directories=[devices.choose(controller) for controller in new] if transport.libvfio else None,
    )
    present = tuple(controller for controller in controllers if controller.name in inside)
    return Hotplug(intent, tuple(new), present, reuse, _moves(desired, reuse, transport), transport)


async def perform(state: StateDir, qmp: QMPClient, names: Sequence[str], transport: Transport) -> list[Plugged]:
    """Decide and do it; once more when somebody has changed one of the controllers in between.

    :raises NvmuserError: as `prepare` and `execute`.
    """
    while True:
        try:
            return await execute(state, qmp, await prepare(state, qmp, names, transport))
        except StaleError:
            continue


async def execute(state: StateDir, qmp: QMPClient, hotplug: Hotplug) -> list[Plugged]:
    """Do it; all or nothing, as far as QEMU can take back what it has done.

    :raises GuestError: something stands in the way, or QEMU refused.
    :raises StaleError: one of the controllers has changed since `prepare`; nothing was done.
    """
    hotplug.intent.check()
    if hotplug.reuse:
        await control.submit(state, hotplug.change)
    try:
        done = await carry_out(qmp, _provided(state, hotplug))
    except GuestError:
        if hotplug.reuse:
            before, after = hotplug.change.expect, hotplug.change.update
            await control.submit(state, Change(update=before, expect=after, force=True))
        raise
    names = [path.parent.name for path in hotplug.intent.sockets]
    return [
        *(Plugged(controller.name, _device(state, controller.name), "present") for controller in hotplug.present),
        *(Plugged(name, device, "plugged") for name, device in zip(names, done, strict=True)),
        *(Plugged(controller.name, _device(state, empty.name), "reused") for controller, empty in hotplug.reuse),
    ]


def _provided(state: StateDir, hotplug: Hotplug) -> Intent:
    """With libvfio: the directories are there now."""
    if not hotplug.transport.libvfio:
        return hotplug.intent
    devices = Devices(state, direct=hotplug.transport.direct)
    return replace(hotplug.intent, directories=tuple(devices.provide(controller) for controller in hotplug.new))


def _reuse(
    state: StateDir, desired: Desired, facts: Facts, missing: Sequence[Controller], names: Sequence[str]
) -> tuple[tuple[Controller, Controller], ...]:
    """For those for which there is no port: the empty controllers that the guest has."""
    short = max(0, len(missing) - len(facts.free_ports))
    unused = [controller for controller in desired.controllers() if not controller.namespaces]
    empty = [
        controller
        for controller in unused
        if controller.name not in names and _device(state, controller.name) in facts.devices
    ]
    return tuple(zip(missing[-short:], empty, strict=False)) if 0 < short <= len(empty) else ()


def _moves(desired: Desired, reuse: Sequence[tuple[Controller, Controller]], transport: Transport) -> Change:
    heirs = [replace(empty, namespaces=controller.namespaces) for controller, empty in reuse]
    if not transport.direct:
        for heir in heirs:
            desired.check_surviving(heir)
    return Change(
        update=(*(replace(one, namespaces=()) for one, _ in reuse), *heirs),
        expect=(*(one for one, _ in reuse), *(empty for _, empty in reuse)),
    )


def _device(state: StateDir, name: str) -> str:
    return device_id(state.socket(name))
