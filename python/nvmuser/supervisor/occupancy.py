"""Which controllers serve a guest now, and which guest; what may not be taken away because of that.

Owns the questions alone. The endpoint knows its guests by their sockets (SO_PEERCRED), SPDK those that are connected to
it without the endpoint, and not their processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from nvmuser.errors import ConflictError, RpcConnectionError, RpcServerError, TargetError
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control

Look = Callable[[Sequence[Controller]], Awaitable[dict[str, str]]]
"""Of these controllers, those that serve a guest, and which."""

_LEAVING = 1.0
"""Seconds in which a guest that has just ended must have gone: SPDK takes its controller apart in the background."""
_INTERVAL = 0.05


async def check_free(state: StateDir, names: Sequence[str], *, direct: bool = False) -> None:
    """Before a QEMU connects: it would end with 'Broken pipe', or wait for its turn while its guest stands still.

    :raises ConflictError: one of these controllers serves a guest, and the error says which; or has its volumes closed.
    """
    known = {controller.name: controller for controller in control.load(state).controllers()}
    for name in names:
        if name in known and known[name].away:
            raise ConflictError(
                f"controller {name}: its volumes are another host's, where its guest is, or on its way from; if it is "
                f"not: `nvmuser controller take-back {name}`"
            )

    async def look(controllers: Sequence[Controller]) -> dict[str, str]:
        if direct:
            return await _at_target(state, controllers)
        async with control.supervisor(state) as supervisor:
            return _at_endpoint(controllers, (await supervisor.call("status"))["guests"] if supervisor else [])

    for name, who in (await _settled(look, [known[name] for name in names if name in known])).items():
        raise ConflictError(f"controller {name} serves another guest already ({who})")


async def check_losses(losses: Mapping[Controller, str], look: Look) -> None:
    """Before something is taken away from controllers.

    :param losses: what each would lose.
    :raises ConflictError: one of them serves a guest; the error says which.
    """
    taken = await _settled(look, list(losses))
    for controller, what in losses.items():
        if who := taken.get(controller.name):
            raise ConflictError(
                f"controller {controller.name} serves a guest ({who}), which would lose {what}: shut it down, or take "
                "it away with --force"
            )


async def check_unused(controller: Controller, look: Look) -> None:
    """Before its socket moves.

    :raises ConflictError: it serves a guest; the error says which.
    """
    if who := (await _settled(look, [controller])).get(controller.name):
        raise ConflictError(
            f"controller {controller.name} serves a guest ({who}), and its socket moves with its name: shut it down "
            "first"
        )


async def check_not_direct(controller: Controller, endpoint: Mapping[str, Any], target: Client | None) -> None:
    """Before its target lets go of it for a moment, which only a guest of the endpoint's survives.

    :param endpoint: its status.
    :raises ConflictError: it serves another guest.
    :raises TargetError: the endpoint does not answer.
    """
    mine = {guest["controller"] for guest in endpoint["sessions"]}
    if (found := await connected([controller], endpoint, target)) and controller.name not in mine:
        raise ConflictError(
            f"controller {controller.name} serves a guest ({found[controller.name]}) without the endpoint, which its "
            "I/O would not outlive: shut it down first"
        )


async def connected(
    controllers: Sequence[Controller], endpoint: Mapping[str, Any], target: Client | None
) -> dict[str, str]:
    """As the supervisor sees it.

    :param endpoint: its status.
    :raises TargetError: the endpoint does not answer.
    """
    if not endpoint["rss_kib"]:
        raise TargetError("the endpoint does not answer, so that nobody knows its guests: try again, or pass --force")
    found = _at_endpoint(controllers, endpoint["sessions"])
    others = [controller for controller in controllers if controller.name not in found]
    return found | (await _at_spdk(target, others) if target else {})


async def _settled(look: Look, controllers: Sequence[Controller]) -> dict[str, str]:
    """Without those that are only about to leave."""
    if not controllers:
        return {}
    end = time.monotonic() + _LEAVING
    while (found := await look(controllers)) and time.monotonic() < end:  # noqa: ASYNC110 (it has to be asked)
        await asyncio.sleep(_INTERVAL)
    return found


def _at_endpoint(controllers: Sequence[Controller], guests: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = {controller.name for controller in controllers}
    return {guest["controller"]: f"process {guest['pid']}" for guest in guests if guest["controller"] in names}


async def _at_target(state: StateDir, controllers: Sequence[Controller]) -> dict[str, str]:
    found: dict[str, str] = {}
    async with control.spdk(state) as targets:
        for name, rpc in targets.items():
            found |= await _at_spdk(rpc, [controller for controller in controllers if controller.target == name])
    return found


async def _at_spdk(target: Client, controllers: Sequence[Controller]) -> dict[str, str]:
    calls = (target.call("nvmf_subsystem_get_controllers", {"nqn": controller.nqn}) for controller in controllers)
    connected = await asyncio.gather(*calls, return_exceptions=True)
    found = dict(zip((controller.name for controller in controllers), connected, strict=True))
    for result in found.values():
        if isinstance(result, BaseException) and not isinstance(result, RpcServerError | RpcConnectionError):
            raise result
    # It has no such subsystem, or has just ended: no guest of it either way.
    return {name: "seen by SPDK" for name, result in found.items() if result and not isinstance(result, BaseException)}
