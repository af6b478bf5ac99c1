"""Snapshots of all volumes of a controller at one moment: none has a write that came after one that another lacks.

The controller is closed as for a move to another target (`transit`), and opened where it was when they are made: its
guest waits for that, and notices nothing else.
"""

from __future__ import annotations

import contextlib

from nvmuser.errors import NvmuserError, RpcConnectionError, TargetError, TargetNotRunning
from nvmuser.model import snapshots
from nvmuser.model.change import Change
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.outcome import Outcome


async def snapshot_together(engine: Engine, name: str, suffix: str) -> Outcome:
    """Carry it out. Nothing else is changed meanwhile: its caller sees to that.

    :param name: of the controller, to which no guest is connected but through the endpoint.
    :raises NvmuserError: there are none of these snapshots.
    """
    desired = engine.desired()
    controller, change = desired.controller(name), snapshots.together(desired, name, suffix)
    engine.check(change)  # before a guest waits
    if engine.site(controller.target).rpc is None:
        raise TargetNotRunning(f"controller {name}: its target does not serve; start it with `nvmuser target start`")
    try:
        async with engine.transit.closed(controller.key, controller.target):
            return await _made(engine, change)
    finally:
        # A target that has ended meanwhile is replaced, and everything applied to the next.
        with contextlib.suppress(RpcConnectionError):
            await engine.reconcile([controller.target], changed={controller.key, *controller.depends_on}, urgent=True)


async def _made(engine: Engine, change: Change) -> Outcome:
    outcome = await engine.change(change)
    if outcome.pending:
        # The next target would make them at another moment than this.
        try:
            await engine.change(Change(delete=tuple(volume.key for volume in change.create), wipe=True))
        except NvmuserError as error:
            raise TargetError(f"the target has ended, and what was recorded stays: {error}") from error
        raise TargetError("the target has ended meanwhile: there are no snapshots; try again")
    return outcome
