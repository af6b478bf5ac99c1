"""A migration that would lose the disks is refused with the reason, however QEMU was started or plugged into.

The guests here stand still (`-S`): what is asked is QEMU.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient
from qemus import the_qemu

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.errors import GuestError
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.plug import plug
from nvmuser.guest.qmp import connected, look
from nvmuser.guest.spec import MIB
from nvmuser.toolchain import Qemu, find_qemu

NVMUSER = Path(sys.executable).parent / "nvmuser"
AWAY = {"uri": "exec:cat > /dev/null"}
REASON = "vfio-user-pci-is-not-migratable"
STILL = "-S -display none -nodefaults"


@pytest.fixture
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """With controllers a and b."""
    root = tmp_path_factory.mktemp("m")
    async with Deployment.start(root / "s") as deployment:
        for name in ("a", "b"):
            (root / name).write_bytes(bytes(16 * MIB))
            await deployment.disk(name, root / name)
        yield deployment


@contextlib.asynccontextmanager
async def started(
    deployment: Deployment, line: str, tmp_path: Path, qemu: Qemu | None = None
) -> AsyncIterator[QMPClient]:
    """A QEMU that a person has started with a line for the shell, found by its QMP socket."""
    program, socket = tmp_path / "qemu", tmp_path / "qmp"
    program.write_text(f'#!/bin/sh\nexec {shlex.join((qemu or find_qemu()).argv)} "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "NVMUSER_STATE": str(deployment.state.root),
        "NVMUSER_QEMU": str(program),
        "PATH": f"{NVMUSER.parent}:{os.environ['PATH']}",
    }
    more = f"{STILL} -qmp unix:{socket},server=on,wait=off"
    process = await asyncio.create_subprocess_shell(
        line.replace("MORE", more), env=environment, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(120):
            while not socket.exists():
                assert process.returncode is None, await process.stderr.read()
                await asyncio.sleep(0.05)
        async with connected(socket) as qmp:
            yield qmp
            await qmp.execute("quit")
        await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


async def refusal(qmp: QMPClient) -> str:
    with pytest.raises(ExecuteError) as refused:
        await qmp.execute("migrate", AWAY)
    return str(refused.value)


async def test_guests_that_we_start(deployment: Deployment, tmp_path: Path) -> None:
    spec = GuestSpec(memory=256 * MIB, sockets=(deployment.state.socket("a"),), qemu_args=("-S",))
    async with launch(spec, tmp_path / "g", wait=False) as guest:
        assert REASON in await refusal(guest.qmp)
        saved = await guest.qmp.execute("human-monitor-command", {"command-line": "savevm x"})
        assert REASON in str(saved), "a saved guest would come back without its disks too"


LINE = 'eval "$(nvmuser guest qemu-args a --memory 256M) MORE"'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (LINE, REASON),
        (f'eval "nvmuser guest qemu -- $(nvmuser guest qemu-args a --memory 256M --json | {sys.executable} -c '
         "'import json, shlex, sys; print(shlex.join(json.load(sys.stdin)[1:]))'"
         ') MORE"', REASON),
    ],
    ids=["native", "guest-qemu"],
)  # fmt: skip
async def test_a_line_that_people_evaluate(deployment: Deployment, tmp_path: Path, line: str, reason: str) -> None:
    async with started(deployment, line, tmp_path) as qmp:
        assert reason in await refusal(qmp)


async def test_over_libvfio_nothing_is_in_the_way(deployment: Deployment, tmp_path: Path) -> None:
    line = LINE.replace("qemu-args a", "qemu-args a --via libvfio")
    async with started(deployment, line, tmp_path) as qmp:
        info = await qmp.execute("query-migrate")
        assert isinstance(info, dict)
        assert not info.get("blocked-reasons")


@pytest.mark.matrix
async def test_a_qemu_that_knows_an_older_protocol_only(deployment: Deployment, tmp_path: Path) -> None:
    line = LINE.replace("qemu-args a", "qemu-args a --via libvfio")
    async with started(deployment, line, tmp_path, the_qemu("qemu-7.2")) as qmp:
        assert "doesn't support migration" in await refusal(qmp)


async def test_a_controller_that_is_plugged_in(deployment: Deployment, tmp_path: Path) -> None:
    memory = "-object memory-backend-memfd,id=mem,size=256M,share=on -machine q35,memory-backend=mem -m 256M"
    ports = "-device pcie-root-port,id=p0,chassis=1 -device pcie-root-port,id=p1,chassis=2"
    sockets = [deployment.state.socket(name) for name in ("a", "b")]
    async with started(deployment, f"nvmuser guest qemu -- {memory} {ports} MORE", tmp_path) as qmp:
        assert await plug(qmp, sockets) == ["nvmuser-a", "nvmuser-b"]
        assert REASON in await refusal(qmp)
        assert (await look(qmp)).migration_blocked


async def test_a_qemu_that_has_to_stay_migratable(deployment: Deployment, tmp_path: Path) -> None:
    """Nothing is plugged in, and it can still be migrated."""
    memory = "-object memory-backend-memfd,id=mem,size=256M,share=on -machine q35,memory-backend=mem -m 256M"
    line = f"nvmuser guest qemu -- {memory} -only-migratable -device pcie-root-port,id=p0,chassis=1 MORE"
    async with started(deployment, line, tmp_path) as qmp:
        with pytest.raises(GuestError, match=r"cannot be migrated.*only-migratable"):
            await plug(qmp, [deployment.state.socket("a")])
        assert "nvmuser-a" not in (await look(qmp)).devices
        await qmp.execute("migrate", AWAY)
