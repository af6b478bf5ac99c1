"""libvfio in real guests: QEMUs that only know the kernel's VFIO, on SPDK's controllers.

The QEMUs are Debian 12's (7.2) and 13's (10.0), and the one that nvmuser uses, with its own vfio-pci instead of its
vfio-user client.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from guests import VERIFY, Target, fio_errors
from qemus import QEMUS, the_qemu

from nvmf_vfio import vfio_dir
from nvmuser.bench.measure import runner
from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.fio import Job
from nvmuser.errors import GuestError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.plug import plug, unplug
from nvmuser.guest.spec import MIB
from nvmuser.toolchain import Qemu, libvfio
from nvmuser.toolchain.steps import Reporter

SOURCE = libvfio.source_dir()

FAMILY = re.compile(
    r"_*(open|close|dup|ioctl|mmap|pread|pwrite|readlink|l?stat|fstat|openat|fstatat|realpath|access|write)\w*"
)
"""The libc functions by which a QEMU could reach VFIO."""

NO_TRAP_NEEDED = {
    # Another kind of object, or QEMU uses it for other things than VFIO (seen in hw/vfio of 7.2, 10.0 and 11.1).
    "access", "closedir", "opendir", "openpty", "fstat64", "fstatat64", "fstatfs64", "lstat64", "openat64",
    "readlinkat", "statvfs64", "statx",
    "preadv64", "pwritev64",  # block/file-posix.c only; on our descriptors they fail with ESPIPE
    "writev",  # never of a device's state
    "close_range",  # in a child that is about to become another program
    "realpath", "__realpath_chk",  # of DIR/subsystem, which does not exist: then it is no mediated device
}  # fmt: skip


@pytest.fixture(params=[pytest.param(one, marks=[pytest.mark.matrix] if one != "qemu-7.2" else []) for one in QEMUS])
def qemu_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def _library(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of the source as it is now."""
    if not libvfio.is_done():
        libvfio.build(Reporter(tmp_path_factory.mktemp("libvfio") / "log"))


def trapped() -> set[str]:
    return set(re.findall(r"TRAP\((\w+)\)", (SOURCE / "traps.h").read_text()))


@pytest.mark.parametrize("name", QEMUS)
def test_no_qemu_escapes(name: str) -> None:
    """Every function of these families that a QEMU imports is trapped, or known to need no trap."""
    program = next(word for word in the_qemu(name).argv if word.endswith("qemu-system-x86_64"))
    nm = ["nm", "-D", "--undefined-only", program]
    lines = subprocess.run(nm, capture_output=True, text=True, check=True).stdout.splitlines()
    imported = {line.split()[-1].split("@")[0] for line in lines if line.strip()}
    family = {name for name in imported if FAMILY.fullmatch(name)}
    assert family >= {"ioctl", "mmap64", "pread64", "pwrite64", "close"}  # it is a QEMU, and nm was understood
    assert family - trapped() - NO_TRAP_NEEDED == set()


class Host:
    """A QEMU with the library preloaded, and the device directories for its command line."""

    def __init__(self, qemu: Qemu, directory: Path) -> None:
        self.qemu = qemu
        self.directory = directory
        self.devices = vfio_dir.Devices(directory / "vfio")

    @asynccontextmanager
    async def boot(
        self, *sockets: Path, directories: tuple[Path, ...] = (), append: str = "", cpus: int = 1
    ) -> AsyncIterator[Guest]:
        """A guest with these controllers. `directories` are what QEMU is told instead of their own."""
        directories = directories or tuple(self.devices.assign(socket) for socket in sockets)
        spec = GuestSpec(
            cpus=cpus, memory=512 * MIB, hugepages=False, sockets=sockets, directories=directories, append=append
        )
        async with launch(spec, self.directory / "guest") as guest:
            yield guest


@pytest.fixture
def host(qemu_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    qemu = the_qemu(qemu_name)
    monkeypatch.setattr("nvmuser.guest.machine.host.find_qemu", lambda _device: qemu)
    return Host(qemu, tmp_path)


async def verify(guest: Guest, count: int = 1) -> None:
    """Write and read back on every controller at once."""
    devices = (await guest.run("ls /dev/nvme*n1", check=True)).stdout.decode().split()
    assert len(devices) == count
    for result in await asyncio.gather(*(guest.run(VERIFY.format(device=d), timeout=150) for d in devices)):
        assert result.status == 0, result.stderr
        assert fio_errors(result.stdout) == (0, 8 * MIB, 8 * MIB)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.matrix), 4])
async def test_controllers_verify(target: Target, host: Host, count: int) -> None:
    async with host.boot(*[await target.controller() for _ in range(count)]) as guest:
        await verify(guest, count)


async def test_without_msi(target: Target, host: Host) -> None:
    """Interrupted by lines, which QEMU deasserts when the guest accesses a controller."""
    sockets = [await target.controller() for _ in range(2)]
    async with host.boot(*sockets, append="pci=nomsi", cpus=2) as guest:
        assert (await guest.run("grep nvme /proc/interrupts", check=True)).stdout.count(b"IO-APIC") == 2
        await verify(guest, 2)
        text = (await guest.run("dmesg", check=True)).stdout
        assert b"nobody cared" not in text
        assert b"timeout" not in text


async def test_reset_and_reboot(target: Target, host: Host) -> None:
    async with host.boot(await target.controller()) as guest:
        await guest.run("mkfs.ext4 -q /dev/nvme0n1 && mount /dev/nvme0n1 /mnt", check=True)
        await guest.agent.put("/mnt/file", b"kept")
        await guest.run("sync; umount /mnt; nvme reset /dev/nvme0; mount /dev/nvme0n1 /mnt", check=True)
        assert await guest.agent.get("/mnt/file") == b"kept"
        await guest.run("umount /mnt", check=True)
        first = guest.boot_id
        assert await guest.reboot() != first
        await guest.run("mount /dev/nvme0n1 /mnt", check=True)
        assert await guest.agent.get("/mnt/file") == b"kept"


async def wait_in_guest(guest: Guest, condition: str) -> None:
    wait = f"for i in $(seq 400); do {condition} && exit 0; sleep 0.05; done; exit 1"
    assert (await guest.run(wait, timeout=60)).status == 0, f"did not come about: {condition}"


async def wait_block_device(guest: Guest, *, present: bool) -> None:
    await wait_in_guest(guest, "[ -b /dev/nvme0n1 ]" if present else "[ ! -e /dev/nvme0n1 ]")


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.matrix)])
async def test_plug_and_unplug_again_and_again(target: Target, host: Host, times: int) -> None:
    """What aborts QEMU's own client."""
    socket = await target.controller()
    async with host.boot() as guest:
        before = None
        for cycle in range(times):
            assert await plug(guest.qmp, [socket], directories=[host.devices.assign(socket)]) == ["nvmuser-c1"]
            await wait_block_device(guest, present=True)
            if cycle in (0, times - 1):
                await verify(guest)
            await unplug(guest.qmp, [socket])
            await wait_block_device(guest, present=False)
            left = len(os.listdir(f"/proc/{guest.process.pid}/fd"))
            before = left if before is None else before
            assert left <= before, "descriptors leak"


async def test_the_target_dies_for_good(target: Target, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest sees an error soon, lets the device go, and lives on.

    Also the older form of the path, /dev/vfio/N, which stood for group and device at once; it needs LIBVFIO_DIR.
    """
    monkeypatch.setenv("LIBVFIO_DIR", str(host.directory / "vfio"))
    socket = await target.controller()
    host.devices.assign(socket)
    async with host.boot(socket, directories=(Path("/dev/vfio/1"),)) as guest:
        await verify(guest)
        async with guest.stream(
            "fio --name=w --filename=/dev/nvme0n1 --rw=randwrite --bs=4k --iodepth=8 --ioengine=io_uring --direct=1 "
            "--size=8m --time_based --runtime=300 --allow_file_create=0"
        ) as load:
            await wait_in_guest(guest, "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q nvme0n1")
            target.kill()
            async with asyncio.timeout(60):
                result = await load.collect()
            assert result.status != 0
            assert b"Input/output error" in result.stdout + result.stderr
        await wait_block_device(guest, present=False)
        assert (await guest.run("echo alive", timeout=10)).stdout == b"alive\n"
        assert cast(dict[str, Any], await guest.qmp.execute("query-status"))["running"] is True


async def test_target_and_endpoint_die_and_come_back(host: Host, tmp_path_factory: pytest.TempPathFactory) -> None:
    """With the endpoint between, no death of theirs is seen: no error, no wrong block, the same boot."""
    root = tmp_path_factory.mktemp("v")
    with (root / "disk").open("wb") as file:
        file.truncate(64 * MIB)
    # So slow that it still writes when fio has first said how far it is.
    slow = (("rate_iops", "2000"),)
    job = Job("verify", "randwrite", iodepth=32, size="32M", io_size="24M", verify="crc32c", extra=slow).workload()
    async with Deployment.start(root / "s") as deployment:
        socket = await deployment.disk("disk", root / "disk")
        async with host.boot(socket, directories=(deployment.device("disk"),)) as guest:
            boot = guest.boot_id
            for victims in (("target",), ("target", "endpoint")):
                started = asyncio.Event()
                run = asyncio.create_task(
                    runner.run(guest, job, ["/dev/nvme0n1"], on_estimate=lambda _, __, here=started: here.set())
                )
                await asyncio.wait({run, asyncio.create_task(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
                status = await deployment.control.call("status")
                for victim in victims:
                    os.kill(status[victim]["pid"], signal.SIGKILL)
                assert [done.wrong for done in (await run).jobs] == [None]
            status = await deployment.control.call("status")
            assert [one["recoveries"] for one in status["guests"]] == [2]
            assert guest.boot_id == boot
            await unplug(guest.qmp, [socket])


async def test_unshared_memory_is_refused(target: Target, host: Host) -> None:
    directory = host.devices.assign(await target.controller())
    argv = ["env", libvfio.preload(), *host.qemu.argv, "-nodefaults", "-display", "none", "-machine", "q35"]
    argv += ["-accel", "tcg", "-m", "256M", "-device", "pcie-root-port,id=port0"]
    argv += ["-device", f"vfio-pci,bus=port0,sysfsdev={directory}"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert "libvfio: guest memory at 0x0" in result.stderr
    assert "memory-backend-memfd" in result.stderr


async def test_no_server(target: Target, host: Host) -> None:
    """One that was there a moment ago: what is never there is refused before QEMU is started."""
    socket = await target.controller()
    directory = host.devices.assign(socket)
    (directory / "cntrl").unlink()
    (directory / "cntrl").symlink_to(host.directory / "nobody/cntrl")
    with pytest.raises(GuestError, match="QEMU ended"):
        async with host.boot(socket, directories=(directory,)):
            pass
    log = (host.directory / "guest/qemu.log").read_text()
    assert f"libvfio: group 1: no vfio-user server at {directory}/cntrl: No such file or directory" in log
