"""A guest whose disk outlives supervisor, endpoint and target together, because systemd keeps their descriptors.

A real systemd runs the unit that `nvmuser target unit` prints, as process 1 of namespaces of its own: it sees nothing
of the host's services, and everything that it started ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from world import sparse, verifying

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.errors import NvmuserError
from nvmuser.guest import GuestSpec, launch
from nvmuser.guest.spec import MIB
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor.unit import unit

SYSTEMD = Path("/lib/systemd/systemd")
ALONE = "[Unit]\nDefaultDependencies=no\n"
START = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system/nvmuser.service.d &&
cp "$1" /run/systemd/system/nvmuser.service && cp "$2" /run/systemd/system/nvmuser.service.d/ &&
container=test exec "$3" --system --unit=nvmuser.service --log-target=console
"""


@contextlib.contextmanager
def systemd(state: StateDir, directory: Path) -> Iterator[None]:
    """systemd with our unit, in namespaces of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a service manager in namespaces of its own")
    assert SYSTEMD.exists(), "systemd is missing: ci/install-packages ci/debian-packages-tests.txt"
    files = {"nvmuser.service": unit(state, standby=False), "alone.conf": ALONE}
    for name, text in files.items():
        (directory / name).write_text(text)
    argv = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup", "--uts"]
    argv += ["sh", "-c", START, "sh", *(str(directory / name) for name in files), str(SYSTEMD)]
    with (directory / "systemd.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def control(state: StateDir) -> AsyncIterator[Client]:
    """A connection to the supervisor that systemd starts, once it is there."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(NvmuserError):
                client = await Client.connect(state.control_socket)
                break
            await asyncio.sleep(0.05)
        async with client:
            while not (await client.call("status"))["target"]["ready"]:
                pass
            yield client


def pids(state: StateDir) -> dict[str, int]:
    """The processes of a state directory, by their numbers here: they know themselves by others."""
    found = {}
    marks = {"supervisor": b"nvmuser.supervisor.daemon", "endpoint": b"nvmf_vfio.endpoint", "target": b"bin/nvmf_tgt"}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes()
            for name, mark in marks.items():
                if mark in line and os.fsencode(state.root) in line:
                    found[name] = int(path.parent.name)
    return found


async def test_supervisor_endpoint_and_target_killed_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("d")  # a short name, for the sockets in it
    state = StateDir(root / "s")
    with systemd(state, root):
        async with control(state) as client:
            socket = await Deployment(state, client).disk("only", sparse(root / "only"))
        async with launch(GuestSpec(memory=384 * MIB, sockets=(socket,)), root / "guest") as guest:
            for victims in (("supervisor", "endpoint"), ("supervisor", "endpoint", "target")):

                async def strike(victims: tuple[str, ...] = victims) -> None:
                    now = pids(state)
                    for victim in victims:
                        os.kill(now[victim], signal.SIGKILL)

                await verifying({guest: "/dev/nvme0n1"}, strike)
        log = state.logs / "endpoint.log"
        assert log.read_text().count("guest taken over") == 2
