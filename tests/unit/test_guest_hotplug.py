"""Plugging together with the control plane, without a target: what a check leaves, and changes in between."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_qmp import FakeQemu

from nvmuser.errors import GuestError, StaleError
from nvmuser.guest import hotplug, migration
from nvmuser.guest.hotplug import Transport
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import control


@pytest.fixture
async def state(tmp_path: Path) -> StateDir:
    """Controllers a and b with a volume each, and `empty`."""
    state = StateDir(tmp_path / "s")
    volumes = tuple(Volume(name=name, size=1 << 20, backend="file") for name in "ab")
    filled = tuple(Controller(name, (Namespace(name),)) for name in "ab")
    await control.submit(state, Change(create=(*volumes, *filled, Controller("empty"))))
    return state


@pytest.fixture
def listen() -> Iterator[Callable[..., None]]:
    """`listen(state, "a")`: somebody listens at controllers' sockets until the test ends."""
    with contextlib.ExitStack() as stack:

        def listen(state: StateDir, *names: str) -> None:
            for name in names:
                path = state.socket(name)
                path.parent.mkdir(parents=True)
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(path))
                listener.listen()

        yield listen


def files(state: StateDir) -> set[Path]:
    return set(state.root.rglob("*"))


async def test_a_check_makes_nothing(state: StateDir, tmp_path: Path, listen: Callable[..., None]) -> None:
    listen(state, "a", "b")
    qemu, before = FakeQemu((7, 2, 0)), files(state)
    async with qemu.client(tmp_path / "qmp") as client:
        prepared = await hotplug.prepare(state, client, ["a", "b"], Transport(libvfio=True))
        assert prepared.problems == []
        assert prepared.intent.directories == (state.run / "vfio/1", state.run / "vfio/2")
        assert (files(state), qemu.asked, qemu.nodes) == (before, [], set())
        done = await hotplug.execute(state, client, prepared)
    assert [(plugged.controller, plugged.how) for plugged in done] == [("a", "plugged"), ("b", "plugged")]
    assert (state.run / "vfio/2/cntrl").readlink() == state.socket("b")


async def test_a_native_check_makes_nothing(state: StateDir, tmp_path: Path, listen: Callable[..., None]) -> None:
    listen(state, "a")
    qemu, before = FakeQemu((11, 1, 3)), files(state)
    async with qemu.client(tmp_path / "qmp") as client:
        assert (await hotplug.prepare(state, client, ["a"], Transport())).problems == []
    assert (files(state), qemu.asked, qemu.nodes) == (before, [], set())


async def without_ports(state: StateDir) -> FakeQemu:
    qemu = FakeQemu((11, 1, 3), ports=0)
    qemu.devices["nvmuser-empty"] = "vfio-user-pci"
    return qemu


async def change_meanwhile(state: StateDir, name: str) -> None:
    before = control.load(state).controller(name)
    await control.submit(state, Change(update=(replace(before, mode="0666"),)))


@pytest.mark.parametrize("changed", ["a", "empty"])
async def test_what_somebody_has_changed_meanwhile_is_not_undone(state: StateDir, tmp_path: Path, changed: str) -> None:
    qemu = await without_ports(state)
    async with qemu.client(tmp_path / "qmp") as client:
        prepared = await hotplug.prepare(state, client, ["a"], Transport())
        await change_meanwhile(state, changed)
        with pytest.raises(StaleError):
            await hotplug.execute(state, client, prepared)
        assert control.load(state).controller(changed).mode == "0666"
        assert [namespace.volume for namespace in control.load(state).controller("a").namespaces] == ["a"]
        # The whole act looks again.
        (done,) = await hotplug.perform(state, client, ["a"], Transport())
    assert (done.device, done.how) == ("nvmuser-empty", "reused")
    assert qemu.nodes == {migration.NODE}
    assert (state.run / "guest/no-migration.vmdk").exists()
    assert [namespace.volume for namespace in control.load(state).controller("empty").namespaces] == ["a"]
    assert control.load(state).controller(changed).mode == "0666"


async def test_what_qemu_refuses_leaves_volumes_where_they_were(
    state: StateDir, tmp_path: Path, listen: Callable[..., None]
) -> None:
    listen(state, "a")
    qemu = await without_ports(state)
    qemu.devices["port0"] = "pcie-root-port"
    qemu.refuses = {"nvmuser-a"}
    async with qemu.client(tmp_path / "qmp") as client:
        with pytest.raises(GuestError, match="QEMU refused controller a"):
            await hotplug.perform(state, client, ["a", "b"], Transport())
    desired = control.load(state)
    assert [namespace.volume for namespace in desired.controller("b").namespaces] == ["b"]
    assert desired.controller("empty").namespaces == ()
