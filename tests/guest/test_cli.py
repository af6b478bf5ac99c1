"""`nvmuser guest` as people use it: guests in the background, several at once, their consoles, plugging."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from guests import APPEARS, DISAPPEARS

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.guest.spec import MIB

NVMUSER = Path(sys.executable).parent / "nvmuser"
PATIENCE = 120


class Cli:
    """The command, on one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self.state = deployment.state
        self.environment = os.environ | {"NVMUSER_STATE": str(deployment.state.root)}

    async def start(self, *arguments: str, **streams: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(NVMUSER, *arguments, env=self.environment, **streams)  # type: ignore[arg-type]

    async def __call__(self, *arguments: str, input: bytes = b"", status: int = 0) -> str:
        """What it says; errors too when it is meant to fail."""
        pipe = asyncio.subprocess.PIPE
        process = await self.start(*arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(input)
        assert process.returncode == status, (arguments, out, err)
        return (out + err if status else out).decode()

    async def guests(self) -> dict[str, bool]:
        return {guest["name"]: guest["running"] for guest in json.loads(await self("guest", "list", "--json"))}


@pytest.fixture
async def cli(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cli]:
    """A deployment with controllers a, b and c, each with a volume of its name."""
    root = tmp_path_factory.mktemp("c")
    async with Deployment.start(root / "s") as deployment:
        for name in ("a", "b", "c"):
            (root / name).write_bytes(bytes(16 * MIB))
            await deployment.disk(name, root / name)
        cli = Cli(deployment)
        try:
            yield cli
        finally:
            if left := await cli.guests():
                await cli("guest", "stop", *left)


async def typed(cli: Cli, name: str, line: bytes, awaited: bytes) -> bytes:
    """What a terminal shows on a guest's console after a line was typed; then it is left with Ctrl-]."""
    ours, theirs = pty.openpty()
    shown = b""
    try:
        process = await cli.start("guest", "console", name, stdin=theirs, stdout=theirs, stderr=theirs)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            while b"leave with" not in shown:
                shown += await loop.run_in_executor(None, os.read, ours, 4096)
            os.write(ours, line)
            while awaited not in shown:
                shown += await loop.run_in_executor(None, os.read, ours, 4096)
            os.write(ours, b"\x1d")
            assert await process.wait() == 0
    finally:
        os.close(ours)
        os.close(theirs)
    return shown


async def test_guests_in_the_background(cli: Cli) -> None:
    small = ("--memory", "512M", "--spare-ports", "1")
    await asyncio.gather(
        cli("guest", "start", "one", "--controller", "a", *small), cli("guest", "start", "two", *small)
    )
    assert await cli.guests() == {"one": True, "two": True}
    assert "runs already" in await cli("guest", "start", "one", *small, status=1)

    assert await cli("guest", "exec", "one", "cat /sys/class/nvme/nvme0/address") != ""
    assert await cli("guest", "exec", "two", "wc", "-c", input=b"x" * 100_000) == "100000\n"
    await cli("guest", "exec", "two", "exit 7", status=7)
    assert b"ans=42" in await typed(cli, "one", b"echo ans=$((6*7))\r", b"ans=42")

    await check_plug(cli)
    await check_what_is_left_empty(cli)

    two = json.loads(await cli("guest", "list", "--json"))[1]
    os.kill(two["pid"], 9)
    assert "guest one shut down" in await cli("guest", "stop", "one")
    assert not (cli.state.run / "vm/one").exists()
    while (await cli.guests())["two"]:
        pass
    assert "does not run any more" in await cli("guest", "exec", "two", "true", status=1)
    assert (cli.state.run / "vm/two/console.log").exists(), "the logs of a guest that died are kept"
    await cli("guest", "stop", "two")
    assert list((cli.state.run / "vm").iterdir()) == []
    assert "no guest 'two'" in await cli("guest", "stop", "two", status=1)


async def check_plug(cli: Cli) -> None:
    assert "serves another guest already" in await cli("guest", "plug", "two", "a", status=1)
    assert "no such controller" in await cli("guest", "plug", "two", "none", status=1)
    assert "nothing stands in the way" in await cli("guest", "plug", "two", "b", "--check")
    qmp = str(cli.state.run / "vm/two/qmp.sock")
    plugged = {"controller": "b", "device": "nvmuser-b", "how": "plugged"}
    assert json.loads(await cli("guest", "plug", "--qmp", qmp, "b", "--json")) == [plugged]
    await cli("guest", "exec", "two", APPEARS.format(device="/dev/nvme0n1"))
    assert json.loads(await cli("guest", "plug", "two", "b", "--json")) == [plugged | {"how": "present"}]
    assert "✗ 1 free PCIe root ports are needed, the guest has 0" in await cli(
        "guest", "plug", "two", "c", "--check", status=1
    )
    assert "`nvmuser controller detach b VOLUME --force`" in await cli("guest", "unplug", "two", "b", status=1)


async def check_what_is_left_empty(cli: Cli) -> None:
    """No port is left; what is left empty shows the next one's volumes."""
    assert "serves a guest" in await cli("controller", "detach", "b", "b", status=1)
    await cli("controller", "detach", "b", "b", "--force")
    await cli("guest", "exec", "two", DISAPPEARS.format(device="/dev/nvme0n1"))
    answer = json.loads(await cli("guest", "plug", "two", "c", "--json"))
    assert answer == [{"controller": "c", "device": "nvmuser-b", "how": "reused"}]
    await cli("guest", "exec", "two", APPEARS.format(device="/dev/nvme0n1"))
    shown = json.loads(await cli("controller", "show", "b", "--json"))["namespaces"]
    assert [namespace["volume"] for namespace in shown] == ["c"]
    nguid = await cli("guest", "exec", "two", "cat /sys/block/nvme0n1/nguid")
    assert nguid.replace("-", "").strip().upper() == shown[0]["nguid"]


async def test_a_guest_that_only_knows_the_kernels_vfio(cli: Cli) -> None:
    """With libvfio, what is plugged in can be unplugged too."""
    small = ("--memory", "512M", "--spare-ports", "1", "--via", "libvfio")
    await cli("guest", "start", "one", "--controller", "a", *small)
    await cli("guest", "exec", "one", "dd if=/dev/zero of=/dev/nvme0n1 bs=64k count=16 oflag=direct")
    for _ in range(2):
        await cli("guest", "plug", "one", "b")
        await cli("guest", "exec", "one", APPEARS.format(device="/dev/nvme1n1"))
        await cli("guest", "unplug", "one", "b")
        await cli("guest", "exec", "one", DISAPPEARS.format(device="/dev/nvme1n1"))
    await cli("guest", "stop", "one")


async def test_what_a_failed_start_leaves(cli: Cli) -> None:
    said = await cli("guest", "start", "bad", "--qemu-arg=-device", "--qemu-arg=no-such-device", status=1)
    assert "no-such-device" in said
    assert f"logs in {cli.state.run}/vm/bad" in said
    assert await cli.guests() == {}
    assert "no-such-device" in (cli.state.run / "vm/bad/qemu.log").read_text()
