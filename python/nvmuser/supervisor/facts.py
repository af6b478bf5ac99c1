"""What `nvmuser status` shows of a target: its process, its standby, and what happened to those before.

It asks, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from nvmuser.errors import RpcError
from nvmuser.paths import DEFAULT_TARGET
from nvmuser.supervisor.history import History, Trouble
from nvmuser.supervisor.life import Life

_ANSWER_DEADLINE = 2.0


async def of_target(life: Life) -> dict[str, Any]:
    """Of one target, as JSON. Times in seconds."""
    answers = await _answers(life)
    targets, history = life.targets, life.history
    target, standby = targets.current, targets.standby
    return {
        "pid": target.process.pid if target else None,
        "ready": life.ready.is_set(),
        "answers": answers,
        "down": targets.down,
        "spdk": targets.spdk.version,
        "profile": target.options.profile if target else None,
        "cores": target.options.resolve_cores() if target else None,
        "hugepages": target.hugepages if target else False,
        "memory": target.options.memory_mib << 20 if target else None,
        "standby": standby.process.pid if standby else None,
        "restarts": history.restarts,
        "last_ending": history.last_ending,
        "startup_s": history.startup,
        "ready_after_s": history.ready_after,
    }


async def _answers(life: Life) -> bool:
    target = life.targets.current
    if target is None:
        return False
    try:
        await target.rpc.call("spdk_get_version", timeout=_ANSWER_DEADLINE)
    except RpcError:
        return False
    return True


def troubles(host: History, lives: Iterable[Life]) -> list[Trouble]:
    """What is wrong still with the host and with each target, the latest last."""
    found = list(host.troubles)
    for life in lives:
        if life.targets.stable:
            life.history.resolve("target")
        prefix = "" if life.name == DEFAULT_TARGET else f"target {life.name}: "
        found += [replace(one, text=prefix + one.text) for one in life.history.troubles]
    return sorted(found, key=lambda one: one.last)
