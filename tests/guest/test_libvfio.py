"""libvfio in real guests: QEMUs that only know the kernel's VFIO, on SPDK's controllers and on other servers.

The QEMUs are Debian 12's (7.2) and 13's (10.0), unpacked into the cache, and the one that nvmuser uses, with its own
vfio-pci instead of its vfio-user client.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from guests import VERIFY, Target, fio_errors

from nvmf_vfio import vfio_dir
from nvmuser.errors import GuestError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.paths import cache_dir
from nvmuser.runtime import Qemu, apt, find_qemu, product
from nvmuser.runtime.steps import Reporter

SOURCE = Path(__file__).parents[2] / "nvmf_vfio/libvfio"
DEBIAN = {"qemu-7.2": "bookworm", "qemu-10.0": "trixie"}
QEMUS = [*DEBIAN, "qemu-own"]

FAMILY = re.compile(r"_*(open|close|ioctl|mmap|pread|pwrite|readlink|l?stat|fstat|openat|fstatat|realpath|access)\w*")
"""The libc functions by which a QEMU could reach VFIO."""

NO_TRAP_NEEDED = {
    # Another kind of object, or QEMU uses it for other things than VFIO (seen in hw/vfio of 7.2, 10.0 and 11.1).
    "access", "closedir", "opendir", "openpty", "fstat64", "fstatat64", "fstatfs64", "lstat64", "openat64",
    "readlinkat", "statvfs64", "statx",
    "preadv64", "pwritev64",  # block/file-posix.c only; on our descriptors they fail with ESPIPE
    "close_range",  # in a child that is about to become another program
    "realpath", "__realpath_chk",  # of DIR/subsystem, which does not exist: then it is no mediated device
}  # fmt: skip


def fetch_debian(suite: str) -> Path:
    """Unpack a suite's QEMU into the cache, once."""
    root = cache_dir() / f"qemu-test-{suite}"
    if product.read_manifest(root) is None:
        reporter = Reporter(cache_dir() / f"log/qemu-test-{suite}.log")
        reporter.log.parent.mkdir(parents=True, exist_ok=True)
        private = apt.PrivateApt(cache_dir() / f"apt/qemu-{suite}", (suite,))
        private.update(reporter)
        packages = private.fetch_packages(("qemu-system-x86", "seabios"), reporter)
        with product.assembling(root) as tree:
            apt.unpack(packages, tree, reporter, leave_out=("./usr/share/doc*", "./usr/share/man"))
            product.write_manifest(tree, suite=suite)
        product.remove(private.root)
    return root


def binary_of(name: str) -> Path:
    """The program itself, for nm."""
    if name in DEBIAN:
        return fetch_debian(DEBIAN[name]) / "usr/bin/qemu-system-x86_64"
    return next(Path(word) for word in find_qemu().argv if word.endswith("qemu-system-x86_64"))


@pytest.fixture(params=[pytest.param(one, marks=[pytest.mark.matrix] if one != "qemu-7.2" else []) for one in QEMUS])
def qemu_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libvfio.so, built for these tests."""
    out = tmp_path_factory.mktemp("libvfio")
    subprocess.run(["make", "-C", SOURCE, f"OUT={out}"], check=True, stdout=subprocess.DEVNULL)
    return out / "libvfio.so"


def trapped() -> set[str]:
    return set(re.findall(r"TRAP\((\w+)\)", (SOURCE / "traps.h").read_text()))


@pytest.mark.parametrize("name", QEMUS)
def test_no_qemu_escapes(name: str) -> None:
    """Every function of these families that a QEMU imports is trapped, or known to need no trap."""
    nm = ["nm", "-D", "--undefined-only", str(binary_of(name))]
    lines = subprocess.run(nm, capture_output=True, text=True, check=True).stdout.splitlines()
    imported = {line.split()[-1].split("@")[0] for line in lines if line.strip()}
    family = {name for name in imported if FAMILY.fullmatch(name)}
    assert family >= {"ioctl", "mmap64", "pread64", "pwrite64", "close"}  # it is a QEMU, and nm was understood
    assert family - trapped() - NO_TRAP_NEEDED == set()


class Host:
    """QEMUs with the library preloaded, and the device directories for their command lines."""

    def __init__(self, qemu: Qemu, directory: Path) -> None:
        self.qemu = qemu
        self.root = directory / "vfio"
        self._directory = directory
        self._guests = 0

    def device(self, number: int, socket: Path, *, path: Path | None = None) -> tuple[str, str]:
        """Arguments for a controller on a root port. `path` is what QEMU is told instead of the directory."""
        directory = vfio_dir.make(self.root, number, socket)
        properties = {"driver": "vfio-pci", "id": f"nvme{number}", "bus": f"port{number - 1}"}
        # In JSON like the ports: QEMU makes what is not in JSON first, and would not find them.
        return "-device", json.dumps({**properties, "sysfsdev": str(path or directory)})

    @asynccontextmanager
    async def boot(self, *arguments: str) -> AsyncIterator[Guest]:
        """A guest with these additional arguments."""
        self._guests += 1
        spec = GuestSpec(memory=512 * MIB, hugepages=False, qemu_args=arguments)
        async with launch(spec, self._directory / f"guest{self._guests}") as guest:
            yield guest


@pytest.fixture
def host(qemu_name: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    qemu = find_qemu()
    environment = ["env", f"LD_PRELOAD={library}", f"LIBVFIO_DIR={tmp_path}/vfio"]
    argv: tuple[str, ...] = qemu.argv
    if qemu_name in DEBIAN:
        root = fetch_debian(DEBIAN[qemu_name])
        libraries = root / "usr/lib/x86_64-linux-gnu"
        environment.append(f"QEMU_MODULE_DIR={libraries}/qemu")
        argv = (
            *(str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)),
            *(str(binary_of(qemu_name)), "-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
        )
    preloaded = replace(qemu, argv=(*environment, *argv), version=qemu_name)
    monkeypatch.setattr("nvmuser.guest.machine.host.find_qemu", lambda: preloaded)
    return Host(preloaded, tmp_path)


async def verify(guest: Guest, count: int = 1) -> None:
    """Write and read back on every controller at once."""
    devices = (await guest.run("ls /dev/nvme*n1", check=True)).stdout.decode().split()
    assert len(devices) == count
    for result in await asyncio.gather(*(guest.run(VERIFY.format(device=d), timeout=150) for d in devices)):
        assert result.status == 0, result.stderr
        assert fio_errors(result.stdout) == (0, 8 * MIB, 8 * MIB)


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.matrix), 4])
async def test_controllers_verify(target: Target, host: Host, count: int) -> None:
    devices = [host.device(n, await target.controller()) for n in range(1, count + 1)]
    async with host.boot(*(word for device in devices for word in device)) as guest:
        await verify(guest, count)


async def test_reset_and_reboot(target: Target, host: Host) -> None:
    async with host.boot(*host.device(1, await target.controller())) as guest:
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


async def unplug(guest: Guest, identity: str) -> None:
    with guest.qmp.listener("DEVICE_DELETED") as deleted:
        await guest.qmp.execute("device_del", {"id": identity})
        async with asyncio.timeout(30):
            await deleted.get()


@pytest.mark.matrix
async def test_plug_and_unplug_fifty_times(target: Target, host: Host) -> None:
    """What aborts QEMU's own client."""
    socket = await target.controller()
    properties = {"driver": "vfio-pci", "id": "nvme1", "bus": "port0"}
    properties["sysfsdev"] = str(vfio_dir.make(host.root, 1, socket))
    async with host.boot() as guest:
        before = None
        for cycle in range(50):
            await guest.qmp.execute("device_add", properties)
            await wait_block_device(guest, present=True)
            if cycle in (0, 49):
                await verify(guest)
            await unplug(guest, "nvme1")
            await wait_block_device(guest, present=False)
            left = len(os.listdir(f"/proc/{guest.process.pid}/fd"))
            before = left if before is None else before
            assert left <= before, "descriptors leak"


async def test_the_target_dies_for_good(target: Target, host: Host) -> None:
    """The guest sees an error soon, lets the device go, and lives on; its slot takes another device."""
    async with host.boot(*host.device(1, await target.controller())) as guest:
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


async def test_older_form_of_the_path(target: Target, host: Host) -> None:
    """sysfsdev=/dev/vfio/N, which stood for group and device at once; needs LIBVFIO_DIR."""
    async with host.boot(*host.device(1, await target.controller(), path=Path("/dev/vfio/1"))) as guest:
        await verify(guest)


async def test_unshared_memory_is_refused(target: Target, host: Host, tmp_path: Path) -> None:
    device = host.device(1, await target.controller())
    argv = [*host.qemu.argv, "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-m", "256M"]
    argv += ["-device", json.dumps({"driver": "pcie-root-port", "id": "port0"}), *device]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert "libvfio: guest memory at 0x0" in result.stderr
    assert "memory-backend-memfd" in result.stderr


async def test_no_server(host: Host, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="QEMU ended"):
        async with host.boot(*host.device(1, tmp_path / "nobody/cntrl")):
            pass
    log = (tmp_path / "guest1/qemu.log").read_text()
    assert f"libvfio: group 1: no vfio-user server at {host.root}/1/cntrl: No such file or directory" in log
