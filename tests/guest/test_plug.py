"""Plugging controllers into a running guest, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from pathlib import Path

import pytest
from guests import APPEARS, DISAPPEARS, Boot, Target

from nvmf_vfio.protocol.header import MAX_MESSAGE, Flag, Header
from nvmuser.errors import GuestError, NotFoundError
from nvmuser.guest import GuestSpec
from nvmuser.guest.plug import intend, plug, remove, unplug
from nvmuser.guest.qmp import look
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

    assert await plug(guest.qmp, sockets) == []
    with pytest.raises(GuestError, match="1 free PCIe root ports are needed, the guest has 0"):
        await plug(guest.qmp, [await target.controller()])

    with pytest.raises(GuestError, match=r"QEMU 1\d\.\d+\.\d+ aborts .* `nvmuser controller detach c2 VOLUME --force`"):
        await unplug(guest.qmp, sockets)
    with pytest.raises(NotFoundError, match="c4 is not plugged in"):
        await unplug(guest.qmp, [target.directory / "c4/cntrl"])
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
    # It waits for the end of the kernel's look for partitions, whose reads would find no namespace any more.
    await guest.run("dd if=/dev/nvme0n2 of=/dev/null bs=4k count=1 iflag=direct", check=True)
    await target.rpc.call("nvmf_subsystem_remove_ns", {"nqn": "nqn.2026-11.org.nvmuser:c1", "nsid": 2})
    await guest.run(DISAPPEARS.format(device="/dev/nvme0n2"), check=True)


async def test_events_of_an_unplug(boot: Boot) -> None:
    """With a device that QEMU can unplug, for one of ours must not be tried."""
    guest = await boot(GuestSpec(memory=512 * MIB, spare_ports=1))
    await guest.qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "null", "read-zeroes": True})
    await guest.qmp.execute("device_add", {"driver": "virtio-blk-pci", "id": "v", "drive": "null", "bus": "port0"})
    await guest.run(APPEARS.format(device="/dev/vda"), check=True)
    assert (await look(guest.qmp)).free_ports == ()
    await remove(guest.qmp, "v")
    assert (await look(guest.qmp)).free_ports == ("port0",)
    with pytest.raises(GuestError, match="does not unplug v"):
        await remove(guest.qmp, "v")


async def test_preflight_finds_all_at_once(target: Target, boot: Boot, tmp_path: Path) -> None:
    """In a guest as somebody else may have made it."""
    memory, port = "memory-backend-ram,id=odd,size=3M", "pcie-root-port,id=closed,hotplug=off"
    # Among arguments an IOMMU is refused.
    (tmp_path / "config").write_text('[device]\n  driver = "virtio-iommu-pci"\n')
    arguments = ("-readconfig", str(tmp_path / "config"), "-object", memory, "-device", port)
    guest = await boot(GuestSpec(memory=512 * MIB, hugepages=False, spare_ports=1, qemu_args=arguments))
    facts = await look(guest.qmp)
    assert facts.free_ports == ("port0",)
    assert {one.name: (one.size, one.shared, one.page_size) for one in facts.memory} == {
        "mem": (512 * MIB, True, 4096),
        "odd": (3 * MIB, False, 0),
    }

    socket = await target.controller()
    target.kill()
    found = [
        str(problem)
        for problem in intend(facts, tmp_path / "image", [socket, target.directory / "none/cntrl"]).problems
    ]
    for expected in (
        "memory odd is not shared",
        "memory odd has 3145728 bytes",
        "has an IOMMU (virtio-iommu-pci)",
        "2 free PCIe root ports are needed, the guest has 1",
        "nobody answers",
        "none/cntrl does not exist",
    ):
        assert any(expected in problem for problem in found), (expected, found)
    assert len(found) == 6


async def test_what_was_plugged_before_a_refusal_stays_and_is_named(target: Target, boot: Boot) -> None:
    """This QEMU aborts on `device_del`: it keeps what it has taken, and the same command goes on from there."""
    guest = await boot(GuestSpec(memory=512 * MIB, spare_ports=2))
    first, second = await target.controller(), target.directory / "c2/cntrl"
    second.parent.mkdir()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # who only asks whether somebody is here
            header = Header.unpack(await reader.readexactly(Header.SIZE), limit=MAX_MESSAGE)
            error = Header(header.id, header.command, Header.SIZE, Flag.REPLY | Flag.ERROR, errno.EINVAL)
            writer.write(error.pack())
            await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(refuse, second):
        with pytest.raises(GuestError, match=r"QEMU refused controller c2: .*plugged in, and stays: nvmuser-c1"):
            await plug(guest.qmp, [first, second])
    second.unlink(missing_ok=True)  # from Python 3.13 on, asyncio has removed it
    second.parent.rmdir()
    await target.controller()
    assert await plug(guest.qmp, [first, second]) == ["nvmuser-c2"]
    await guest.run(APPEARS.format(device="/dev/nvme1n1"), check=True)
