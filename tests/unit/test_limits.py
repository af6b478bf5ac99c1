"""Limits of the machine: named before anything is done, or where SPDK's message does not name them."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from nvmuser.doctor import machine
from nvmuser.errors import ConflictError, RpcServerError, RpcTimeoutError, UsageError
from nvmuser.hostfs import limits
from nvmuser.model import identity
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, TargetSettings, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile import reasons
from nvmuser.reconcile.actual import Actual, ActualNamespace, Bdev, Subsystem
from nvmuser.reconcile.calls import Call, Needs
from nvmuser.reconcile.declare import declared
from nvmuser.reconcile.plan import plan
from nvmuser.rpc import methods
from nvmuser.store import Store

MANY = 300


def many() -> tuple[Volume | Controller, ...]:
    volumes = tuple(Volume(f"v{n}", "null", size=1 << 20, volatile=True) for n in range(MANY))
    return (*volumes, *(Controller(f"c{n}", (Namespace(f"v{n}"),)) for n in range(MANY)))


def test_descriptors_are_counted_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 1024))
    with pytest.raises(ConflictError, match=r"300 controllers and 0 file volumes need about 1156 .* limit is 1024"):
        declared(Desired(), Change(create=many()), StateDir(tmp_path))
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, resource.RLIM_INFINITY))
    declared(Desired(), Change(create=many()), StateDir(tmp_path))


def test_controller_ids_are_the_lowest_free_ones_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    create = (Controller("a"), Controller("b", cntlid=1), Controller("c"))
    desired = next_desired(Desired(), Change(create=create), lambda volume: volume)
    assert [controller.cntlid for controller in desired.controllers()] == [2, 1, 3]
    monkeypatch.setattr(identity, "CNTLID_MAX", 3)
    with pytest.raises(ConflictError, match="controller d: all 3 controller ids are in use"):
        next_desired(desired, Change(create=(Controller("d"),)), lambda volume: volume)


def test_deleting_many_looks_at_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    desired = next_desired(Desired(), Change(create=many()), lambda volume: volume)
    bdevs = {volume.name: Bdev(volume.name, volume.uuid, 1 << 20, 512) for volume in desired.volumes()}
    subsystems = {
        c.nqn: Subsystem(c.nqn, c.serial, c.cntlid, c.cntlid, True, (ActualNamespace(1, c.namespaces[0].volume),))
        for c in desired.controllers()
    }
    looks = 0

    def depends_on(controller: Controller) -> tuple[Key, ...]:
        nonlocal looks
        looks += 1
        return tuple(Key("volume", namespace.volume) for namespace in controller.namespaces)

    monkeypatch.setattr(Controller, "depends_on", property(depends_on))
    keys = tuple(one.key for one in desired.wanted())
    gone = next_desired(desired, Change(delete=keys, wipe=True), lambda volume: volume)
    calls = plan(gone, Actual(True, bdevs, subsystems), Path).calls
    assert len(calls) == 2 * MANY
    assert looks < 10 * MANY


def test_a_failure_for_want_of_asynchronous_io_names_the_limit_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = methods.add_namespace("nqn", 1, "a", uuid="", nguid="", eui64="")
    call = Call(request, Key("controller", "x"), "add", needs=Needs(events=True))
    error = RpcServerError(call.request.method, {}, -32602, "Unable to add ns, subsystem in active state")
    monkeypatch.setattr(limits, "aio_events", lambda: limits.AioEvents(1000, 1024))
    assert reasons.reason(call, error) == (
        "add failed: Unable to add ns, subsystem in active state (nvmf_subsystem_add_ns): no events for "
        "asynchronous I/O are left for its files: fs.aio-max-nr is 1024, of which 1000 are in use: "
        "sysctl -w fs.aio-max-nr=1048576"
    )
    monkeypatch.setattr(limits, "aio_events", lambda: limits.AioEvents(1000, 65536))
    assert reasons.reason(call, error).endswith("active state (nvmf_subsystem_add_ns)")


def test_the_kernel_is_asked_for_its_figures(tmp_path: Path) -> None:
    (tmp_path / "aio-nr").write_text("12\n")
    (tmp_path / "aio-max-nr").write_text("100\n")
    assert limits.aio_events(tmp_path) == limits.AioEvents(12, 100)


def test_doctor_looks_at_asynchronous_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for used, level in ((0, "ok"), (64600, "warning"), (65500, "failed")):
        monkeypatch.setattr(limits, "aio_events", lambda used=used: limits.AioEvents(used, 65536))
        (finding,) = machine.asynchronous_io(StateDir(tmp_path))
        assert finding.level == level
        assert level == "ok" or "sysctl -w fs.aio-max-nr=1048576" in finding.fix


def test_doctor_counts_what_our_volumes_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path)
    with Store(state.store) as store, store.transaction():
        store.put([Entry(TargetSettings(cores=(0, 1, 2))), Entry(Volume("a", size=1 << 20, path="/a"))])
    for left, level, target in (
        (3072, "ok", False),
        (3071, "warning", False),
        (383, "failed", False),
        (1024, "ok", True),
    ):
        monkeypatch.setattr(limits, "aio_events", lambda left=left: limits.AioEvents(65536 - left, 65536))
        monkeypatch.setattr(machine, "answers", lambda _path, target=target: target)
        (finding,) = machine.asynchronous_io(state)
        assert finding.level == level
        assert "file volumes of this deployment: 1" in finding.text
        assert target or "on 3 of the cores takes 3072" in finding.text


def test_memory_is_looked_at_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_memory", lambda: 20 << 20)
    with pytest.raises(
        ConflictError, match=r"300 controllers more need about 21 MiB of memory, and 20 MiB are .* 273 fit"
    ):
        declared(Desired(), Change(create=many()), StateDir(tmp_path))
    monkeypatch.setattr(limits, "available_memory", lambda: 22 << 20)
    declared(Desired(), Change(create=many()), StateDir(tmp_path))


def test_memory_is_that_of_the_machine_and_of_its_control_groups(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert limits.available_memory(tmp_path) == 8000 << 10
    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/\n")
    (tmp_path / "self/mountinfo").write_text(f"31 23 0:28 / {tmp_path}/groups rw shared:9 - cgroup2 cgroup2 rw\n")
    (tmp_path / "groups").mkdir()
    for name, text in (("memory.max", "5000000"), ("memory.current", "2000000"), ("memory.stat", "anon 5\n")):
        (tmp_path / "groups" / name).write_text(text)
    assert limits.available_memory(tmp_path) == 3000000
    assert limits.available_memory() > 0


def test_a_target_has_as_many_controllers_as_is_said(tmp_path: Path) -> None:
    settings = TargetSettings(max_controllers=MANY - 1)
    with pytest.raises(ConflictError, match=r"300 controllers, .* 299 at most: .*--max-controllers"):
        declared(Desired(), Change(create=(settings, *many())), StateDir(tmp_path))
    declared(Desired(), Change(create=(TargetSettings(max_controllers=MANY), *many())), StateDir(tmp_path))
    for wrong in (0, 65520):
        with pytest.raises(UsageError, match="1 to 65519"):
            TargetSettings(max_controllers=wrong)


def test_what_is_refused_for_the_moment_is_told_from_what_fails() -> None:
    busy = "Failed to configure rate limit: Resource temporarily unavailable"
    assert reasons.is_transient(RpcServerError("bdev_set_qos_limit", {}, -32602, busy))
    assert reasons.is_transient(RpcServerError("bdev_set_qos_limit", {}, -errno.EAGAIN, "later"))
    assert not reasons.is_transient(RpcServerError("bdev_set_qos_limit", {}, -errno.EINVAL, "Invalid argument"))
    assert not reasons.is_transient(RpcTimeoutError("no reply"))
