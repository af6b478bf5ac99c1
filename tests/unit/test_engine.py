"""The engine on a model of SPDK: killed at every step, refused at every step, without a target."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from spdk_model import ModelSpdk, Refused, part_of_actual

from nvmf_vfio import vfio_dir
from nvmuser.errors import ConflictError, NvmuserError, RpcConnectionError, RpcServerError, SetupError, TargetError
from nvmuser.hostfs import files, listeners, locks
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import AnyObject, Controller, Namespace, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import engine as engine_module
from nvmuser.reconcile import reopen as reopen_module
from nvmuser.reconcile import site as site_module
from nvmuser.reconcile.actual import Actual
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.plan import plan
from nvmuser.rpc import Client
from nvmuser.store import Store

MIB = 1 << 20


class Killed(BaseException):
    """SIGKILL, as far as Python can play it: nobody catches it."""


class ModelRpc:
    """A client of the model. `trap` is called at each effect, before and after."""

    peer_pid = None

    def __init__(self) -> None:
        self.spdk = ModelSpdk()
        self.trap: Callable[[str], None] = lambda effect: None

    def post(self, method: str, params: Mapping[str, Any]) -> asyncio.Future[None]:
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._do(method, params)
        except NvmuserError as error:
            reply.set_exception(error)
        else:
            reply.set_result(None)
        return reply

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        if method == "bdev_lvol_get_lvstores":
            return self.spdk.bdev_lvol_get_lvstores(**(params or {}))
        return await self.post(method, params or {})

    def _do(self, method: str, params: Mapping[str, Any]) -> None:
        self.trap(f"before {method}")
        if method == "bdev_aio_create":
            self.spdk.file_sizes[params["filename"]] = 0
        for path in self.spdk.file_sizes:
            self.spdk.file_sizes[path] = Path(path).stat().st_size if Path(path).exists() else 0
        try:
            self.spdk.call(method, params)
        except Refused as error:
            raise RpcServerError(method, params, -22, str(error)) from None
        self.trap(f"after {method}")


@pytest.fixture
def rpc(monkeypatch: pytest.MonkeyPatch) -> ModelRpc:
    async def query(rpc: ModelRpc) -> Actual:
        return rpc.spdk.actual

    async def query_part(rpc: ModelRpc, part: Desired) -> Actual:
        return part_of_actual(rpc.spdk.actual, part)

    for module in (engine_module, site_module, reopen_module):
        monkeypatch.setattr(module, "query", query)
    monkeypatch.setattr(site_module, "query_part", query_part)
    return ModelRpc()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


def engine_on(state: StateDir, rpc: ModelRpc | None) -> Engine:
    return Engine(state, cast(Client, rpc))


OBJECTS: tuple[AnyObject, ...] = (
    Volume("a", size=4 * MIB),
    Volume("disk", size=64 * MIB),
    Pool("p", base="disk", cluster_size=MIB),
    Volume("l", "lvol", size=4 * MIB, pool="p"),
    Controller("x", (Namespace("a"), Namespace("l"))),
)
GONE = Change(delete=tuple(one.key for one in OBJECTS), wipe=True)


def assert_whole(state: StateDir, rpc: ModelRpc, keys: set[Key]) -> None:
    """Exactly these are wanted, SPDK agrees, and the files are theirs."""
    with Store(state.store) as store:
        desired = store.load()
    assert set(desired.entries) == keys
    found = plan(desired, rpc.spdk.actual, state.target_dir)
    assert (found.calls, found.conflicts, found.waiting) == ((), (), frozenset())
    volumes = {key.name for key in keys if key in (Key("volume", "a"), Key("volume", "disk"))}
    assert {path.name for path in state.volumes.iterdir()} == volumes
    devices = set(vfio_dir.numbers(state.devices()).values())
    assert devices <= {state.socket(one.name) for one in desired.controllers()}
    if not keys:
        assert not rpc.spdk.bdevs
        assert not rpc.spdk.subsystems
        assert not rpc.spdk.lvstores


class Trap:
    """Raises at one effect, of however many."""

    def __init__(self, at: int, error: Callable[[], BaseException]) -> None:
        self.left = at
        self.error = error

    def __call__(self, effect: str) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error()


def set_traps(monkeypatch: pytest.MonkeyPatch, rpc: ModelRpc, trap: Callable[[str], None]) -> None:
    """Around everything that leaves a trace."""
    rpc.trap = trap

    def around(target: Any, name: str) -> None:
        real = getattr(target, name)

        def wrapped(*args: Any) -> Any:
            trap(f"before {name}")
            result = real(*args)
            trap(f"after {name}")
            return result

        monkeypatch.setattr(target, name, wrapped)

    for target, name in ((files, "provision"), (files, "remove"), (listeners, "prepare"), (listeners, "tidy")):
        around(target, name)
    around(Store, "put")
    around(Store, "remove")


@pytest.mark.parametrize("change", [Change(create=OBJECTS), GONE], ids=["create", "delete"])
async def test_killed_at_every_step(
    change: Change, tmp_path: Path, rpc: ModelRpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running again finishes it, or it never was: never half of it."""
    everything = {one.key for one in OBJECTS}
    for at in range(200):
        state, rpc.spdk = StateDir(tmp_path / str(at)), ModelSpdk()
        if change is GONE:
            with contextlib.closing(engine_on(state, rpc)) as engine:
                await engine.change(Change(create=OBJECTS))
            Devices(state).provide(Controller("x"))
        trap = Trap(at, Killed)
        with monkeypatch.context() as patch, contextlib.closing(engine_on(state, rpc)) as engine:
            set_traps(patch, rpc, trap)
            with contextlib.suppress(Killed):
                await engine.change(change)
            rpc.trap = lambda effect: None
        with contextlib.closing(engine_on(state, rpc)) as engine:
            outcome = await engine.reconcile()
            assert outcome.problems == ()
            wanted = set(engine._store.load().entries)
        assert wanted in (set(), everything)
        state.volumes.mkdir(exist_ok=True)
        assert_whole(state, rpc, wanted)
        if trap.left >= 0:
            assert wanted == (set() if change is GONE else everything)
            assert at > 20
            return
    raise AssertionError("never ended")


@pytest.mark.parametrize(
    "method",
    [
        "bdev_aio_create",
        "bdev_lvol_create_lvstore",
        "bdev_lvol_create",
        "nvmf_create_subsystem",
        "nvmf_subsystem_add_ns",
        "nvmf_subsystem_add_listener",
    ],
)
async def test_what_spdk_refuses_leaves_nothing_behind(method: str, state: StateDir, rpc: ModelRpc) -> None:
    def refuse(effect: str) -> None:
        if effect == f"before {method}":
            raise RpcServerError(method, {}, -12, "Cannot allocate memory")

    rpc.trap = refuse
    with contextlib.closing(engine_on(state, rpc)) as engine:
        with pytest.raises(TargetError, match=r"Cannot allocate memory.*; nothing was changed"):
            await engine.change(Change(create=OBJECTS))
        assert_whole(state, rpc, set())


async def test_a_target_that_dies_meanwhile_leaves_the_change_for_the_next(state: StateDir, rpc: ModelRpc) -> None:
    rpc.trap = Trap(13, lambda: RpcConnectionError("gone"))
    with contextlib.closing(engine_on(state, rpc)) as engine:
        outcome = await engine.change(Change(create=OBJECTS))
        assert outcome.pending
        rpc.spdk = ModelSpdk()
        assert (await engine.reconcile()).problems != ()  # the pool was made, and that SPDK has lost it


async def test_a_target_that_does_not_answer_leaves_the_change_for_the_next(
    state: StateDir, rpc: ModelRpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def query(rpc: ModelRpc) -> Actual:
        raise RpcConnectionError("gone")

    with monkeypatch.context() as patch, contextlib.closing(engine_on(state, rpc)) as engine:
        patch.setattr(site_module, "query", query)
        assert (await engine.change(Change(create=OBJECTS))).pending
    with contextlib.closing(engine_on(state, rpc)) as engine:
        assert (await engine.reconcile()).problems == ()
    assert_whole(state, rpc, {one.key for one in OBJECTS})


async def test_without_a_target(state: StateDir) -> None:
    with contextlib.closing(engine_on(state, None)) as engine:
        outcome = await engine.change(Change(create=(Volume("a", size=MIB), Controller("x", (Namespace("a"),)))))
        assert outcome.pending
        assert (state.volumes / "a").stat().st_size == MIB
        with pytest.raises(TargetError, match="not running"):
            await engine.status()
        await engine.change(Change(delete=(Key("volume", "a"), Key("controller", "x")), wipe=True))
        assert list(state.volumes.iterdir()) == []
        await engine.change(Change(create=(Volume("a", size=MIB),)))


async def test_what_a_disk_keeps_is_deleted_by_a_target_only(state: StateDir, rpc: ModelRpc) -> None:
    with contextlib.closing(engine_on(state, rpc)) as engine:
        await engine.change(Change(create=OBJECTS))
        engine.rpc = None
        await engine.change(Change(delete=(Key("controller", "x"), Key("volume", "l"), Key("pool", "p")), wipe=True))
        assert {Key("pool", "p"), Key("volume", "l")} <= set(engine._store.load().entries)
        with pytest.raises(ConflictError, match="its deletion is not finished yet"):
            await engine.change(Change(create=(Pool("p", base="disk"),)))
        engine.rpc = cast(Client, rpc)
        await engine.reconcile()
        assert_whole(state, rpc, {Key("volume", "a"), Key("volume", "disk")})


async def test_what_no_target_has_made_is_gone_at_once(state: StateDir) -> None:
    with contextlib.closing(engine_on(state, None)) as engine:
        for _ in range(2):
            await engine.change(Change(create=OBJECTS))
            await engine.change(GONE)
            assert engine._store.load().entries == {}


async def test_what_a_target_may_have_made_is_not_gone_without_one(state: StateDir, rpc: ModelRpc) -> None:
    """Killed between SPDK's making it and the record of that: its name is free only when a target has looked."""
    with contextlib.closing(engine_on(state, rpc)) as engine:
        await engine.change(Change(create=OBJECTS[:3]))

        def kill(effect: str) -> None:
            if effect == "after bdev_lvol_create":
                raise Killed

        rpc.trap = kill
        with pytest.raises(Killed):
            await engine.change(Change(create=(OBJECTS[3],)))
    rpc.trap = lambda effect: None
    with contextlib.closing(engine_on(state, None)) as engine:
        assert not engine._store.load().entries[Key("volume", "l")].provisioned
        await engine.change(Change(delete=(Key("volume", "l"),), wipe=True))
        assert engine._store.load().entries[Key("volume", "l")].deleting
        engine.rpc = cast(Client, rpc)
        await engine.reconcile()
        assert_whole(state, rpc, {Key("volume", "a"), Key("volume", "disk"), Key("pool", "p")})


async def test_a_full_disk(state: StateDir, rpc: ModelRpc, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.ftruncate", full)
    with contextlib.closing(engine_on(state, rpc)) as engine:
        with pytest.raises(TargetError, match=r"volume a: .*No space left on device; nothing was changed"):
            await engine.change(Change(create=(Volume("a", size=MIB),)))
        assert engine._store.load().entries == {}
        assert list(state.volumes.iterdir()) == []


async def test_paths(state: StateDir, tmp_path: Path, rpc: ModelRpc) -> None:
    with contextlib.closing(engine_on(state, rpc)) as engine:
        for volume, reason in (
            (Volume("a", path=str(tmp_path / "none")), "does not exist; pass --size"),
            (Volume("a", path=str(tmp_path)), "neither a file nor a block device"),
            (Volume("a", path="/proc/none/x", size=MIB), "more than the 0 bytes free"),
            (Volume("a", path="/" + "x" * 300, size=MIB), "File name too long"),
            (Volume("a", size=1 << 60), "more than the .* free"),
        ):
            with pytest.raises(NvmuserError, match=reason):
                await engine.change(Change(create=(volume,)))
        (tmp_path / "odd").write_bytes(b"x" * 100)
        with pytest.raises(NvmuserError, match="not a multiple of the block size"):
            await engine.change(Change(create=(Volume("a", path=str(tmp_path / "odd")),)))
        assert engine._store.load().entries == {}


async def test_a_long_state_dir_is_refused_before_anything_is_made(tmp_path: Path, rpc: ModelRpc) -> None:
    state = StateDir(tmp_path / ("x" * 80))
    with contextlib.closing(engine_on(state, rpc)) as engine:
        with pytest.raises(NvmuserError, match="shorter name or a shorter --state-dir"):
            await engine.change(Change(create=(Controller("x"),)))
        assert engine.controllers() == []


def test_locks_name_the_holder(tmp_path: Path) -> None:
    import fcntl
    import os

    path = tmp_path / "f"
    path.write_bytes(b"")
    locks.check_free(str(path))
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConflictError, match=rf"{path}: open elsewhere already .locked by process {os.getpid()}, "):
            locks.check_free(str(path))
    with path.open("r+b") as held:
        assert locks.lock_for(os.getpid(), [str(path)]) == []
        assert held.fileno() > 0
        with pytest.raises(ConflictError):
            locks.check_free(str(path))
    locks.check_free(str(path))


def test_a_missing_file_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(NvmuserError, match="no such file"):
        locks.check_free(str(tmp_path / "none"))
    with pytest.raises(SetupError):
        locks.check_free(str(tmp_path))


def test_replace_keeps_identity() -> None:
    assert replace(Volume("a", size=MIB, uuid="u"), size=2 * MIB).uuid == "u"
