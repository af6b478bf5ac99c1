"""Keys of encrypted volumes in SPDK: given before a volume is opened, taken away when it is gone.

Owns what is in the target's memory of them. A target that has a key leaves no core file: keys would be in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource

from nvmuser.errors import NvmuserError, RpcError
from nvmuser.hostfs import volume_keys
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.backends.crypt import key_name
from nvmuser.reconcile.calls import Problem
from nvmuser.rpc import methods
from nvmuser.rpc.client import Client

_NO_CORE = 1
"""RLIMIT_CORE: too little for a core file, and the kernel starts no program for one either (core(5))."""


async def settle(rpc: Client, state: StateDir, desired: Desired, actual: Actual) -> dict[Key, Problem]:
    """Give SPDK the keys of what is to be opened, and take away those of what is gone; returns what has no key."""
    entries = [entry for key, entry in desired.entries.items() if key.kind == "volume"]
    volumes = [
        entry.object for entry in entries if isinstance(entry.object, Volume) and entry.object.backend == "crypt"
    ]
    if not volumes:
        return {}
    known = {key["name"] for key in await rpc.call("accel_crypto_keys_get")}
    closed = desired.closed | {entry.object.key for entry in entries if entry.deleting}
    problems: dict[Key, Problem] = {}
    for volume in volumes:
        there = backends.find(volume, desired, actual) is not None
        name = key_name(volume)
        if volume.key not in closed and not there and name not in known:
            try:
                await _give(rpc, state, volume)
            except NvmuserError as error:
                problems[volume.key] = Problem(volume.key, str(error))
        elif volume.key in closed and not there and name in known:
            request = methods.remove_volume_key(name)
            with contextlib.suppress(RpcError):  # in use still: the next act does it
                await rpc.call(request.method, request.params)
    return problems


async def _give(rpc: Client, state: StateDir, volume: Volume) -> None:
    """:raises NvmuserError: there is no key, or SPDK does not take it; it is not in the message."""
    key = await asyncio.to_thread(volume_keys.load, volume, state)
    if pid := rpc.peer_pid:
        for process in (0, pid):
            resource.prlimit(process, resource.RLIMIT_CORE, (_NO_CORE, _NO_CORE))
    request = methods.add_volume_key(key_name(volume), *key.halves)
    try:
        await rpc.call(request.method, request.params)
    except RpcError as error:
        raise NvmuserError(f"SPDK does not take its key: {getattr(error, 'message', type(error).__name__)}") from None
