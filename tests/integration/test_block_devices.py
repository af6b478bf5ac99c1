"""Volumes on real block devices: a loop device with partitions, and what the machine itself does with one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from bare_target import BareTarget

from nvmuser.errors import ConflictError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

MIB = 1 << 20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes block devices")


def loop(image: Path) -> str:
    made = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
    return made.stdout.strip()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A disk with two partitions; devices by name. Where no udev is, their nodes are made here."""
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 64 * MIB)
    device = loop(image)
    nodes = {"disk": device, "image": str(image)}
    try:
        for part in (1, 2):
            subprocess.run(["addpart", device, str(part), str(part * 32768), "32768"], check=True)
            number = Path(f"/sys/class/block/{Path(device).name}p{part}/dev").read_text().split(":")
            nodes[f"part{part}"] = str(tmp_path / f"part{part}")
            os.mknod(nodes[f"part{part}"], 0o060600, os.makedev(*map(int, number)))
        yield nodes
    finally:
        for part in (1, 2):
            subprocess.run(["delpart", device, str(part)], check=False)
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture
async def engine(tmp_path: Path, disk: dict[str, str], spdk_target: BareTarget) -> AsyncIterator[Engine]:
    """After the disk, so that the target ends before that is taken apart."""
    async with await Client.connect(spdk_target.rpc_socket) as rpc:
        engine = Engine(StateDir(tmp_path / "st"), rpc)
        yield engine
        engine.close()


async def refusal(engine: Engine, path: str) -> str:
    with pytest.raises(ConflictError) as caught:
        await engine.change(Change(create=(Volume("other", path=path),)))
    return str(caught.value)


async def test_a_disk_its_partitions_and_its_image_are_one_volumes(engine: Engine, disk: dict[str, str]) -> None:
    create = (Volume("a", path=disk["part1"]), Controller("x", (Namespace("a"),)))
    assert (await engine.change(Change(create=create))).problems == ()
    assert f"{disk['disk']}, holds {disk['part1']}, which is volume a's" in await refusal(engine, disk["disk"])
    assert f"{disk['image']}, holds {disk['part1']}, which is volume a's" in await refusal(engine, disk["image"])
    assert (await engine.change(Change(create=(Volume("b", path=disk["part2"]),)))).problems == ()
    gone = Change(delete=(Key("controller", "x"), Key("volume", "a"), Key("volume", "b")))
    assert (await engine.change(gone)).problems == ()
    assert (await engine.change(Change(create=(Volume("a", path=disk["disk"]),)))).problems == ()
    for name in ("part1", "part2"):
        assert f"{disk[name]}, lies on {disk['disk']}, which is volume a's" in await refusal(engine, disk[name])


async def test_a_device_that_the_machine_has_mounted_is_not_served(
    engine: Engine, disk: dict[str, str], tmp_path: Path
) -> None:
    """Nor is the disk of a partition that is."""
    subprocess.run(["mke2fs", "-q", disk["part1"]], check=True)
    (there := tmp_path / "mounted").mkdir()
    with contextlib.ExitStack() as stack:
        subprocess.run(["mount", disk["part1"], there], check=True)
        stack.callback(subprocess.run, ["umount", there], check=True)
        for name in ("part1", "disk"):
            assert f"{disk[name]}: in use by this machine: " in (said := await refusal(engine, disk[name]))
            assert f"is mounted at {there}" in said
        assert (await engine.change(Change(create=(Volume("b", path=disk["part2"]),)))).problems == ()
    assert (await engine.change(Change(create=(Volume("a", path=disk["part1"]),)))).problems == ()
