"""What serves a guest is not given to another, nor taken away, without a word. The guests stand still (`-S`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError
from test_cli import Cli

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.errors import GuestError
from nvmuser.guest import Guest, GuestSpec, launch
from nvmuser.guest.qemu import controller
from nvmuser.guest.spec import MIB


@pytest.fixture
async def cli(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cli]:
    """A deployment with controllers a and b, each with a volume of its name."""
    root = tmp_path_factory.mktemp("u")
    async with Deployment.start(root / "s") as deployment:
        for name in ("a", "b"):
            (root / name).write_bytes(bytes(16 * MIB))
            await deployment.disk(name, root / name)
        yield Cli(deployment)


@pytest.fixture
async def guest(cli: Cli, tmp_path: Path) -> AsyncIterator[Guest]:
    """On controller a through the endpoint, and on b without it."""
    sockets = (cli.state.socket("a"), cli.state.socket("b", direct=True))
    spec = GuestSpec(memory=256 * MIB, sockets=sockets, qemu_args=("-S",))
    async with launch(spec, tmp_path / "g", wait=False) as guest:
        yield guest


async def test_nothing_is_taken_away_from_a_guest(cli: Cli, guest: Guest, tmp_path: Path) -> None:
    who, spec = f"process {guest.process.pid}", tmp_path / "spec.json"
    exported = json.loads(await cli("export", "--json"))
    for arguments in (("controller", "delete", "a"), ("controller", "detach", "a", "a")):
        said = await cli(*arguments, status=1)
        assert "controller a serves a guest" in said
        assert who in said
        assert "--force" in said
    assert "seen by SPDK" in await cli("controller", "delete", "b", status=1)

    (first, second) = exported["controllers"]
    spec.write_text(json.dumps(exported | {"controllers": [first | {"namespaces": []}, second]}))
    assert who in await cli("apply", "-f", str(spec), status=1)
    spec.write_text(json.dumps(exported | {"controllers": [second]}))
    assert who in await cli("apply", "-f", str(spec), "--prune", status=1)
    assert json.loads(await cli("export", "--json")) == exported

    await cli("controller", "detach", "a", "a", "--force")
    await cli("controller", "delete", "b", "--force")
    assert [one["name"] for one in json.loads(await cli("controller", "list", "--json"))] == ["a"]


async def test_what_a_guest_has_left_can_be_taken_at_once(cli: Cli, tmp_path: Path) -> None:
    sockets = (cli.state.socket("a"), cli.state.socket("b", direct=True))
    async with launch(GuestSpec(memory=256 * MIB, sockets=sockets, qemu_args=("-S",)), tmp_path / "g", wait=False):
        pass
    await cli("controller", "delete", "a")
    await cli("controller", "delete", "b")


@pytest.mark.parametrize(
    "arguments",
    [
        ("guest", "start", "second", "--controller", "a"),
        ("guest", "run", "--controller", "a", "--", "true"),
        ("guest", "start", "second", "--controller", "b", "--direct"),
        ("guest", "run", "--controller", "a", "--via", "libvfio", "--", "true"),
        ("bench", "guest", "--controller", "a", "--runtime", "1"),
    ],
    ids=" ".join,
)
async def test_a_second_guest_is_refused_before_it_starts(cli: Cli, guest: Guest, arguments: tuple[str, ...]) -> None:
    more = ("--output", str(cli.state.root / "out")) if arguments[0] == "bench" else ()
    said = await cli(*arguments, *more, status=1)
    assert "serves another guest already" in said
    assert "--direct" in arguments or f"process {guest.process.pid}" in said
    assert not (cli.state.run / "vm").exists(), "no directory is left"


async def test_a_qemu_of_somebody_else_is_told_that_a_controller_is_busy(
    cli: Cli, guest: Guest, tmp_path: Path
) -> None:
    """Nothing of ours looks before it starts, or plugs in."""
    spec = GuestSpec(memory=256 * MIB, qemu_args=("-S",))
    taken = cli.state.socket("a")
    with pytest.raises(GuestError, match="Device or resource busy"):
        async with launch(replace(spec, sockets=(taken,)), tmp_path / "second", wait=False):
            pass
    async with launch(spec, tmp_path / "third", wait=False) as third:
        with pytest.raises(ExecuteError, match="Device or resource busy"):
            await third.qmp.execute("device_add", controller(taken, "port0"))
        assert (await third.qmp.execute("query-status")) == {"status": "prelaunch", "running": False}
    assert not guest.process.ended.is_set()


async def test_a_look_is_no_guest(cli: Cli) -> None:
    """SPDK would take a connection for one, and keep the next waiting."""
    nqn = json.loads(await cli("controller", "show", "b", "--json"))["nqn"]
    for look in (("doctor",), ("status",), ("guest", "qemu-args", "b", "--direct"), ("guest", "list")):
        process = await cli.start(*look, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL)
        await process.wait()
        assert json.loads(await cli("rpc", "nvmf_subsystem_get_controllers", nqn)) == [], look
