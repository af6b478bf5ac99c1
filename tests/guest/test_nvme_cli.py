"""nvme-cli in a guest: what a controller announces works, what it does not announce is refused, and it goes on."""

from __future__ import annotations

import json
from typing import Any

from guests import VERIFY, Boot, Target

from nvmuser.guest import Guest, GuestSpec
from nvmuser.guest.spec import MIB

DEVICE, CTRL = "/dev/nvme0n1", "/dev/nvme0"
REGISTERS = "iomem=relaxed"
"""nvme-cli reads the controller's registers by its file in /sys, which Debian's kernels allow only so."""
ANNOUNCED = [
    f"nvme id-ctrl {CTRL}",
    f"nvme id-ns {DEVICE}",
    f"nvme ns-descs {DEVICE}",
    f"nvme nvm-id-ctrl {CTRL}",
    "nvme list",
    "nvme list-subsys",
    f"nvme smart-log {CTRL}",
    f"nvme smart-log {DEVICE}",
    f"nvme error-log {CTRL}",
    f"nvme fw-log {CTRL}",
    f"nvme supported-log-pages {CTRL}",
    f"nvme effects-log {CTRL}",
    f"nvme show-regs {CTRL}",
    f"nvme flush {DEVICE}",
    f"nvme write-zeroes {DEVICE} -s 0 -c 7",
    f"nvme dsm {DEVICE} -d -b 8 -s 0",
    f"dd if=/dev/zero of=/tmp/zeroes bs=4096 count=1; nvme compare {DEVICE} -s 0 -c 7 -z 4096 -d /tmp/zeroes",
    f"nvme copy {DEVICE} --sdlba=64 --slbs=0 --blocks=7",
    f"nvme reset {CTRL}",
]
FEATURES = (0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B, 0x0F, 0x16)
"""In the Feature Identifiers Supported and Effects page, but for those of reservations."""
REFUSED = [
    f"nvme verify {DEVICE} -s 0 -c 7",
    f"nvme write-uncor {DEVICE} -s 0 -c 7",
    f"nvme device-self-test {CTRL} -n 1 -s 1",
    f"nvme format {DEVICE} -f",
    f"nvme sanitize {CTRL} -a 2",
    f"nvme set-feature {CTRL} -f 6 -v 0",
    f"nvme admin-passthru {CTRL} --opcode=0xff --namespace-id=0xffffffff --cdw10=0xffffffff",
    f"nvme io-passthru {DEVICE} --opcode=0x55 --namespace-id=1 --cdw10=0xffffffff",
]


async def identify(guest: Guest, what: str) -> dict[str, Any]:
    result = await guest.run(f"nvme {what} -o json", check=True)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


async def test_what_is_announced_works_and_the_rest_is_refused(target: Target, boot: Boot) -> None:
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(await target.controller(),), append=REGISTERS))
    controller = await identify(guest, f"id-ctrl {CTRL}")
    assert controller["oncs"] & 0b1_1000_1111 == 0b1_0000_1101, "compare, dsm, zeroes, copy; no verify"
    assert controller["oacs"] & 0xFF == 0, "no security, format, firmware, namespaces, self-test"
    assert controller["sanicap"] == 0
    assert (await identify(guest, f"id-ns {DEVICE}"))["rescap"] == 0
    for line in ANNOUNCED:
        result = await guest.run(line, timeout=60)
        assert result.status == 0, (line, result.stdout[-300:], result.stderr[-300:])
    for feature in FEATURES:
        await guest.run(f"nvme get-feature {CTRL} -f {feature:#x}", check=True)
    for line in REFUSED:
        result = await guest.run(line, timeout=60)
        assert result.status != 0, (line, result.stdout[-300:])
    await guest.run(VERIFY.format(device=DEVICE), timeout=150, check=True)


async def test_a_snapshot_is_read_only_in_the_guest(target: Target, boot: Boot) -> None:
    socket = await target.controller()
    await target.volume("base", 128 * MIB)
    await target.rpc.call("bdev_lvol_create_lvstore", {"bdev_name": "base", "lvs_name": "p", "cluster_sz": MIB})
    await target.rpc.call("bdev_lvol_create", {"lvs_name": "p", "lvol_name": "v", "size_in_mib": 32})
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(socket,)))
    await target.attach(1, "p/v")
    await guest.run("for i in $(seq 100); do [ -b /dev/nvme0n2 ] && break; usleep 50000; done", check=True)
    await guest.run(
        "mkfs.ext4 -q /dev/nvme0n2 && mount /dev/nvme0n2 /mnt && echo kept > /mnt/f && umount /mnt", check=True
    )
    await target.rpc.call("bdev_lvol_snapshot", {"lvol_name": "p/v", "snapshot_name": "s"})
    await target.attach(1, "p/s")
    await guest.run("for i in $(seq 100); do [ -b /dev/nvme0n3 ] && break; usleep 50000; done", check=True)
    assert (await guest.run("cat /sys/block/nvme0n[123]/ro")).stdout.split() == [b"0", b"0", b"1"]
    assert (await guest.run("mkfs.ext4 -q /dev/nvme0n3")).status != 0
    assert (await guest.run("mount -o rw /dev/nvme0n3 /mnt && touch /mnt/g; s=$?; umount /mnt; exit $s")).status != 0
    assert (await guest.run("dd if=/dev/zero of=/dev/nvme0n3 bs=4096 count=1 conv=fsync")).status != 0
    await guest.run("mount -o ro,noload /dev/nvme0n3 /mnt", check=True)
    assert await guest.get("/mnt/f") == b"kept\n"
