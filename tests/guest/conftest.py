"""Fixtures as a ladder: `target` (a bare SPDK process) → controllers → `boot` (guests).

Every test that had a target is failed when its log shows a command that no guest meant. When a test fails, the logs
stay in its temporary directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shlex
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from guests import Boot, Target, garbage, reserved_hugepages
from qemus import the_qemu
from travel import Travel, travelling

from nvmuser.errors import RpcError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.rpc import Client
from nvmuser.supervisor.spdk import NO_TRACE
from nvmuser.toolchain import find_appliance, find_qemu, find_spdk, libvfio
from nvmuser.toolchain.steps import Reporter


@pytest.fixture(scope="session", autouse=True)
def _parts() -> None:
    """Without one of these nothing here can be tested: that is no success."""
    find_spdk(), find_qemu(), find_appliance()


async def _connect(path: Path, process: subprocess.Popen[bytes], log: Path) -> Client:
    async with asyncio.timeout(60):
        while process.poll() is None:
            if path.exists():
                with contextlib.suppress(RpcError):
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
    argv += ["--disable-cpumask-locks", *NO_TRACE]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output)
    try:
        async with await _connect(socket, process, log) as rpc:
            await rpc.call("nvmf_create_transport", {"trtype": "VFIOUSER", "disable_mappable_bar0": True})
            target = Target(directory, rpc, process)
            yield target
            assert not garbage(log), "commands that no guest meant"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
    with reserved_hugepages(512 * MIB):
        yield True


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["qemu-own", pytest.param("qemu-10.0", marks=pytest.mark.matrix)]
)
async def travel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Travel]:
    """A guest that can move between two deployments."""
    root = tmp_path_factory.mktemp("t")
    program = root / "qemu"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(the_qemu(request.param).argv)} "$@"\n')
    program.chmod(0o755)
    if not libvfio.is_done():
        libvfio.build(Reporter(root / "libvfio.log"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVMUSER_QEMU", str(program))
        async with travelling(root) as one:
            await one.load.prepare()
            yield one
            assert await one.load.end()
