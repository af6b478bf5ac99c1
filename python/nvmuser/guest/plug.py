"""Controllers into a running QEMU, ours or anybody's, and out again, over QMP.

Owns the order of events: all is checked before the first change, and what was changed is undone when a later step is
refused, where QEMU can do that. It does not start QEMU and does not make controllers.

`device_del` is never sent to a QEMU that aborts on it; see `unplug`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient

from nvmuser.errors import GuestError, NotFoundError, summary
from nvmuser.guest import migration
from nvmuser.guest.preflight import PlugProblem, preflight
from nvmuser.guest.qemu import DRIVER, PLAIN_DRIVER, controller, device_id
from nvmuser.guest.qmp import Facts, look

_DELETE_DEADLINE = 30.0

_FIRST_WITHOUT_ABORT = (11, 2)
"""Up to 11.1.3 `device_del` aborts QEMU: the PBA region is torn down after its parent dropped it
(memory_region_del_subregion: Assertion `subregion->container == mr' failed)."""


@dataclass(frozen=True)
class Intent:
    """What plugging some controllers comes to in this QEMU; nothing has been done yet."""

    facts: Facts
    image: Path
    """Of the node that keeps QEMU from migrating."""
    sockets: tuple[Path, ...]
    """Of the controllers that are not in it already."""
    directories: tuple[Path, ...] | None = None
    """With libvfio: the device directory of each."""
    user: int | None = None
    """As whom QEMU runs; None: as we do."""

    @property
    def blocks_migration(self) -> bool:
        """Whether QEMU is to be kept from migrating the guest, which nobody has done yet."""
        native = self.facts.has_native or (self.directories is None and bool(self.sockets))
        return native and not self.facts.migration_blocked

    @property
    def problems(self) -> list[PlugProblem]:
        """What stands in the way."""
        driver = DRIVER if self.directories is None else PLAIN_DRIVER
        return preflight(self.facts, self.sockets, user=self.user, driver=driver)

    def check(self) -> None:
        """:raises GuestError: something stands in the way."""
        if problems := self.problems:
            raise GuestError(summary(problems))


def intend(
    facts: Facts,
    image: Path,
    sockets: Sequence[Path],
    *,
    user: int | None = None,
    directories: Sequence[Path] | None = None,
) -> Intent:
    """What it takes to have these controllers in a QEMU, some of which may be in it.

    :param image: see `nvmuser.guest.migration`; made if it is needed and not there.
    """
    missing = [number for number, path in enumerate(sockets) if device_id(path) not in facts.devices]
    return Intent(
        facts,
        image,
        tuple(sockets[number] for number in missing),
        None if directories is None else tuple(directories[number] for number in missing),
        user,
    )


async def plug(
    qmp: QMPClient, sockets: Sequence[Path], *, user: int | None = None, directories: Sequence[Path] | None = None
) -> list[str]:
    """Plug controllers in, each into a free root port; returns the ids in QEMU of those that were not in it already.

    :param directories: into a QEMU with libvfio: the device directory of each.
    :raises GuestError: something stands in the way, and nothing was touched; or QEMU refused, see `carry_out`.
    """
    image = migration.image_beside(sockets)
    return await carry_out(qmp, intend(await look(qmp), image, sockets, user=user, directories=directories))


async def carry_out(qmp: QMPClient, intent: Intent) -> list[str]:
    """Plug in what is intended.

    When QEMU refuses one, those before it are taken out again. A QEMU that would abort on that keeps them, and they are
    named: doing the same again goes on from there.
    """
    intent.check()
    done: list[str] = []
    if intent.blocks_migration:
        await migration.block(qmp, intent.image)
    for number, path in enumerate(intent.sockets):
        directory = None if intent.directories is None else intent.directories[number]
        device = controller(path, intent.facts.free_ports[number], directory)
        try:
            await qmp.execute("device_add", device)
        except ExecuteError as error:
            left = await _roll_back(qmp, intent, done)
            stays = f" (plugged in, and stays: {', '.join(left)})" if left else ""
            raise GuestError(f"QEMU refused controller {path.parent.name}: {error}{stays}") from error
        done.append(device["id"])
    return done


async def _roll_back(qmp: QMPClient, intent: Intent, done: Sequence[str]) -> list[str]:
    """Take out what was plugged in; returns what has to stay."""
    left = list(done)
    if intent.directories is not None or not aborts_on_unplug(intent.facts):
        results = await asyncio.gather(*(remove(qmp, identity) for identity in done), return_exceptions=True)
        _raise_unexpected(results)
        left = [identity for identity, result in zip(done, results, strict=True) if result]
    if intent.blocks_migration and not left and not intent.facts.has_native:
        await migration.unblock(qmp)
    return left


def aborts_on_unplug(facts: Facts) -> bool:
    """Whether this QEMU would end, and its guest with it, when a device of its own vfio-user client is unplugged."""
    return facts.version < _FIRST_WITHOUT_ABORT


async def unplug(qmp: QMPClient, sockets: Sequence[Path]) -> None:
    """Take controllers out.

    :raises NotFoundError: one is not plugged in; none was touched.
    :raises GuestError: this QEMU would abort (none was touched), the guest refused, or did not answer.
    """
    facts = await look(qmp)
    for path in sockets:
        name, driver = path.parent.name, facts.devices.get(device_id(path))
        if driver is None:
            raise NotFoundError(f"controller {name} is not plugged in")
        if driver == DRIVER and aborts_on_unplug(facts):
            raise GuestError(
                f"QEMU {facts.version_text} aborts when a {DRIVER} device is unplugged, and the guest with it: "
                f"take its volumes away with `nvmuser controller detach {name} VOLUME --force`, which every guest "
                "handles (guests with --via libvfio can be unplugged from)"
            )
    results = await asyncio.gather(*(remove(qmp, device_id(path)) for path in sockets), return_exceptions=True)
    _raise_unexpected(results)
    taken = {device_id(path) for path, result in zip(sockets, results, strict=True) if not result}
    if DRIVER not in (*facts.unnamed, *(kind for name, kind in facts.devices.items() if name not in taken)):
        await migration.unblock(qmp)
    if failures := [str(result) for result in results if result]:
        raise GuestError("; ".join(failures))


def _raise_unexpected(results: Sequence[BaseException | None]) -> None:
    for result in results:
        if result and not isinstance(result, GuestError):
            raise result


async def remove(qmp: QMPClient, identity: str) -> None:
    """Unplug any device, and wait until the guest has let go of it.

    :raises GuestError: the guest refused, or did not answer.
    """
    names = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
    # Listening before the command: the event may come before its reply.
    with qmp.listener(names, lambda event: _device(event) == identity) as events:
        try:
            await qmp.execute("device_del", {"id": identity})
            event = await asyncio.wait_for(events.get(), _DELETE_DEADLINE)
        except ExecuteError as error:
            raise GuestError(f"QEMU does not unplug {identity}: {error}") from error
        except TimeoutError:
            raise GuestError(
                f"the guest did not let go of {identity} within {_DELETE_DEADLINE:g} s; it may yet"
            ) from None
    if event["event"] == "DEVICE_UNPLUG_GUEST_ERROR":
        raise GuestError(f"the guest refused to let go of {identity}")


def _device(event: Any) -> str:
    return str(event.get("data", {}).get("device", ""))
