"""Systems that are not the appliance: a user's disk, raw and qcow2, and booting from an NVMe controller of ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bootdisk import MARK, write_bootdisk
from guests import garbage

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB, Firmware
from nvmuser.toolchain import find_qemu


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("image")
    write_bootdisk(directory / "disk.raw", directory)
    return directory / "disk.raw"


async def check(spec: GuestSpec, directory: Path, disk: str) -> None:
    async with launch(spec, directory) as guest:
        assert MARK in (await guest.run("cat /proc/cmdline", check=True)).stdout.decode()
        firmware = b"uefi" if spec.firmware == "uefi" else b"seabios"
        assert (await guest.run("[ -d /sys/firmware/efi ] && echo uefi || echo seabios")).stdout.strip() == firmware
        # The disk that it was booted from is there, and read right.
        assert (await guest.run(f"blkid -o value -s TYPE {disk}", check=True)).stdout.strip() == b"iso9660"
        if spec.boot_from:
            await guest.reboot()  # the firmware takes the controller over from Linux
        assert await guest.stop(), "the guest did not shut down by itself"


@pytest.mark.parametrize(
    ("kind", "firmware"), [pytest.param("raw", "uefi", marks=pytest.mark.matrix), ("qcow2", "seabios")]
)
async def test_a_users_image(image: Path, tmp_path: Path, kind: str, firmware: Firmware) -> None:
    disk = tmp_path / f"other,{kind}"
    subprocess.run([*find_qemu().tool("qemu-img"), "convert", "-O", kind, image, disk], check=True)
    await check(GuestSpec(memory=512 * MIB, image=disk, firmware=firmware), tmp_path / "guest", "/dev/vda")


@pytest.mark.parametrize("firmware", [pytest.param("seabios", marks=pytest.mark.matrix), "uefi"])
async def test_boot_from_a_controller(
    image: Path, tmp_path_factory: pytest.TempPathFactory, firmware: Firmware
) -> None:
    root = tmp_path_factory.mktemp("b")
    async with Deployment.start(root / "s") as deployment:
        # Another one without a system: the guest has to boot from the right one.
        (root / "empty").write_bytes(bytes(MIB))
        sockets = [await deployment.disk("empty", root / "empty"), await deployment.disk("system", image)]
        spec = GuestSpec(memory=512 * MIB, sockets=tuple(sockets), boot_from=sockets[1], firmware=firmware)
        await check(spec, root / "guest", "/dev/nvme1n1")
        assert not garbage(deployment.state.logs / "target.log")
