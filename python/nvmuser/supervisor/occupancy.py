"""Which controllers serve a guest now, and which.

Owns the question alone: the endpoint knows its guests, SPDK those that are connected to it without the endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nvmuser.errors import ConflictError
from nvmuser.hostfs.sockets import answers
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control


async def check_free(state: StateDir, names: Sequence[str], *, direct: bool = False) -> None:
    """Before a QEMU connects: it would end with 'Broken pipe', or wait for its turn while its guest stands still.

    :raise ConflictError: one of these controllers serves a guest; the error says which.
    """
    known = {one.name: one for one in control.load(state).controllers()}
    for name, who in (await taken(state, [known[name] for name in names if name in known], direct=direct)).items():
        raise ConflictError(f"controller {name} serves another guest already ({who})")


async def taken(state: StateDir, controllers: Sequence[Controller], *, direct: bool = False) -> dict[str, str]:
    """Those that are connected, and to whom, in words."""
    if not controllers:
        return {}
    if direct:
        return await _at_target(state, controllers)
    async with control.supervisor(state) as supervisor:
        guests = (await supervisor.call("status"))["guests"] if supervisor else []
    names = {one.name for one in controllers}
    return {guest["controller"]: f"process {guest['pid']}" for guest in guests if guest["controller"] in names}


async def _at_target(state: StateDir, controllers: Sequence[Controller]) -> dict[str, str]:
    """SPDK does not tell the process. The endpoint is among its guests as well."""
    if not answers(state.rpc_socket):
        return {}
    async with await Client.connect(state.rpc_socket) as target:
        calls = (target.call("nvmf_subsystem_get_controllers", {"nqn": one.nqn}) for one in controllers)
        connected = await asyncio.gather(*calls)
    return {one.name: "seen by SPDK" for one, found in zip(controllers, connected, strict=True) if found}
