"""Every kind of guest: kernels, firmwares, memory, numbers of controllers, with and without the endpoint.

The rows that are always run hold every pair of settings at least once; `-m matrix` runs all the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from guests import VERIFY, fio_errors, garbage, reserved_hugepages

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB, Firmware, Suite
from nvmuser.supervisor.spdk import Options
from nvmuser.toolchain import find_appliance

SETTINGS: tuple[tuple[Any, Any], ...] = (
    ("bookworm", "trixie"),
    ("seabios", "uefi"),
    ("4k", "huge"),
    (1, 4),
    ("direct", "endpoint"),
)
PAIRWISE = (
    (0, 0, 0, 1, 1),
    (0, 1, 1, 0, 0),
    (1, 0, 1, 1, 0),
    (1, 1, 0, 0, 1),
    (0, 0, 1, 0, 1),
    (1, 1, 0, 1, 0),
    (1, 0, 0, 0, 0),
    (0, 1, 1, 1, 1),
)


def rows() -> list[Any]:
    """The pairwise rows first; the others only when the whole matrix is asked for."""
    everything = sorted(itertools.product((0, 1), repeat=len(SETTINGS)), key=lambda row: row not in PAIRWISE)
    result = []
    for row in everything:
        values = [choices[at] for choices, at in zip(SETTINGS, row, strict=True)]
        marks = [] if row in PAIRWISE else [pytest.mark.matrix]
        result.append(pytest.param(*values, id="-".join(map(str, values)), marks=marks))
    return result


def test_the_subset_holds_every_pair() -> None:
    for one, other in itertools.combinations(range(len(SETTINGS)), 2):
        assert {(row[one], row[other]) for row in PAIRWISE} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@dataclass
class Disk:
    """One controller as the guest sees it."""

    guest: Guest
    device: str

    @property
    def namespace(self) -> str:
        return f"/dev/{self.device}n1"

    async def run(self, command: str) -> bytes:
        return (await self.guest.run(command.format(ctrl=f"/dev/{self.device}", ns=self.namespace), check=True)).stdout

    async def identity(self) -> tuple[str, ...]:
        controller = json.loads(await self.run("nvme id-ctrl {ctrl} -o json"))
        namespace = json.loads(await self.run("nvme id-ns {ns} -o json"))
        return controller["sn"].strip(), controller["subnqn"], namespace["nguid"], namespace["eui64"]

    async def verify(self) -> None:
        result = await self.guest.run(VERIFY.format(device=self.namespace), timeout=150, check=True)
        assert fio_errors(result.stdout) == (0, 8 * MIB, 8 * MIB)

    async def format(self) -> None:
        await self.run("mkfs.ext4 -q {ns} && mount {ns} /mnt && echo kept > /mnt/file && umount /mnt")

    async def check_file(self) -> None:
        await self.run("fsck.ext4 -fn {ns} && mount -o ro {ns} /mnt && grep kept /mnt/file && umount /mnt")

    async def clear(self) -> None:
        """Discard and write zeroes, where offered (ONCS bits 2 and 3): both leave zeroes here."""
        controller = json.loads(await self.run("nvme id-ctrl {ctrl} -o json"))
        command = "dd if=/dev/urandom of={ns} bs=1M count=2 oflag=direct && %s && cmp -n 1048576 {ns} /dev/zero"
        if controller["oncs"] & 4:
            await self.run(command % "blkdiscard -o 0 -l 1048576 {ns}")
        if controller["oncs"] & 8:
            await self.run(command % "nvme write-zeroes {ns} -s 0 -c 2047")


async def disks(guest: Guest) -> list[Disk]:
    names = (await guest.run("ls /sys/class/nvme", check=True)).stdout.decode().split()
    return [Disk(guest, name) for name in names]


@pytest.mark.parametrize(("suite", "firmware", "memory", "count", "way"), rows())
async def test_matrix(
    tmp_path_factory: pytest.TempPathFactory, suite: Suite, firmware: Firmware, memory: str, count: int, way: str
) -> None:
    find_appliance(suite)
    root = tmp_path_factory.mktemp("m")
    with reserved_hugepages(512 * MIB) if memory == "huge" else contextlib.nullcontext():
        async with Deployment.start(root / "s", Options(hugepages=False)) as deployment:
            sockets = []
            for number in range(count):
                (root / f"d{number}").write_bytes(bytes(32 * MIB))
                sockets.append(await deployment.disk(f"d{number}", root / f"d{number}", direct=way == "direct"))
            spec = GuestSpec(
                memory=512 * MIB,
                sockets=tuple(sockets),
                hugepages=memory == "huge",
                suite=suite,
                firmware=firmware,
            )
            await exercise(spec, root / "guest")
            assert not garbage(deployment.state.logs / "target.log")


async def exercise(spec: GuestSpec, directory: Path) -> None:
    async with launch(spec, directory) as guest:
        found = await disks(guest)
        assert len(found) == len(spec.sockets)
        before = [await disk.identity() for disk in found]
        assert len(set(before)) == len(before)
        await asyncio.gather(*(disk.verify() for disk in found))
        for disk in found:
            await disk.clear()
            await disk.format()

        await guest.reboot()
        found = await disks(guest)
        assert sorted([await disk.identity() for disk in found]) == sorted(before)
        for disk in found:
            await disk.check_file()
            await disk.run("nvme reset {ctrl}")
            await disk.check_file()
        messages = (await guest.run("dmesg")).stdout.decode()
        assert not [line for line in messages.splitlines() if "I/O error" in line or "identifiers changed" in line]
        assert await guest.stop(), "the guest did not shut down by itself"
