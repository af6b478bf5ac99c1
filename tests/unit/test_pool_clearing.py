"""How pools and their volumes are cleared, by what they lie on; and calls that write all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from nvmuser.errors import RpcTimeoutError
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Pool, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.reconcile import execute as execute_module
from nvmuser.reconcile.actual import Actual, Bdev, Lvstore, RemoteController
from nvmuser.reconcile.calls import Call, Needs
from nvmuser.reconcile.execute import Gate, execute
from nvmuser.reconcile.plan import plan
from nvmuser.rpc import Client
from nvmuser.rpc.methods import Request

MIB = 1 << 20
NQN = "nqn.2026-11.org.example:far"
BELOW: tuple[AnyObject, ...] = (
    Volume("f", size=256 * MIB, path="/v/f"),
    Volume("g", size=256 * MIB, path="/v/g"),
    Volume("a", size=64 * MIB, path="/v/a"),
    Volume("b", size=64 * MIB, path="/v/b"),
    Volume("m", "raid1", members=("a", "b")),
    Volume("slow", "delay", base="m", latency_us=1),
    Remote("r", nqn=NQN, paths=(RemotePath("10.0.0.1"),)),
    Volume("far", "remote", remote="r", remote_nsid=1),
    Pool("outer", base="f"),
    Volume("l", "lvol", pool="outer", size=64 * MIB),
)


def wanted(base: str) -> Desired:
    more = (Pool("p", base=base), Volume("v", "lvol", pool="p", size=8 * MIB))
    return next_desired(Desired(), Change(create=(*BELOW, *more)), lambda volume: volume)


def there(desired: Desired, *unmapping_nothing: str) -> Actual:
    """Everything but the pool `p`."""
    bdevs: dict[str, Bdev] = {}
    for volume in desired.volumes():
        if volume.name == "v":
            continue
        name = {"far": "rn1", "l": "l-uuid"}.get(volume.name, volume.name)
        alias, store = (("outer/l",), "u") if volume.name == "l" else ((), "")
        bdevs[name] = Bdev(name, volume.uuid, 64 * MIB, 512, alias, lvstore=store, unmaps=name not in unmapping_nothing)
    return Actual(
        bdevs=bdevs,
        lvstores={"outer": Lvstore("outer", "u", "f", 4 * MIB, 63, 63)},
        remotes={"r": RemoteController("r", NQN, (("10.0.0.1", 4420),))},
    )


def methods_of(desired: Desired, actual: Actual) -> dict[str, str]:
    """Clear method of each call for the pool and its volume."""
    calls = plan(desired, actual, Path).calls
    mine = [call for call in calls if call.object in (Key("pool", "p"), Key("volume", "v"))]
    return {call.request.method: call.request.params.get("clear_method", "") for call in mine}


@pytest.mark.parametrize(
    ("base", "nothing", "method"),
    [
        ("g", (), ""),
        ("g", ("g",), "write_zeroes"),
        ("slow", (), ""),
        ("slow", ("b",), "write_zeroes"),
        ("slow", ("m",), "write_zeroes"),
        ("far", (), "write_zeroes"),
        ("l", (), ""),
        ("l", ("f",), "write_zeroes"),
    ],
)
def test_zeroes_are_written_where_nothing_unmaps(base: str, nothing: tuple[str, ...], method: str) -> None:
    desired = wanted(base)
    assert methods_of(desired, there(desired, *nothing)) == {
        "bdev_lvol_create_lvstore": method,
        "bdev_lvol_create": method,
    }


def test_a_pool_waits_until_its_base_can_be_seen() -> None:
    desired = wanted("g")
    found = plan(desired, Actual(), Path)
    objects = {call.object for call in found.runnable({}, Actual().find)}
    assert Key("volume", "f") in objects
    assert not objects & {Key("pool", "p"), Key("pool", "outer"), Key("volume", "v"), Key("volume", "l")}
    assert {Key("pool", "p"), Key("volume", "v")} <= {call.object for call in found.calls}, (
        "they are shown all the same"
    )
    actual = there(desired)
    assert Key("volume", "v") in {call.object for call in plan(desired, actual, Path).runnable({}, actual.find)}


class Slow:
    """Answers nothing before it is told to."""

    def __init__(self) -> None:
        self.replies: dict[str, asyncio.Future[Any]] = {}

    def post(self, method: str, _params: Mapping[str, Any]) -> asyncio.Future[Any]:
        self.replies[method] = asyncio.get_running_loop().create_future()
        return self.replies[method]


async def test_what_writes_a_whole_device_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute_module, "_CALL_TIMEOUT_S", 0.05)
    long = Call(Request("long", {}), Key("pool", "p"), needs=Needs(takes_long=True))
    short = Call(Request("short", {}), Key("volume", "v"))
    done = asyncio.get_running_loop().create_future()
    done.set_result(None)
    rpc = Slow()
    running = asyncio.ensure_future(execute(cast(Client, rpc), [long, short], lambda _call: None, Gate(done)))
    await asyncio.sleep(0)  # until both have been sent
    with pytest.raises(RpcTimeoutError):
        await asyncio.shield(rpc.replies["short"])
    assert not running.done()
    rpc.replies["long"].set_result(True)
    result = await running
    assert (result.done, [call for call, _ in result.failed]) == ([long], [short])
