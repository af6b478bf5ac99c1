"""Several targets under one supervisor: made, killed, taken over, ended, and controllers that move between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvmuser.errors import ConflictError, NvmuserError, RpcError, TargetError, TargetNotRunning
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, TargetSettings, Volume
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor.process import named_in
from nvmuser.supervisor.spdk import Options

MIB = 1 << 20
QUIET = Options(profile="eco", hugepages=False)
FAST = TargetSettings("fast", profile="eco")
PATIENCE = 60.0


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """With a short path, for the sockets in it."""
    return StateDir(tmp_path_factory.mktemp("s"))


class Deployment:
    """Controllers a on target spdk, b on target fast."""

    def __init__(self, state: StateDir) -> None:
        self.state = state

    async def change(self, change: Change) -> Any:
        return await control.submit(self.state, change)

    async def targets(self) -> dict[str, Any]:
        found: dict[str, Any] = (await control.ask(self.state, "status"))["targets"]
        return found

    async def until(self, name: str, pid: int) -> dict[str, Any]:
        """The facts of a target once another process than `pid` serves."""
        async with asyncio.timeout(PATIENCE):
            while not ((found := (await self.targets())[name])["ready"] and found["pid"] != pid):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return found  # type: ignore[no-any-return]

    async def in_sync(self) -> None:
        drift = await control.ask(self.state, "drift")
        drift.pop("in_sync")
        assert not any(drift.values()), drift

    async def subsystems(self, target: str) -> set[str]:
        async with await Client.connect(self.state.rpc_socket_of(target)) as rpc:
            found = await rpc.call("nvmf_get_subsystems")
        return {one["nqn"].rpartition(":")[2] for one in found if one["subtype"] == "NVMe"}

    async def successor(self, pid: int) -> int:
        """The pid of the process that takes over from `pid`, once something is served by it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for path in self.state.run.glob("target-fast-*.pid"):
                    other, _ = named_in(path)
                    socket = self.state.run / f"{path.stem.replace('target', 'spdk')}.sock"
                    if other not in (0, pid) and await _has_subsystem(socket):
                        return other
                await asyncio.sleep(0.01)

    async def kill_supervisor(self) -> None:
        pid = int(self.state.lock.read_text())
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pid, 0)

    async def move(self, name: str, target: str) -> Any:
        before = control.load(self.state).controller(name)
        return await self.change(Change(update=(replace(before, target=target),)))


async def _has_subsystem(socket: Path) -> bool:
    with contextlib.suppress(RpcError):
        async with await Client.connect(socket) as rpc:
            return any(one["subtype"] == "NVMe" for one in await rpc.call("nvmf_get_subsystems"))
    return False


@pytest.fixture
async def deployment(state: StateDir) -> AsyncIterator[Deployment]:
    deployment = Deployment(state)
    async with daemon.running(state, QUIET):
        create = (
            FAST,
            Volume("a", size=4 * MIB),
            Volume("b", size=4 * MIB),
            Controller("a", (Namespace("a"),)),
            Controller("b", (Namespace("b"),), target="fast"),
        )
        outcome = await deployment.change(Change(create=create))
        assert (outcome.problems, outcome.pending) == ((), False)
        yield deployment


async def test_what_happens_to_one_happens_to_it_alone(deployment: Deployment) -> None:
    assert await deployment.subsystems("spdk") == {"a"}
    assert await deployment.subsystems("fast") == {"b"}
    await deployment.in_sync()
    before = await deployment.targets()
    os.kill(before["fast"]["pid"], signal.SIGKILL)
    after = await deployment.until("fast", before["fast"]["pid"])
    assert (after["restarts"], after["last_ending"]) == (1, "killed by SIGKILL")
    spdk = (await deployment.targets())["spdk"]
    assert (spdk["pid"], spdk["restarts"]) == (before["spdk"]["pid"], 0)
    await deployment.in_sync()


async def test_controllers_move_and_a_target_goes_when_nothing_is_on_it(deployment: Deployment) -> None:
    for target in ("spdk", "fast", "spdk"):
        await deployment.move("b", target)
        assert await deployment.subsystems("fast") == ({"b"} if target == "fast" else set())
        await deployment.in_sync()
    pid = (await deployment.targets())["fast"]["pid"]
    await deployment.change(Change(delete=(FAST.key,)))
    assert set(await deployment.targets()) == {"spdk"}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not [path.name for path in deployment.state.run.iterdir() if "fast" in path.name]
    await deployment.in_sync()


async def test_a_target_that_cannot_start_is_not_made(deployment: Deployment) -> None:
    # No program: SPDK's own refusals look the same to the supervisor.
    (deployment.state.run / "spdk-other-1.sock.lock").mkdir()
    with pytest.raises(NvmuserError, match="target other: "):
        await deployment.change(Change(create=(replace(FAST, name="other"),)))
    assert set(await deployment.targets()) == {"spdk", "fast"}
    assert {target.name for target in control.load(deployment.state).targets()} == {"spdk", "fast"}
    with pytest.raises(ConflictError, match="in use by controller b"):
        await deployment.change(Change(delete=(FAST.key,)))


async def test_restarts_and_standbys_are_each_targets_own(deployment: Deployment) -> None:
    before = await deployment.targets()
    await control.ask(deployment.state, "restart", {"target": "fast"})
    after = await deployment.targets()
    assert after["spdk"]["pid"] == before["spdk"]["pid"]
    assert after["fast"]["pid"] != before["fast"]["pid"]
    await deployment.change(Change(update=(replace(FAST, standby=True),)))
    found = await deployment.targets()
    assert (found["spdk"]["standby"], bool(found["fast"]["standby"])) == (None, True)
    os.kill(found["fast"]["pid"], signal.SIGKILL)
    served = await deployment.until("fast", found["fast"]["pid"])
    assert served["pid"] == found["fast"]["standby"]


async def test_a_rolling_restart(deployment: Deployment) -> None:
    """Controllers one by one; then what no controller shows."""
    more = [Controller(f"c{n}", (Namespace(f"c{n}"),), target="fast") for n in range(3)]
    await deployment.change(Change(create=(*(Volume(one.name, size=4 * MIB) for one in more), *more)))
    before = await deployment.targets()
    assert await control.ask(deployment.state, "restart", {"rolling": True}) == 5
    after = await deployment.targets()
    for name, count in (("spdk", 1), ("fast", 1)):
        assert after[name]["pid"] != before[name]["pid"]
        assert (after[name]["restarts"], after[name]["last_ending"]) == (count, "exited with status 0")
    assert await deployment.subsystems("fast") == {"b", "c0", "c1", "c2"}
    await deployment.in_sync()


@pytest.mark.parametrize("victim", ["old", "new"])
async def test_one_of_both_dies_in_a_rolling_restart(deployment: Deployment, victim: str) -> None:
    more = [Controller(f"c{n}", (Namespace(f"c{n}"),), target="fast") for n in range(20)]
    await deployment.change(Change(create=(*(Volume(one.name, size=4 * MIB) for one in more), *more)))
    before = (await deployment.targets())["fast"]
    restart = asyncio.create_task(control.ask(deployment.state, "restart", {"target": "fast", "rolling": True}))
    pid = before["pid"]
    if victim == "new":
        pid = await deployment.successor(pid)
    else:
        await deployment.successor(pid)
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(TargetError):
        await restart
    after = (await deployment.until("fast", before["pid"] if victim == "old" else 0))["pid"]
    assert len(await deployment.subsystems("fast")) == 21
    assert (after == before["pid"]) == (victim == "new")
    await deployment.in_sync()


async def test_a_supervisor_that_is_killed_is_followed_by_one_that_takes_all_over(deployment: Deployment) -> None:
    state, before = deployment.state, await deployment.targets()
    await deployment.kill_supervisor()
    with pytest.raises(TargetNotRunning):
        await deployment.targets()
    await asyncio.to_thread(daemon.start, state, QUIET)
    after = await deployment.targets()
    assert {name: facts["pid"] for name, facts in after.items()} == {
        name: facts["pid"] for name, facts in before.items()
    }
    await deployment.in_sync()


async def test_a_move_that_a_killed_supervisor_has_begun_is_finished_by_the_next(deployment: Deployment) -> None:
    """Recorded, and nothing else done."""
    state, before = deployment.state, await deployment.targets()
    await deployment.kill_supervisor()
    await control.submit(state, Change(update=(replace(control.load(state).controller("b"), target="spdk"),)))
    await asyncio.to_thread(daemon.start, state, QUIET)
    assert await deployment.subsystems("spdk") == {"a", "b"}
    assert await deployment.subsystems("fast") == set()
    assert (await deployment.targets())["fast"]["pid"] == before["fast"]["pid"]
    await deployment.in_sync()


async def test_an_endpoint_that_dies_takes_all_targets_with_it(deployment: Deployment) -> None:
    before = await deployment.targets()
    pid, _ = named_in(deployment.state.run / "endpoint.pid")
    os.kill(pid, signal.SIGKILL)
    for name in before:
        await deployment.until(name, before[name]["pid"])
    await deployment.in_sync()
