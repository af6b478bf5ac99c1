"""What `nvmuser status` shows of a target: its process, its standby, and what happened to those before.

It asks, and changes nothing.
"""

from __future__ import annotations

from typing import Any

from nvmuser.errors import RpcError
from nvmuser.supervisor.history import History
from nvmuser.supervisor.targets import Targets

_ANSWER_DEADLINE = 2.0


async def of_target(targets: Targets, history: History, *, ready: bool, hugepages: bool) -> dict[str, Any]:
    """Of one target, as JSON. Times in seconds."""
    answers = await _answers(targets)
    target, standby = targets.current, targets.standby
    return {
        "pid": target.process.pid if target else None,
        "ready": ready,
        "answers": answers,
        "down": targets.down,
        "spdk": targets.spdk.version,
        "profile": target.options.profile if target else None,
        "cores": target.options.resolve_cores() if target else None,
        "hugepages": hugepages,
        "standby": standby.process.pid if standby else None,
        "restarts": history.restarts,
        "last_ending": history.last_ending,
        "startup_s": history.startup,
        "ready_after_s": history.ready_after,
    }


async def _answers(targets: Targets) -> bool:
    target = targets.current
    if target is None:
        return False
    try:
        await target.rpc.call("spdk_get_version", timeout=_ANSWER_DEADLINE)
    except RpcError:
        return False
    return True
