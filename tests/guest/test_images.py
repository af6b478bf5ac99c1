"""Systems that are not the appliance: a user's disk, raw and qcow2, and booting from an NVMe controller of ours.

The system is the appliance's kernel again, but found by UEFI on a FAT file system, as on any disk.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from guests import Target

from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.runtime import find_appliance, find_qemu

# UEFI's shell takes minutes under software emulation, and waits for keys on every serial port.
pytestmark = pytest.mark.matrix

SECTOR, CLUSTER, ROOT_ENTRIES = 512, 8192, 512


def write_fat16(path: Path, files: dict[str, bytes]) -> None:
    """A disk that is one FAT16 file system with these files (8.3 names, in capitals) in its root."""
    chains = [-(-len(data) // CLUSTER) for data in files.values()]
    clusters = max(sum(chains), 4100)  # fewer would be FAT12
    fat_sectors = -(-2 * (clusters + 2) // SECTOR)
    sectors = 1 + fat_sectors + ROOT_ENTRIES * 32 // SECTOR + clusters * CLUSTER // SECTOR
    boot = b"\xeb\x3c\x90nvmuser " + struct.pack(
        "<HBHBHHBHHHII", SECTOR, CLUSTER // SECTOR, 1, 1, ROOT_ENTRIES, 0, 0xF8, fat_sectors, 63, 255, 0, sectors
    )
    boot += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 1, b"NVMUSER", b"FAT16   ")
    fat, root, first = [0xFFF8, 0xFFFF], b"", 2
    for (name, data), length in zip(files.items(), chains, strict=True):
        stem, _, extension = name.partition(".")
        entry = f"{stem:8}{extension:3}".encode() + struct.pack("<B14xHI", 0x20, first, len(data))
        root += entry
        fat += [*range(first + 1, first + length), 0xFFFF]
        first += length
    with path.open("wb") as disk:
        disk.write(boot.ljust(SECTOR - 2, b"\0") + b"\x55\xaa")
        disk.write(struct.pack(f"<{len(fat)}H", *fat).ljust(fat_sectors * SECTOR, b"\0"))
        disk.write(root.ljust(ROOT_ENTRIES * 32, b"\0"))
        for data, length in zip(files.values(), chains, strict=True):
            disk.write(data.ljust(length * CLUSTER, b"\0"))
        disk.truncate(sectors * SECTOR)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk from which UEFI boots the appliance."""
    if find_qemu().firmware is None:
        pytest.skip("no OVMF")
    appliance = find_appliance()
    script = "VMLINUZ.EFI console=ttyS0 quiet initrd=\\INITRD.IMG own.system=1\r\n"
    files = {
        "STARTUP.NSH": b"FS0:\r\n" + script.encode(),
        "VMLINUZ.EFI": appliance.kernel.read_bytes(),
        "INITRD.IMG": appliance.initrd.read_bytes(),
    }
    write_fat16(tmp_path / "disk.raw", files)
    return tmp_path / "disk.raw"


async def check(spec: GuestSpec, directory: Path) -> None:
    async with launch(spec, directory) as guest:
        assert b"own.system=1" in (await guest.run("cat /proc/cmdline", check=True)).stdout
        assert await guest.stop(), "the guest did not shut down by itself"


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_a_users_image(image: Path, tmp_path: Path, kind: str) -> None:
    disk = tmp_path / f"other,{kind}"
    subprocess.run([*find_qemu().tool("qemu-img"), "convert", "-O", kind, image, disk], check=True)
    await check(GuestSpec(memory=768 * MIB, image=disk, firmware="uefi"), tmp_path / "guest")


async def test_boot_from_a_controller(image: Path, target: Target, tmp_path: Path) -> None:
    socket = await target.controller(size=image.stat().st_size)
    with image.open("rb") as source, (target.directory / "c1.img").open("r+b") as backing:
        while data := source.read(MIB):
            backing.write(data)
    spec = GuestSpec(memory=768 * MIB, sockets=(socket,), boot_from=socket, firmware="uefi")
    await check(spec, tmp_path / "guest")
