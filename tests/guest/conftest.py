"""Fixtures as a ladder: `target` (a bare SPDK process) → `controllers` → `boot` (guests).

Every test that had a target is failed when its log shows a command that no guest meant: SPDK reading queues at stale
addresses looks like that. When a test fails, the logs stay in its temporary directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nvmuser.errors import SetupError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import HUGEPAGE, MIB, free_hugepages
from nvmuser.rpc import Client
from nvmuser.runtime import find_appliance, find_qemu, find_spdk

GARBAGE = re.compile(r"process NVMe command opc|unsuccessful query for nsid|SEGV|Segmentation")
_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")


@pytest.fixture(scope="session", autouse=True)
def _parts() -> None:
    try:
        find_spdk(), find_qemu(), find_appliance()
    except SetupError as error:
        pytest.skip(str(error))


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


async def _connect(path: Path, process: subprocess.Popen[bytes], log: Path) -> Client:
    async with asyncio.timeout(60):
        while process.poll() is None:
            if path.exists():
                with contextlib.suppress(Exception):
                    return await Client.connect(path)
            await asyncio.sleep(0.05)
    raise AssertionError(f"the target ended: {log.read_text()[-2000:]}")


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    """An SPDK target without hugepages, with the vfio-user transport as the product makes it."""
    directory = tmp_path / "target"
    directory.mkdir()
    socket, log = directory / "rpc.sock", directory / "target.log"
    argv = [find_spdk().binary("nvmf_tgt"), "--no-huge", "--no-pci", "-s", "512", "-m", "0x1", "-r", socket]
    with log.open("wb") as output:
        process = subprocess.Popen([*argv, "--disable-cpumask-locks"], stdout=output, stderr=output)
    try:
        async with await _connect(socket, process, log) as rpc:
            await rpc.call("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True})
            target = Target(directory, rpc, process)
            yield target
            garbage = [line for line in target.log.splitlines() if GARBAGE.search(line)]
            assert not garbage, f"commands that no guest meant: {garbage[:3]}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


Boot = Callable[[GuestSpec], Awaitable[Guest]]


@pytest.fixture
async def boot(tmp_path: Path) -> AsyncIterator[Boot]:
    """Boots guests; they are shut down at the end, and must have gone by themselves."""
    async with contextlib.AsyncExitStack() as stack:
        numbers = itertools.count(1)

        async def start(spec: GuestSpec) -> Guest:
            return await stack.enter_async_context(launch(spec, tmp_path / f"guest{next(numbers)}"))

        yield start


@pytest.fixture(params=["pages-4k", "hugepages"])
def hugepages(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Which kind of memory the guest gets; hugepages are reserved for the test, and given back."""
    if request.param == "pages-4k":
        yield False
        return
    before = int(_HUGEPAGES.read_text())
    missing = max(0, 512 * MIB - free_hugepages()) // HUGEPAGE
    try:
        if missing:
            _HUGEPAGES.write_text(str(before + missing))
    except PermissionError:
        pytest.skip("only root can reserve hugepages")
    try:
        if free_hugepages() < 512 * MIB:
            pytest.skip("the kernel has no 512 MiB of contiguous 2 MiB pages left")
        yield True
    finally:
        if missing:
            _HUGEPAGES.write_text(str(before))
