"""Fixtures of more than one file of unit tests."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cli_run import Run
from vfio_fds import descriptors_open, until
from vfio_supervisor import Supervisor
from vfio_target import FakeTarget
from vfio_world import World

from nvmf_vfio.endpoint import Endpoint
from nvmf_vfio.keeper.channel import HeldFds
from nvmuser import paths
from nvmuser.cli.main import main


@pytest.fixture(autouse=True)
def _of_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit tests describe a checkout, also where they run on what packages have installed (ci/test-installed)."""
    monkeypatch.setattr(paths, "__file__", "/checkout/python/nvmuser/paths.py")
    monkeypatch.delenv("NVMUSER_PREFIX", raising=False)


@pytest.fixture
async def fds() -> AsyncIterator[HeldFds]:
    """What an endpoint gives away to be kept, whichever process it is."""
    fds = HeldFds()
    yield fds
    fds.close()


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[FakeTarget]:
    """The target of controller a."""
    target = FakeTarget(tmp_path / "targets" / "a" / "cntrl")
    yield target
    target.kill()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    before = descriptors_open()
    endpoint, supervisor = Endpoint(tmp_path / "g", tmp_path / "t"), Supervisor()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    endpoint.connected(theirs)
    supervisor.attach(ours)
    supervisor.begin(["a", "b"])
    await until(lambda: len(endpoint._listeners) == 2)
    world = World(tmp_path, endpoint, supervisor)
    yield world
    world.close()
    assert descriptors_open() == before


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("volume", "list")` → status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nvmuser", "--state-dir", str(tmp_path / "st"), *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        status = end.value.code
        assert isinstance(status, int)
        return status, said.out, said.err

    return run
