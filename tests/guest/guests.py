"""What the guest tests share: a bare target, kinds of memory, verifying writes."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nvmuser.guest import Guest, GuestSpec
from nvmuser.guest.spec import MIB
from nvmuser.hostfs import hugepages
from nvmuser.rpc import Client

GARBAGE = re.compile(r"process NVMe command opc|unsuccessful query for nsid|SEGV|Segmentation")
"""SPDK executing what no guest has sent: it reads queues at stale addresses."""

VERIFY = (
    "fio --name=verify --filename={device} --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1 "
    "--size=8m --verify=crc32c --verify_fatal=1 --end_fsync=1 --output-format=json"
)
APPEARS = "for i in $(seq 600); do [ -b {device} ] && exit 0; usleep 50000; done; exit 1"
DISAPPEARS = APPEARS.replace("[ -b", "[ ! -b")

Boot = Callable[[GuestSpec], Awaitable[Guest]]

_HUGEPAGES = hugepages.POOL / "nr_hugepages"


def fio_errors(output: bytes) -> tuple[int, int, int]:
    """Errors, bytes written, bytes read back, over all jobs."""
    jobs = json.loads(output)["jobs"]
    total = [(job["error"], job["write"]["io_bytes"], job["read"]["io_bytes"]) for job in jobs]
    return sum(t[0] for t in total), sum(t[1] for t in total), sum(t[2] for t in total)


def garbage(log: Path) -> list[str]:
    """Lines of a target's log that tell of commands which no guest meant."""
    return [line for line in log.read_text(errors="replace").splitlines() if GARBAGE.search(line)]


@contextlib.contextmanager
def reserved_hugepages(size: int) -> Iterator[None]:
    """So much free hugepage memory, for a while. Skips the test where this user may not reserve any, or memory is too
    fragmented: no set-up can change that."""
    before = int(_HUGEPAGES.read_text())
    missing = max(0, size - hugepages.free_bytes()) // hugepages.PAGE
    try:
        if missing:
            _HUGEPAGES.write_text(str(before + missing))
    except PermissionError:
        pytest.skip("only root can reserve hugepages")
    try:
        if hugepages.free_bytes() < size:
            pytest.skip(f"the kernel has no {size // MIB} MiB of contiguous 2 MiB pages left")
        yield
    finally:
        if missing:
            _HUGEPAGES.write_text(str(before))


class Target:
    """A target that this test started, and what the test made in it."""

    def __init__(self, directory: Path, rpc: Client, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.rpc = rpc
        self.process = process
        self._serial = itertools.count(1)

    async def controller(self, *, size: int = 64 * MIB) -> Path:
        """A controller with one file volume; returns its socket."""
        number = next(self._serial)
        name, nqn, listener = f"c{number}", f"nqn.2026-11.org.nvmuser:c{number}", self.directory / f"c{number}"
        await self.volume(name, size)
        listener.mkdir()
        await self.rpc.call(
            "nvmf_create_subsystem",
            {"nqn": nqn, "allow_any_host": True, "serial_number": f"NVMUSER{number}", "max_namespaces": 32},
        )
        await self.attach(number, name)
        address = {"trtype": "VFIOUSER", "traddr": str(listener), "trsvcid": "0"}
        await self.rpc.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})
        return listener / "cntrl"

    async def volume(self, name: str, size: int) -> None:
        """A file volume."""
        path = self.directory / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(size)
        await self.rpc.call(
            "bdev_aio_create", {"name": name, "filename": str(path), "block_size": 512, "fallocate": True}
        )

    async def attach(self, number: int, name: str) -> int:
        """Make a volume a namespace of the controller with this number."""
        identity = uuid.uuid5(uuid.NAMESPACE_URL, name)
        namespace = {"bdev_name": name, "uuid": str(identity), "nguid": identity.hex, "eui64": identity.hex[:16]}
        nsid = await self.rpc.call(
            "nvmf_subsystem_add_ns", {"nqn": f"nqn.2026-11.org.nvmuser:c{number}", "namespace": namespace}
        )
        return int(nsid)

    @property
    def log(self) -> str:
        """What the target has written."""
        return (self.directory / "target.log").read_text(errors="replace")

    def kill(self) -> None:
        """End it without warning."""
        self.process.kill()
        self.process.wait()
