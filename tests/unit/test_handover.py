"""Controllers whose guests move between hosts: who may open their volumes, and what may become of them meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_run import Run, ok
from spdk_model import ModelSpdk
from test_plan import declare, directory, settle

from nvmuser.errors import ConflictError, NvmuserError, RpcConnectionError, TargetError, UsageError
from nvmuser.model import incoming
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.model.spec import difference, export, parse
from nvmuser.paths import StateDir
from nvmuser.reconcile import handover
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.plan import plan
from nvmuser.store import Store
from nvmuser.supervisor import handover as supervised
from nvmuser.supervisor import occupancy
from nvmuser.supervisor.handover import Handover

MIB = 1 << 20
OBJECTS = (
    Volume("a", size=4 * MIB),
    Volume("b", size=8 * MIB),
    Controller("c", (Namespace("a"),)),
    Controller("d", (Namespace("b"),)),
)


def placed(desired: Desired, name: str, *, away: bool) -> Desired:
    key = Key("controller", name)
    entry = desired.entries[key]
    assert isinstance(entry.object, Controller)
    return Desired({**desired.entries, key: replace(entry, object=replace(entry.object, away=away))})


def test_volumes_are_closed_and_opened_and_the_socket_stays() -> None:
    spdk = ModelSpdk()
    desired = settle(declare(Desired(), create=OBJECTS), spdk)
    before = spdk.actual
    desired = settle(placed(desired, "c", away=True), spdk)
    assert set(spdk.actual.bdevs) == {"b"}
    subsystem = spdk.actual.subsystems[desired.controller("c").nqn]
    assert subsystem.namespaces == ()
    assert ("VFIOUSER", str(directory("c"))) in subsystem.listeners
    settle(placed(desired, "c", away=False), spdk)
    assert spdk.actual == before


def test_the_same_controller_is_expected_elsewhere() -> None:
    here = declare(Desired(), create=OBJECTS)
    described = json.loads(json.dumps(incoming.description(here.controller("c"), here)))
    change = incoming.change(Desired(), *incoming.expected("c", described))
    assert change is not None
    there = declare(Desired(), create=change.create)
    assert handover.identity(there, there.controller("c")) == handover.identity(here, here.controller("c"))
    assert not plan(there, ModelSpdk().actual, directory).waiting
    assert incoming.change(there, *incoming.expected("c", described)) is None, "it may be expected twice"
    with pytest.raises(ConflictError, match="its volumes are open here"):
        incoming.change(here, *incoming.expected("c", described))
    gone = declare(there, **vars(incoming.forget(there, "c")))
    assert not gone.wanted()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"serial": "NU00"}, "its serial"),
        ({"nqn": "nqn.2026-11.org.nvmuser:z"}, "its nqn"),
        ({"namespaces": {"size": 12 * MIB}}, "size of volume a"),
        ({"namespaces": {"block_size": 4096}}, "block_size of volume a"),
        ({"namespaces": {"nsid": 2}}, "namespaces"),
    ],
)
def test_another_controller_is_not_expected(change: dict[str, Any], words: str) -> None:
    here = declare(Desired(), create=OBJECTS)
    described = incoming.description(here.controller("c"), here)
    there = declare(Desired(), create=incoming.change(Desired(), *incoming.expected("c", described)).create)  # type: ignore[union-attr]
    if isinstance(more := change.get("namespaces"), dict):
        change = {"namespaces": [described["namespaces"][0] | more]}
    with pytest.raises(ConflictError, match=words):
        incoming.change(there, *incoming.expected("c", described | change))


WRONG: tuple[dict[str, Any], ...] = (
    {},
    {"namespaces": [{"nsid": 1}]},
    {"namespaces": 1},
    {"serial": ""},
    {"nqn": "x"},
    {"namespaces": [{"volatile": True}]},
    {"namespaces": [{"backend": "lvol"}]},
    {"namespaces": [{"path": None}]},
    {"namespaces": [{"uuid": ""}]},
)


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_no_description(wrong: dict[str, Any]) -> None:
    here = declare(Desired(), create=OBJECTS)
    described = incoming.description(here.controller("c"), here)
    if wrong:
        namespaces = wrong.get("namespaces")
        if isinstance(namespaces, list) and "nsid" not in namespaces[0]:
            wrong = {"namespaces": [described["namespaces"][0] | namespaces[0]]}
        wrong = described | wrong
    with pytest.raises(UsageError):
        incoming.expected("c", wrong)


def test_what_is_away_stays_as_it_is() -> None:
    desired = placed(declare(Desired(), create=OBJECTS), "c", away=True)
    controller = desired.controller("c")
    for change in (
        {"delete": (controller.key,)},
        {"delete": (controller.key, Key("volume", "a")), "wipe": True},
        {"update": (replace(controller, namespaces=()),)},
    ):
        with pytest.raises(ConflictError, match="belong to another host"):
            declare(desired, **change)
    spec = parse(json.dumps(export(desired)), "spec.yaml")
    assert "away" not in json.dumps(export(desired))
    assert difference(desired, spec, prune=True, wipe=False) == Change()
    assert declare(desired, update=(replace(controller, mode="0666", away=False),)).controller("c").away


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "st")


def test_on_the_command_line(run: Run, state: StateDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(bytes(MIB))
    ok(run("volume", "create", "a", "--path", str(tmp_path / "f")))
    ok(run("controller", "create", "c", "--attach", "a"))
    described = tmp_path / "c.json"
    described.write_text(ok(run("controller", "show", "c", "--json")))
    status, _, err = run("controller", "prepare-incoming", "c", "--from", str(described))
    assert (status, "its volumes are open here" in err) == (1, True)
    ok(run("controller", "delete", "c"))
    ok(run("volume", "delete", "a"))
    assert "expects its guest" in ok(run("controller", "prepare-incoming", "c", "--from", str(described)))
    assert "another host's" in ok(run("controller", "list"))
    assert run("volume", "delete", "a")[0] == 1
    ok(run("controller", "take-back", "c"))
    assert run("controller", "release", "c")[0] == 1
    ok(run("controller", "delete", "c"))
    ok(run("volume", "delete", "a"))
    (tmp_path / "f").write_bytes(bytes(2 * MIB))
    status, _, err = run("controller", "prepare-incoming", "c", "--from", str(described))
    assert (status, "not the same file" in err) == (2, True), err
    (tmp_path / "f").unlink()
    assert run("controller", "prepare-incoming", "c", "--from", str(described))[0] == 1
    described.write_text("[" * 100_000)
    assert run("controller", "prepare-incoming", "c", "--from", str(described))[0] == 2


class Spdk:
    """`handover.give_away` and `take`, which fail so often first."""

    def __init__(self, *failures: NvmuserError) -> None:
        self.failures = list(failures)
        self.placed: list[bool] = []
        self.taken: list[list[str]] = []

    async def give_away(self, _state: StateDir, _engine: Engine, _name: str) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.placed.append(True)

    async def take(self, _state: StateDir, _engine: Engine, names: list[str]) -> dict[str, NvmuserError]:
        self.taken.append(names)
        return {names[0]: self.failures.pop(0)} if self.failures else {}


async def ask(state: StateDir, spdk: Spdk, question: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(handover, "give_away", spdk.give_away)
    monkeypatch.setattr(handover, "take", spdk.take)
    engine = Engine(state)
    try:
        return await Handover(state, engine, asyncio.Lock()).answer("c", question)
    finally:
        engine.close()


async def test_a_target_that_dies_while_it_closes_volumes(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    await _declared(state)
    spdk = Spdk(RpcConnectionError("it has gone"), TargetError("not closed"))
    answer = await ask(state, spdk, "yield", monkeypatch)
    assert (answer["error"], spdk.placed) == ("", [True])
    assert answer["identity"]["namespaces"][0]["nsid"] == 1


async def test_volumes_that_are_not_closed_in_time(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    await _declared(state)
    monkeypatch.setattr(supervised, "_DEADLINE", 0.1)
    answer = await ask(state, Spdk(*[TargetError("not closed")] * 100), "yield", monkeypatch)
    assert "not closed after" in answer["error"]


async def test_refused_questions(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    await _declared(state)
    assert "no guest is expected" in (await ask(state, Spdk(), "expect", monkeypatch))["error"]
    assert "elsewhere" in (await ask(state, Spdk(ConflictError("open elsewhere")), "take", monkeypatch))["error"]
    assert "does not know" in (await ask(state, Spdk(), "dance", monkeypatch))["error"]
    handover.record(state, "c", away=True)
    assert (await ask(state, Spdk(), "expect", monkeypatch))["error"] == ""


async def test_controllers_that_arrive_together(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    await _declared(state)
    spdk = Spdk(ConflictError("open elsewhere"))
    monkeypatch.setattr(handover, "take", spdk.take)
    with contextlib.closing(Engine(state)) as engine:
        served = Handover(state, engine, asyncio.Lock())
        answers = await asyncio.gather(*(served.answer(name, "take") for name in ("c", "d")))
        assert spdk.taken == [["c", "d"]]
        assert "open elsewhere" in answers[0]["error"]
        assert "no such controller" in answers[1]["error"], "it was taken, and is not declared"
        assert (await served.answer("c", "take"))["error"] == ""
        served.close()


async def test_what_arrives_together_is_recorded_at_once(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is waited for once; what cannot be recorded does not keep the rest from it."""
    volumes = tuple(Volume(name, size=MIB) for name in ("a", "b"))
    controllers = tuple(Controller(name, (Namespace(volume),)) for name, volume in (("c", "a"), ("d", "b")))
    with contextlib.closing(Engine(state)) as engine:
        await engine.change(Change(create=(*volumes, *controllers)))
        for name in ("c", "d"):
            handover.record(state, name, away=True)
        puts = list[int]()
        put = Store.put

        def counted(store: Store, entries: Iterable[Entry]) -> None:
            entries = list(entries)
            puts.append(len(entries))
            put(store, entries)

        monkeypatch.setattr(Store, "put", counted)
        errors = await handover.take(state, engine, ["c", "gone", "d"])
        assert puts == [2]
        assert [controller.away for controller in engine.desired().controllers()] == [False, False]
        assert "no such controller" in str(errors["gone"])


async def test_no_guest_boots_without_its_volumes(state: StateDir) -> None:
    await _declared(state)
    await occupancy.check_free(state, ["c"])
    handover.record(state, "c", away=True)
    with pytest.raises(ConflictError, match=r"another host's.*take-back c"):
        await occupancy.check_free(state, ["c"])


async def _declared(state: StateDir) -> None:
    engine = Engine(state)
    await engine.change(Change(create=(Volume("a", size=MIB), Controller("c", (Namespace("a"),)))))
    engine.close()
