"""A guest on volumes of a pool: large reads where a snapshot has ended, with its own memory around each page."""

from __future__ import annotations

from guests import Boot, Target

from nvmuser.guest import GuestSpec
from nvmuser.guest.spec import MIB

READ = (
    "fio --name=read --filename={device} --rw=randread --bs=128k --iodepth=32 --ioengine=libaio --direct=1 "
    "--iomem=mmap --offset=64M --size=64M --loops=6"
)


async def test_reads_behind_the_end_of_a_snapshot(target: Target, boot: Boot) -> None:
    """A volume that has grown since its snapshot, and a clone of the snapshot that has."""
    socket = await target.controller()
    await target.volume("base", 512 * MIB)
    for method, params in (
        ("bdev_lvol_create_lvstore", {"lvs_name": "p", "bdev_name": "base"}),
        ("bdev_lvol_create", {"lvol_name": "v", "lvs_name": "p", "size_in_mib": 64}),
        ("bdev_lvol_snapshot", {"lvol_name": "p/v", "snapshot_name": "s"}),
        ("bdev_lvol_clone", {"snapshot_name": "p/s", "clone_name": "c"}),
        ("bdev_lvol_resize", {"name": "p/v", "size_in_mib": 128}),
        ("bdev_lvol_resize", {"name": "p/c", "size_in_mib": 128}),
    ):
        await target.rpc.call(method, params)
    numbers = [await target.attach(1, name) for name in ("p/v", "p/c")]
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(socket,)))
    for number in numbers:
        result = await guest.run(READ.format(device=f"/dev/nvme0n{number}"), timeout=150)
        assert result.status == 0, result.stderr
