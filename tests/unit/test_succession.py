"""A target whose process is replaced group by group, on models of SPDK."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from test_engine import ModelRpc
from test_engine_targets import World, world

from nvmuser.errors import RpcServerError, TargetError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Pool, Volume
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.succession import Succession
from nvmuser.rpc import Client

__all__ = ["world"]
MIB = 1 << 20


async def begun(world: World, engine: Engine) -> tuple[Succession, ModelRpc]:
    """Target spdk with a, in x, and u, which nobody shows; nothing may be open twice."""
    await world.fill(engine)
    await engine.change(Change(create=(Volume("u", size=MIB),)))
    new = ModelRpc()

    def trap(_effect: str) -> None:
        assert not world.bdevs("spdk") & set(new.spdk.bdevs)

    new.trap = world.rpc["spdk"].trap = trap
    return Succession(engine, "spdk", cast(Client, new)), new


async def test_controllers_first_and_in_the_end_what_nobody_shows(world: World) -> None:
    with world.engine() as engine:
        succession, new = await begun(world, engine)
        steps = list(succession.steps())
        assert steps == [{Key("controller", "x"), Key("volume", "a")}, {Key("volume", "u")}]
        await succession.step(steps[0])
        assert (world.bdevs("spdk"), set(new.spdk.bdevs)) == ({"u"}, {"a"})
        assert (engine.controllers("spdk"), succession.controllers) == ([], ["x"])
        assert world.told.events == [("leaving", "x"), ("left", "x")]
        await succession.step(steps[1])
        assert (world.bdevs("spdk"), set(new.spdk.bdevs)) == (set(), {"a", "u"})
        succession.end(cast(Client, new))
        assert engine.controllers("spdk") == ["x"]
        found = plan(engine.site("spdk").wanted, new.spdk.actual, world.state.target_dir)
        assert (found.calls, found.conflicts, found.foreign) == ((), (), ())


async def test_what_the_successor_refuses_stays(world: World) -> None:
    with world.engine() as engine:
        succession, new = await begun(world, engine)

        def refuse(effect: str) -> None:
            if effect == "before nvmf_subsystem_add_listener":
                raise RpcServerError("nvmf_subsystem_add_listener", {}, -22, "no")

        new.trap = refuse
        with pytest.raises(TargetError, match="controller x: add failed: no"):
            await succession.step(next(succession.steps()))
        assert (world.bdevs("spdk"), set(new.spdk.bdevs)) == ({"a", "u"}, set())
        assert engine.controllers("spdk") == ["x"]
        succession.end(cast(Client, world.rpc["spdk"]))
        world.assert_whole(engine)


async def test_a_step_after_the_end_is_refused(world: World) -> None:
    with world.engine() as engine:
        succession, _ = await begun(world, engine)
        steps = list(succession.steps())
        succession.end(cast(Client, world.rpc["spdk"]))
        with pytest.raises(TargetError, match="one of both processes has ended"):
            await succession.step(steps[0])
        assert world.told.events == []
        world.assert_whole(engine)


async def test_a_pool_goes_as_one(tmp_path: Path, world: World) -> None:
    with world.engine() as engine:
        await world.fill(engine)
        below = (Volume("disk", size=64 * MIB), Pool("p", base="disk", cluster_size=MIB))
        lvols = [Volume(name, "lvol", size=4 * MIB, pool="p") for name in ("l", "m")]
        shown = [Controller(name, (Namespace(name),)) for name in ("l", "m")]
        await engine.change(Change(create=(*below, *lvols, *shown)))
        succession = Succession(engine, "spdk", cast(Client, ModelRpc()))
        pool = next(keys for keys in succession.steps() if Key("pool", "p") in keys)
        assert {key.name for key in pool} == {"disk", "p", "l", "m"}
