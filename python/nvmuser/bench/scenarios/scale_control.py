"""What the control plane takes for many controllers: to make them, to look, to apply the same again, to restore them.

Owns a deployment for each round, with a supervisor, a target and an endpoint, as people have them. `status` and `apply`
are whole commands, with all that a person waits for, of modules that Python has compiled before, as those of any
package that is installed. `provision` compares with other clients; here it is the growth.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.memory import resident_bytes
from nvmuser.bench.measure.progress import Progress
from nvmuser.errors import NvmuserError, TargetError, summary
from nvmuser.model.change import Change
from nvmuser.model.objects import AnyObject, Controller, Namespace, Volume
from nvmuser.supervisor import control

_VOLUME_BYTES = 64 << 20
_PROCESSES = ("target", "endpoint", "supervisor")
_CLI = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


@dataclass(frozen=True)
class _Round:
    """Seconds and bytes."""

    create_s: float
    status_s: float
    compare_s: float
    reapply_s: float
    restore_s: float
    rss_bytes: Mapping[str, int]


async def measure(root: Path, count: int, rounds: int, progress: Progress) -> dict[str, Any]:
    """The medians over `rounds` deployments with `count` controllers each.

    :raises NvmuserError: something was refused, or did not come back.
    """
    found = []
    for number in range(rounds):
        progress.step(f"control, {count} controllers, round {number + 1} of {rounds}")
        found.append(await _round(root / str(number), count))
    times = {
        name: statistics.median(getattr(each, name) for each in found)
        for name in ("create_s", "status_s", "compare_s", "reapply_s", "restore_s")
    }
    memory = {name: statistics.median(each.rss_bytes[name] for each in found) for name in _PROCESSES}
    return {"per_second": count / times["create_s"], **times, "rss_bytes": memory}


def objects(count: int) -> tuple[AnyObject, ...]:
    """`count` controllers that guests can connect to, each with a null volume."""
    names = [f"c{number}" for number in range(count)]
    volumes = [Volume(name, "null", size=_VOLUME_BYTES, volatile=True) for name in names]
    return (*volumes, *(Controller(name, (Namespace(name),), volatile=True) for name in names))


async def _round(root: Path, count: int) -> _Round:
    root.mkdir(parents=True)
    async with Deployment.start(root / "s") as deployment:
        began = time.monotonic()
        outcome = await control.submit(deployment.state, Change(create=objects(count)))
        created = time.monotonic() - began
        if outcome.problems or outcome.pending:
            raise TargetError(summary(outcome.problems) or "the target has ended meanwhile")
        pids = await _pids(deployment)
        memory = {name: resident_bytes(pid) for name, pid in pids.items()}
        file = root / "spec.yaml"
        _, exported = await _command(deployment, "export")
        file.write_bytes(exported)
        for words in (("status", "--help"), ("diff", "-f", str(file))):
            await _command(deployment, *words)  # compiles
        looked, _ = await _command(deployment, "status")
        compared, _ = await _command(deployment, "apply", "-f", str(file))
        again, _ = await _command(deployment, "apply", "-f", str(file))
        restored = await _restored(deployment, pids["target"])
        await _check(deployment, count)
    return _Round(created, looked, compared, again, restored, memory)


async def _pids(deployment: Deployment) -> dict[str, int]:
    status = await deployment.control.call("status")
    return {name: status[name]["pid"] for name in _PROCESSES}


async def _command(deployment: Deployment, *words: str) -> tuple[float, bytes]:
    """Run a command of ours. Returns the seconds that it took and what it printed.

    :raises NvmuserError: it failed.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(deployment.state.root.with_name("compiled"))
    pipe = asyncio.subprocess.PIPE
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *_CLI, "--state-dir", str(deployment.state.root), *words, env=env, stdout=pipe, stderr=pipe
    )
    output, errors = await process.communicate()
    took = time.monotonic() - began
    if process.returncode:
        raise NvmuserError(f"nvmuser {words[0]}: {errors.decode(errors='replace').strip()}")
    return took, output


async def _restored(deployment: Deployment, target: int) -> float:
    """Kill the target. Returns the seconds until another serves all that the first did."""
    os.kill(target, signal.SIGKILL)
    began = time.monotonic()
    await deployment.until("another target", lambda status: _is_another(status["target"], target))
    return time.monotonic() - began


def _is_another(facts: Mapping[str, Any], target: int) -> bool:
    return bool(facts["ready"]) and facts["pid"] != target


async def _check(deployment: Deployment, count: int) -> None:
    """:raises TargetError: not everything is there again."""
    drift = await deployment.control.call("drift")
    if (there := len(drift["in_sync"])) < 2 * count:
        raise TargetError(f"{there} of {2 * count} objects are there after a restart of the target")
