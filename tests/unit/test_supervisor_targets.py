"""Which target serves and when another is started, on stubs and a clock that only sleeping moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from nvmuser.errors import TargetError
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.supervisor.history import History
from nvmuser.supervisor.logs import Limits
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.supervisor.targets import Targets
from nvmuser.toolchain import Spdk

SPDK = Spdk(Path("/spdk"), "26.01")
PAUSES = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]


class StubProcess:
    pid = 4711
    ending = "exited with status 1"

    def __init__(self) -> None:
        self.alive = True

    async def kill(self) -> None:
        self.alive = False


class Stub:
    """As far as `Targets` knows a target."""

    rpc_socket = Path("/run/spdk-7.sock")
    rpc = None

    def __init__(self, options: Options) -> None:
        self.spdk, self.options, self.process = SPDK, options, StubProcess()
        self.closed = False

    async def park(self) -> None:
        return

    async def unpark(self) -> None:
        return

    async def stop(self) -> None:
        await self.process.kill()
        await self.close()

    async def close(self) -> None:
        self.closed = True


class World:
    """Targets with a clock, and what was started."""

    def __init__(self, root: Path) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.started: list[Stub] = []
        self.failures = 0
        self.history = History()
        self.targets = Targets(
            StateDir(root),
            SPDK,
            self.history,
            Limits(),
            lambda: Options(profile="eco"),
            start=cast(Callable[..., Awaitable[Target]], self.start),
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds:
            self.pauses.append(seconds)

    async def start(self, _state: StateDir, _spdk: Spdk, options: Options, _generation: int) -> Stub:
        if self.failures:
            self.failures -= 1
            raise TargetError("SPDK exited with status 1: no memory (log: /log)")
        self.started.append(Stub(options))
        return self.started[-1]

    async def live(self, seconds: float, *, planned: bool = False) -> None:
        """A target that serves for so long."""
        await self.targets.next_for_certain()
        self.targets.is_ready()
        self.now += seconds
        self.targets.bury(planned=planned)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_thousand_targets_that_die_at_once(world: World) -> None:
    for _ in range(1000):
        await world.live(0.0)
    assert world.pauses == [*PAUSES, *[10.0] * (999 - 2 - len(PAUSES) - 1)]
    assert world.targets.down == "1000 targets in a row have failed; up to 10 s between attempts"
    assert world.history.restarts == 1000
    assert len(world.history.troubles) == 1
    assert "exited with status 1; see" in str(world.history.troubles[0])
    assert str(world.history.troubles[0]).endswith("(999 times)")


async def test_one_that_never_starts(world: World) -> None:
    world.failures = 1000
    await world.targets.next_for_certain()
    assert sum(world.pauses) == pytest.approx(sum(PAUSES) + 10.0 * (1000 - 3 - len(PAUSES)))
    assert "no memory" in str(world.history.troubles[0])


async def test_a_death_after_a_time_of_service_is_the_first_again(world: World) -> None:
    for _ in range(6):
        await world.live(0.0)
    assert world.targets.down
    await world.live(60.0)
    assert world.targets.down is None
    world.pauses.clear()
    for _ in range(3):
        await world.live(0.0)
    assert world.pauses == []


async def test_what_is_over_is_not_shown(world: World) -> None:
    for _ in range(6):
        await world.live(0.0)
    assert len(world.history.troubles) == 1
    await world.live(60.0)
    assert world.history.troubles == []
    for _ in range(2):
        await world.live(0.0)
    (trouble,) = world.history.troubles
    assert trouble.times == 7


async def test_kills_by_hand_cost_no_pause(world: World) -> None:
    for _ in range(50):
        await world.live(3.0)
    assert world.pauses == []
    assert world.history.troubles == []


async def test_a_planned_end_is_no_failure(world: World) -> None:
    for _ in range(10):
        await world.live(0.0, planned=True)
    assert world.pauses == []
    assert world.history.troubles == []


async def test_a_hold_is_kept_and_said(world: World) -> None:
    world.targets.hold(30)
    assert world.targets.down == "held for another 30 s"
    await world.targets.next()
    assert world.pauses == [30]
    assert world.targets.down is None


class Preparing:
    """The step of a standby in which a test looks at it."""

    def __init__(self) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def prepare(self, _rpc: Any) -> None:
        self.reached.set()
        await self.go_on.wait()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Preparing:
    preparing = Preparing()
    monkeypatch.setattr(Engine, "prepare", preparing.prepare)
    return preparing


async def test_a_standby_is_not_left_behind_by_who_is_stopped_meanwhile(world: World, prepared: Preparing) -> None:
    raising = asyncio.create_task(world.targets.raise_standby())
    await prepared.reached.wait()
    raising.cancel()
    with pytest.raises(asyncio.CancelledError):
        await raising
    (stub,) = world.started
    assert not stub.process.alive
    assert stub.closed
    assert world.targets.standby is None


async def test_two_who_want_a_standby_get_one(world: World, prepared: Preparing) -> None:
    both = asyncio.gather(world.targets.raise_standby(), world.targets.raise_standby())
    prepared.go_on.set()
    await both
    assert len(world.started) == 1
    assert world.targets.standby is cast(Any, world.started[0])
    assert await world.targets.next() is cast(Any, world.started[0])


async def test_a_standby_is_taken_away_while_the_target_goes_on(world: World, prepared: Preparing) -> None:
    prepared.go_on.set()
    serving = await world.targets.next()
    await world.targets.raise_standby()
    stub = cast(Stub, world.targets.standby)
    await world.targets.drop_standby()
    await world.targets.drop_standby()
    assert (stub.closed, world.targets.standby) == (True, None)
    assert world.targets.current is serving
    assert serving.process.alive
