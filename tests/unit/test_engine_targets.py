"""The engine with two targets, each a model of SPDK: moves, refused and killed at every step."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from spdk_model import part_of_actual
from test_engine import Killed, ModelRpc

from nvmuser.errors import ConflictError, RpcConnectionError, RpcServerError, RpcTimeoutError, TargetError
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, TargetSettings, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import engine as engine_module
from nvmuser.reconcile import reopen as reopen_module
from nvmuser.reconcile import site as site_module
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.plan import plan
from nvmuser.rpc import Client

MIB = 1 << 20


class Told:
    """What guests are told, and targets that are ended."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []
        self.can_end = True

    async def leaving(self, controllers: Collection[str], same: Collection[str]) -> None:
        self.events.append(("leaving", *sorted(controllers)))

    def left(self, controllers: Collection[str]) -> None:
        self.events.append(("left", *sorted(controllers)))

    async def end_one(self, name: str, _rpc: Client) -> bool:
        self.events.append(("end", name))
        return self.can_end


class World:
    """Targets `spdk` and `fast`, each with a controller that shows a volume of its own: x with a, y with b."""

    def __init__(self, root: Path) -> None:
        self.state = StateDir(root)
        self.rpc = {"spdk": ModelRpc(), "fast": ModelRpc()}
        self.told = Told()

    @contextlib.contextmanager
    def engine(self) -> Iterator[Engine]:
        with contextlib.closing(Engine(self.state)) as engine:
            for name, rpc in self.rpc.items():
                engine.site(name).rpc = cast(Client, rpc)
            engine.transit.guests = self.told
            engine.transit.deadline = 0.3
            yield engine

    async def fill(self, engine: Engine) -> None:
        await engine.change(Change(create=(
            TargetSettings("fast"),
            Volume("a", size=MIB), Volume("b", size=MIB),
            Controller("x", (Namespace("a"),)), Controller("y", (Namespace("b"),), target="fast"),
        )))  # fmt: skip
        self.told.events.clear()

    def bdevs(self, target: str) -> set[str]:
        return set(self.rpc[target].spdk.bdevs)

    def watch(self) -> None:
        """From now on, nothing may be open in both."""

        def trap(_effect: str) -> None:
            assert not self.bdevs("spdk") & self.bdevs("fast")

        for rpc in self.rpc.values():
            rpc.trap = trap

    def assert_whole(self, engine: Engine) -> None:
        for name, rpc in self.rpc.items():
            found = plan(engine.site(name).wanted, rpc.spdk.actual, self.state.target_dir)
            assert (found.calls, found.conflicts, found.foreign) == ((), (), ()), name


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    async def query(rpc: ModelRpc) -> Actual:
        return rpc.spdk.actual

    async def query_part(rpc: ModelRpc, part: Desired) -> Actual:
        return part_of_actual(rpc.spdk.actual, part)

    for module in (engine_module, site_module, reopen_module):
        monkeypatch.setattr(module, "query", query)
    monkeypatch.setattr(site_module, "query_part", query_part)
    return World(tmp_path)


def to(engine: Engine, name: str, target: str) -> Change:
    return Change(update=(replace(engine.desired().controller(name), target=target),))


async def test_each_target_has_its_own(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        assert (world.bdevs("spdk"), world.bdevs("fast")) == ({"a"}, {"b"})
        assert engine.controllers("spdk") == ["x"]
        assert engine.controllers("fast") == ["y"]
        status = await engine.status()
        assert set(status.in_sync) == {wanted.key for wanted in engine.desired().wanted()}
        assert status.foreign == ()


async def test_a_move(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        world.watch()
        outcome = await engine.change(to(engine, "x", "fast"))
        assert outcome.problems == ()
        assert (world.bdevs("spdk"), world.bdevs("fast")) == (set(), {"a", "b"})
        assert world.told.events == [("leaving", "x"), ("left", "x")]
        world.assert_whole(engine)


async def test_a_volume_that_nobody_shows_goes_to_the_target_of_its_controller(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        await engine.change(Change(create=(Volume("c", size=MIB),)))
        assert "c" in world.bdevs("spdk")
        world.watch()
        y = engine.desired().controller("y")
        await engine.change(Change(update=(replace(y, namespaces=(*y.namespaces, Namespace("c"))),)))
        assert world.bdevs("fast") == {"b", "c"}
        await engine.change(Change(delete=(Key("controller", "y"),)))
        assert world.bdevs("spdk") == {"a", "b", "c"}
        await engine.change(Change(delete=(TargetSettings("fast").key,)))
        world.assert_whole(engine)
        assert TargetSettings("fast").key not in engine.desired().entries


async def test_what_the_new_target_refuses_goes_back(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)

        def refuse(effect: str) -> None:
            if effect == "before nvmf_subsystem_add_listener":
                raise RpcServerError("nvmf_subsystem_add_listener", {}, -22, "no")

        world.rpc["fast"].trap = refuse
        with pytest.raises(TargetError, match="nothing was changed"):
            await engine.change(to(engine, "x", "fast"))
        assert engine.desired().controller("x").target == "spdk"
        assert world.told.events == [("leaving", "x"), ("left", "x")] * 2
        world.rpc["fast"].trap = lambda _: None
        world.assert_whole(engine)


async def test_a_new_target_that_dies_meanwhile(world: World) -> None:
    """The old one is still there: nobody waits for the new one's successor."""
    with world.engine() as engine:
        await world.fill(engine)

        def die(_effect: str) -> None:
            raise RpcConnectionError("gone")

        world.rpc["fast"].trap = die
        with pytest.raises(TargetError, match="target fast has ended"):
            await engine.change(to(engine, "x", "fast"))
        assert engine.controllers("spdk") == ["x"]
        assert world.bdevs("spdk") == {"a"}


async def test_an_old_target_that_dies_meanwhile_has_let_go(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)

        def die(effect: str) -> None:
            if effect == "before bdev_aio_delete":
                raise RpcConnectionError("gone")

        world.rpc["spdk"].trap = die
        outcome = await engine.change(to(engine, "x", "fast"))
        assert (outcome.problems, outcome.pending) == ((), False), (
            "it is there: who comes after the old one is no matter"
        )
        assert world.told.events == [("leaving", "x"), ("end", "spdk"), ("left", "x")]
        assert world.bdevs("fast") == {"a", "b"}


async def test_what_a_controller_shows_no_more_goes_home(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        world.watch()
        methods: list[str] = []
        world.rpc["fast"].trap = methods.append
        y = engine.desired().controller("y")
        await engine.change(Change(update=(replace(y, namespaces=()),)))
        assert (world.bdevs("spdk"), world.bdevs("fast")) == ({"a", "b"}, set())
        assert methods.index("before nvmf_subsystem_remove_ns") < methods.index("before bdev_aio_delete")
        world.assert_whole(engine)


async def test_one_that_does_not_let_go_and_cannot_be_ended(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        world.told.can_end = False

        def refuse(effect: str) -> None:
            if effect == "before bdev_aio_delete":
                raise RpcServerError("bdev_aio_delete", {}, -16, "busy")

        world.rpc["spdk"].trap = refuse
        with pytest.raises(TargetError, match=r"has not closed volume a within 0.3 s; nothing was changed"):
            await engine.change(to(engine, "x", "fast"))
        assert world.bdevs("fast") == {"b"}
        assert ("left", "x") not in world.told.events
        world.assert_whole(engine)


async def test_nobody_leaves_for_a_target_that_is_not_there(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        engine.site("fast").lost()
        with pytest.raises(TargetError, match="target fast does not serve"):
            await engine.change(to(engine, "x", "fast"))
        assert world.told.events == []
        with pytest.raises(ConflictError, match="in use by controller y"):
            await engine.change(Change(delete=(TargetSettings("fast").key,)))
        world.rpc["fast"] = ModelRpc()
        engine.site("fast").rpc = cast(Client, world.rpc["fast"])
        await engine.reconcile(["fast"])
        world.assert_whole(engine)


async def test_killed_at_every_step(world: World, tmp_path: Path) -> None:
    step = 0
    while True:
        one = World(tmp_path / str(step))
        with one.engine() as engine:
            await one.fill(engine)
            left = step

            def trap(_effect: str, one: World = one) -> None:
                nonlocal left
                assert not one.bdevs("spdk") & one.bdevs("fast")
                left -= 1
                if left == -1:
                    raise Killed

            for rpc in one.rpc.values():
                rpc.trap = trap
            with contextlib.suppress(Killed):
                await engine.change(to(engine, "x", "fast"))
        one.watch()
        with one.engine() as engine:
            for name in ("spdk", "fast"):
                await engine.site(name).look()
            await engine.reconcile()
            one.assert_whole(engine)
            assert one.bdevs("fast") == {"a", "b"}
        if left >= 0:
            assert step > 10
            return
        step += 1


async def test_a_target_that_hangs_holds_nobody_up_who_is_on_another(world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        hung = engine.site("spdk")
        async with hung._turn:
            y = engine.desired().controller("y")
            async with asyncio.timeout(5):
                await engine.change(Change(update=(replace(y, mode="0666"),)))
                await engine.reconcile(["fast"])


async def test_one_that_does_not_answer_leaves_the_others_in_the_status(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        real = site_module.query

        async def query(rpc: Client) -> Actual:
            if rpc is engine.site("fast").rpc:
                raise RpcTimeoutError("no answer")
            return await real(rpc)

        monkeypatch.setattr(site_module, "query", query)
        status = await engine.status()
        assert Key("volume", "a") in status.in_sync
        assert Key("volume", "b") in status.missing
        engine.rpc = None
        with pytest.raises(RpcTimeoutError):
            await engine.status()
