"""Real guests on real controllers: boot, data, the guest's end, and what is said when a part is missing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from guests import VERIFY, Boot, Target, fio_errors

from nvmuser.errors import GuestError
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.process import QemuProcess
from nvmuser.guest.spec import MIB
from nvmuser.hostfs.process import start_time


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_controllers_verify(target: Target, boot: Boot, hugepages: bool, count: int) -> None:
    sockets = [await target.controller() for _ in range(count)]
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=tuple(sockets), hugepages=hugepages))

    devices = (await guest.run("ls /dev/nvme*n1", check=True)).stdout.decode().split()
    assert len(devices) == count
    serials = (await guest.run("cat /sys/class/nvme/*/serial", check=True)).stdout.decode().split()
    assert sorted(serials) == [f"NVMUSER{number}" for number in range(1, count + 1)]

    results = await asyncio.gather(*(guest.run(VERIFY.format(device=d), timeout=150) for d in devices))
    for result in results:
        assert result.status == 0, result.stderr
        assert fio_errors(result.stdout) == (0, 8 * MIB, 8 * MIB)
    messages = (await guest.run("dmesg")).stdout.decode()
    assert "nvme" in messages
    assert not [line for line in messages.splitlines() if "I/O error" in line or "timeout" in line]


async def test_data_survive_a_reboot_and_a_reset(target: Target, boot: Boot) -> None:
    guest = await boot(GuestSpec(memory=512 * MIB, sockets=(await target.controller(),)))
    await guest.run("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt", check=True)
    await guest.put("/mnt/file", b"kept")
    first = guest.boot_id
    second = await guest.reboot()
    assert second != first
    await guest.run("mount /dev/nvme0n1 /mnt", check=True)
    assert await guest.get("/mnt/file") == b"kept"
    await guest.run("sync; umount /mnt", check=True)
    assert await guest.reset() not in (first, second)
    await guest.run("fsck.ext4 -fn /dev/nvme0n1", check=True)


async def test_nothing_is_left(tmp_path: Path) -> None:
    async with launch(GuestSpec(memory=512 * MIB), tmp_path / "guest") as guest:
        process = guest.process
        assert start_time(process.pid) > 0
    assert process.ended.is_set()
    assert start_time(process.pid) == 0
    assert not (tmp_path / "guest").exists()


async def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    try:
        async with launch(GuestSpec(memory=512 * MIB), tmp_path / "guest") as guest:
            process = guest.process
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert start_time(process.pid) == 0
    assert (tmp_path / "guest/console.log").exists()


async def test_qemu_goes_with_the_one_who_started_it(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from nvmuser.guest import GuestSpec, launch
async def main():
    async with launch(GuestSpec(memory=512 << 20), Path({str(tmp_path / "guest")!r}), wait=False) as guest:
        print(guest.process.pid, flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    pid = int(await owner.stdout.readline())
    qemu = QemuProcess.find(pid, start_time(pid), tmp_path / "guest/qemu.log")
    assert qemu is not None
    owner.send_signal(signal.SIGKILL)
    await owner.wait()
    assert await qemu.wait_ended(10)
    qemu.close()


async def test_a_killed_qemu_is_noticed_at_once(boot: Boot) -> None:
    guest = await boot(GuestSpec(memory=512 * MIB))
    async with guest.stream("exec sleep 1000") as process:
        os.kill(guest.process.pid, signal.SIGKILL)
        with pytest.raises(GuestError, match="connection to the guest's agent ended"):
            await asyncio.wait_for(process.wait(), 10)
    assert await guest.process.wait_ended(10)


async def test_a_killed_target_is_said_before_anything_boots(target: Target, tmp_path: Path) -> None:
    socket = await target.controller()
    target.kill()
    with pytest.raises(GuestError, match="nobody answers at this controller socket"):
        async with launch(GuestSpec(memory=512 * MIB, sockets=(socket,)), tmp_path / "guest"):
            pass
    assert not (tmp_path / "guest").exists()


async def test_what_qemu_says_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="no-such-device"):
        async with launch(GuestSpec(memory=512 * MIB, qemu_args=("-device", "no-such-device")), tmp_path / "guest"):
            pass
