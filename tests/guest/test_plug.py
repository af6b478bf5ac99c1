"""Plugging controllers into a running guest, and what is refused."""

from __future__ import annotations

import time

import pytest
from guests import APPEARS, Boot, Target

from nvmuser.errors import ConflictError, GuestError, NotFoundError
from nvmuser.guest import GuestSpec
from nvmuser.guest.plug import free_ports, plug, preflight, remove, unplug
from nvmuser.guest.spec import MIB


async def test_plug_while_it_runs(target: Target, boot: Boot) -> None:
    first = await target.controller()
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(first,), spare_ports=2))
    sockets = [await target.controller() for _ in range(2)]

    began = time.monotonic()
    assert await plug(guest.qmp, sockets) == ["nvmuser-c2", "nvmuser-c3"]
    for device in ("/dev/nvme1n1", "/dev/nvme2n1"):
        await guest.run(APPEARS.format(device=device), check=True)
    print(f"two controllers plugged in and seen after {time.monotonic() - began:.2f} s")
    command = "fio --name=v --filename={} --rw=write --bs=64k --size=8m --direct=1 --verify=crc32c --ioengine=io_uring"
    await guest.run(command.format("/dev/nvme2n1"), check=True)

    with pytest.raises(ConflictError, match="c2 is plugged in already"):
        await plug(guest.qmp, sockets[:1])
    with pytest.raises(GuestError, match="1 free PCIe root ports are needed, the guest has 0"):
        await plug(guest.qmp, [await target.controller()])

    with pytest.raises(GuestError, match=r"QEMU 1\d\.\d+\.\d+ aborts .* `nvmuser controller detach c2 VOLUME`"):
        await unplug(guest.qmp, sockets[0])
    with pytest.raises(NotFoundError, match="c4 is not plugged in"):
        await unplug(guest.qmp, target.directory / "c4/cntrl")
    assert (await guest.run("ls /dev/nvme*n1", check=True)).stdout.split() == [
        b"/dev/nvme0n1",
        b"/dev/nvme1n1",
        b"/dev/nvme2n1",
    ]


async def test_namespaces_come_and_go(target: Target, boot: Boot) -> None:
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(await target.controller(),)))
    await target.volume("more", 32 * MIB)
    assert await target.attach(1, "more") == 2
    await guest.run(APPEARS.format(device="/dev/nvme0n2"), check=True)
    await target.rpc.call("nvmf_subsystem_remove_ns", {"nqn": "nqn.2026-11.org.nvmuser:c1", "nsid": 2})
    await guest.run("for i in $(seq 600); do [ -b /dev/nvme0n2 ] || exit 0; usleep 50000; done; exit 1", check=True)


async def test_events_of_an_unplug(boot: Boot) -> None:
    """With a device that QEMU can unplug, for one of ours must not be tried."""
    guest = await boot(GuestSpec(memory=512 * MIB, spare_ports=1))
    await guest.qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "null", "read-zeroes": True})
    await guest.qmp.execute("device_add", {"driver": "virtio-blk-pci", "id": "v", "drive": "null", "bus": "port0"})
    await guest.run(APPEARS.format(device="/dev/vda"), check=True)
    assert await free_ports(guest.qmp) == []
    await remove(guest.qmp, "v")
    assert await free_ports(guest.qmp) == ["port0"]
    with pytest.raises(GuestError, match="does not unplug v"):
        await remove(guest.qmp, "v")


async def test_preflight_finds_all_at_once(target: Target, boot: Boot) -> None:
    arguments = ("-device", "virtio-iommu-pci")
    guest = await boot(GuestSpec(memory=512 * MIB, spare_ports=0, qemu_args=arguments))
    socket = await target.controller()
    target.kill()
    found = [str(problem) for problem in await preflight(guest.qmp, [socket, target.directory / "none/cntrl"])]
    for expected in ("has an IOMMU", "2 free PCIe root ports", "nobody answers", "none/cntrl does not exist"):
        assert any(expected in problem for problem in found), (expected, found)
    assert len(found) == 4
