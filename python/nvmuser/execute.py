"""Carries out a plan: every call as soon as those before it have succeeded, all of them in one pipeline.

Owns no decision. A failed call stops what depends on it, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nvmuser.errors import NvmuserError, RpcConnectionError
from nvmuser.plan import Call
from nvmuser.rpc.client import Client

_CALL_TIMEOUT_S = 60.0
"""A call's own deadline. Formatting a thick lvol or attaching a remote takes seconds."""


@dataclass
class Result:
    """What became of each call."""

    done: list[Call] = field(default_factory=list)
    failed: list[tuple[Call, NvmuserError]] = field(default_factory=list)
    skipped: list[Call] = field(default_factory=list)

    @property
    def lost(self) -> bool:
        """The connection ended: what was in flight may have been carried out."""
        return any(isinstance(error, RpcConnectionError) for _, error in self.failed)


async def execute(rpc: Client, calls: Sequence[Call], before: Callable[[Call], None]) -> Result:
    """Never raises for a call that fails: that is in the result.

    :param before: makes this machine ready for a call, when it is about to be made. What it raises fails the
        call.
    """
    result = Result()
    waits_for = [len(set(call.after)) for call in calls]
    dependents: list[list[int]] = [[] for _ in calls]
    for number, call in enumerate(calls):
        for earlier in set(call.after):
            dependents[earlier].append(number)

    async def run(number: int) -> None:
        call = calls[number]
        try:
            before(call)
            await rpc.call(call.request.method, call.request.params, timeout=_CALL_TIMEOUT_S)
        except NvmuserError as error:
            result.failed.append((call, error))
            return
        result.done.append(call)
        for dependent in dependents[number]:
            waits_for[dependent] -= 1
            if waits_for[dependent] == 0:
                group.create_task(run(dependent))

    async with asyncio.TaskGroup() as group:
        for number, count in enumerate(waits_for):
            if count == 0:
                group.create_task(run(number))
    finished = {id(call) for call in result.done} | {id(call) for call, _ in result.failed}
    result.skipped = [call for call in calls if id(call) not in finished]
    return result
