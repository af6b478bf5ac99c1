"""Controllers into a running QEMU, ours or anybody's, and out again, over QMP.

Owns the order of events: all is checked before the first change, and what was changed is undone when a later step is
refused, where QEMU can do that. It does not start QEMU and does not make controllers.

`device_del` is never sent to a QEMU that aborts on it; see `unplug`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient

from nvmuser.errors import GuestError, NotFoundError
from nvmuser.guest.preflight import preflight
from nvmuser.guest.qemu import DRIVER, controller, device_id
from nvmuser.guest.qmp import Facts, look

_DELETE_DEADLINE = 30.0

_FIRST_WITHOUT_ABORT = (11, 2)
"""Up to 11.1.3 `device_del` aborts QEMU: the PBA region is torn down after its parent dropped it
(memory_region_del_subregion: Assertion `subregion->container == mr' failed)."""


async def plug(
    qmp: QMPClient, sockets: Sequence[Path], *, user: int | None = None, facts: Facts | None = None
) -> list[str]:
    """Plug controllers in, each into a free root port; returns the ids in QEMU of those that were not in it already.

    Nothing is touched when something stands in the way. When QEMU refuses one, those before it are taken out again; a
    QEMU that would abort on that keeps them, and they are named: doing the same again goes on from there.

    :param user: as whom QEMU runs; None: as we do.
    :param facts: what QEMU is made of, if that is known.
    :raise GuestError: something stands in the way, or QEMU refused.
    """
    facts = facts or await look(qmp)
    wanted = [path for path in sockets if device_id(path) not in facts.devices]
    if problems := preflight(facts, wanted, user=user):
        raise GuestError("; ".join(map(str, problems)))
    done: list[str] = []
    for path, port in zip(wanted, facts.free_ports, strict=False):
        device = controller(path, port)
        try:
            await qmp.execute("device_add", device)
        except ExecuteError as error:
            left = await _roll_back(qmp, facts, done)
            stays = f" (plugged in, and stays: {', '.join(left)})" if left else ""
            raise GuestError(f"QEMU refused controller {path.parent.name}: {error}{stays}") from error
        done.append(device["id"])
    return done


async def _roll_back(qmp: QMPClient, facts: Facts, done: Sequence[str]) -> list[str]:
    """Take out what was plugged in; returns what has to stay."""
    if aborts_on_unplug(facts):
        return list(done)
    results = await asyncio.gather(*(remove(qmp, identity) for identity in done), return_exceptions=True)
    _raise_unexpected(results)
    return [identity for identity, result in zip(done, results, strict=True) if result]


def aborts_on_unplug(facts: Facts) -> bool:
    """Whether this QEMU would end, and its guest with it, when one of our devices is unplugged."""
    return facts.version < _FIRST_WITHOUT_ABORT


async def unplug(qmp: QMPClient, sockets: Sequence[Path], *, facts: Facts | None = None) -> None:
    """Take controllers out.

    :raise NotFoundError: one is not plugged in; none was touched.
    :raise GuestError: this QEMU would abort (none was touched), the guest refused, or did not answer.
    """
    facts = facts or await look(qmp)
    for path in sockets:
        if device_id(path) not in facts.devices:
            raise NotFoundError(f"controller {path.parent.name} is not plugged in")
    if aborts_on_unplug(facts):
        name = sockets[0].parent.name
        raise GuestError(
            f"QEMU {facts.version_text} aborts when a {DRIVER} device is unplugged, and the guest with it: "
            f"take its volumes away with `nvmuser controller detach {name} VOLUME`, which every guest handles"
        )
    results = await asyncio.gather(*(remove(qmp, device_id(path)) for path in sockets), return_exceptions=True)
    _raise_unexpected(results)
    if failures := [str(result) for result in results if result]:
        raise GuestError("; ".join(failures))


def _raise_unexpected(results: Sequence[BaseException | None]) -> None:
    for result in results:
        if result and not isinstance(result, GuestError):
            raise result


async def remove(qmp: QMPClient, identity: str) -> None:
    """Unplug any device, and wait until the guest has let go of it.

    :raise GuestError: the guest refused, or did not answer.
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
