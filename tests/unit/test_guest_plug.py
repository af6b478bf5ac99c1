"""Plugging without a QEMU: what stands in the way, what is undone, a QMP socket that is none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_qmp import FakeQemu

from nvmuser.errors import GuestError, NotFoundError
from nvmuser.guest import migration, qmp
from nvmuser.guest.plug import plug, unplug
from nvmuser.guest.preflight import closed_to, preflight
from nvmuser.guest.qmp import Facts, MemoryBackend

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() == NOBODY, reason="this test's other user is nobody")
def test_who_may_reach_a_socket(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    path = top / "cntrl"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        top.chmod(0o700)
        # Whatever is above is not ours to open; the first closed directory is the one that is named.
        assert closed_to(path, NOBODY) in (top, *tmp_path.parents, tmp_path)
        assert closed_to(path, os.geteuid()) is None
        assert closed_to(path, 0) is None
        path.chmod(0o000)
        if os.geteuid() != 0:
            assert closed_to(path, os.geteuid()) == path


async def test_no_qmp_there(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="no QMP there"):
        async with qmp.connected(tmp_path / "none"):
            pass


async def test_a_monitor_that_somebody_else_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "_CONNECT_DEADLINE", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(silent, tmp_path / "qmp"):
        with pytest.raises(GuestError, match="serves one client"):
            async with qmp.connected(tmp_path / "qmp"):
                pass


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[list[Path]]:
    """Of controllers a and b, at which somebody listens."""
    with contextlib.ExitStack() as stack:
        paths = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            paths.append(tmp_path / name / "cntrl")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(paths[-1]))
            listener.listen()
        yield paths


async def test_what_was_plugged_before_a_refusal_is_taken_out_again(tmp_path: Path, sockets: list[Path]) -> None:
    qemu = FakeQemu((11, 2, 0))
    qemu.refuses = {"nvmuser-b"}
    async with qemu.client(tmp_path / "qmp") as client:
        with pytest.raises(GuestError, match=r"QEMU refused controller b: no$"):
            await plug(client, sockets)
    assert qemu.asked == [("device_add", "nvmuser-a"), ("device_add", "nvmuser-b"), ("device_del", "nvmuser-a")]
    assert set(qemu.devices) == {"port0", "port1"}
    assert qemu.nodes == set(), "nothing is left that cannot be migrated"


async def test_a_guest_that_refuses_while_rolling_back(tmp_path: Path, sockets: list[Path]) -> None:
    qemu = FakeQemu((11, 2, 0))
    qemu.refuses, qemu.clings_to = {"nvmuser-b"}, {"nvmuser-a"}
    async with qemu.client(tmp_path / "qmp") as client:
        with pytest.raises(GuestError, match="plugged in, and stays: nvmuser-a"):
            await plug(client, sockets)


@pytest.mark.parametrize("version", [(10, 1, 0), (11, 1, 3), (11, 1, 90)])
async def test_a_qemu_that_would_abort_is_never_asked_to_unplug(
    tmp_path: Path, sockets: list[Path], version: tuple[int, int, int]
) -> None:
    qemu = FakeQemu(version)
    qemu.refuses = {"nvmuser-b"}
    async with qemu.client(tmp_path / "qmp") as client:
        with pytest.raises(GuestError, match="plugged in, and stays: nvmuser-a"):
            await plug(client, sockets)
        with pytest.raises(GuestError, match="`nvmuser controller detach a VOLUME --force`"):
            await unplug(client, sockets[:1])
    assert not [command for command, _ in qemu.asked if command == "device_del"]


async def test_several_at_once_and_again(tmp_path: Path, sockets: list[Path]) -> None:
    qemu = FakeQemu((11, 2, 0))
    async with qemu.client(tmp_path / "qmp") as client:
        assert await plug(client, sockets) == ["nvmuser-a", "nvmuser-b"]
        assert await plug(client, sockets) == []
        assert qemu.nodes == {migration.NODE}
        with pytest.raises(NotFoundError, match="controller c is not plugged in"):
            await unplug(client, [*sockets, tmp_path / "c/cntrl"])
        qemu.clings_to = {"nvmuser-b"}
        with pytest.raises(GuestError, match=r"^the guest refused to let go of nvmuser-b$"):
            await unplug(client, sockets)
        assert qemu.nodes == {migration.NODE}, "one is still in it"
        qemu.clings_to = set()
        await unplug(client, sockets[1:])
    assert (qemu.buses, qemu.nodes) == ({}, set())


async def test_a_guest_that_was_plugged_into_by_others_is_kept_from_migrating(
    tmp_path: Path, sockets: list[Path]
) -> None:
    qemu = FakeQemu((11, 1, 3))
    qemu.devices["nvmuser-a"] = "vfio-user-pci"
    async with qemu.client(tmp_path / "qmp") as client:
        assert await plug(client, sockets[:1]) == []
    assert (qemu.asked, qemu.nodes) == ([], {migration.NODE})


async def test_with_libvfio_qemu_itself_blocks_migration(tmp_path: Path, sockets: list[Path]) -> None:
    qemu = FakeQemu((7, 2, 0))
    async with qemu.client(tmp_path / "qmp") as client:
        assert await plug(client, sockets[:1], directories=[tmp_path / "vfio/1"]) == ["nvmuser-a"]
    assert qemu.nodes == set()


def test_preflight_of_memory() -> None:
    def found(**changes: object) -> list[str]:
        backend = replace(MemoryBackend("mem", 1 << 30, shared=True, page_size=4096, backed=True), **changes)  # type: ignore[arg-type]
        facts = Facts((11, 1, 3), frozenset({"vfio-user-pci"}), {}, memory=(backend,))
        return [str(problem) for problem in preflight(facts, [])]

    assert found() == found(page_size=2 << 20) == found(page_size=1 << 30) == found(page_size=0) == []
    assert "not shared: start it with" in found(shared=False)[0]
    assert "make it a multiple of 2 MiB" in found(size=3 << 20)[0]
    assert "has pages of 65536 bytes" in found(page_size=65536)[0]
    assert "reserve=on or prealloc=on" in found(page_size=2 << 20, backed=False)[0]
    assert found(backed=False) == [], "a page of a memfd can be made at any time"


def test_the_two_drivers_do_not_mix() -> None:
    memory = MemoryBackend("mem", 1 << 30, shared=True, page_size=4096, backed=True)
    drivers = frozenset({"vfio-user-pci", "vfio-pci"})
    facts = Facts((11, 1, 3), drivers, {"one": "vfio-user-pci"}, memory=(memory,), free_ports=("port0",))
    [problem] = preflight(facts, [], driver="vfio-pci")
    assert "do not mix" in str(problem)
    assert preflight(facts, []) == []


def test_preflight_of_a_qemu_that_has_nothing() -> None:
    facts = Facts((7, 2, 0), frozenset(), {"v": "virtio-iommu-pci"}, unnamed=("intel-iommu",))
    found = "\n".join(str(problem) for problem in preflight(facts, [Path("/none/cntrl")]))
    for expected in (
        "QEMU 7.2.0 has no vfio-user-pci",
        "memory is not shared",
        "IOMMU (virtio-iommu-pci)",
        "IOMMU (intel-iommu)",
        "1 free PCIe root ports are needed, the guest has 0",
        "/none/cntrl does not exist",
    ):
        assert expected in found
