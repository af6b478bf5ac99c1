"""A plain `nvmf_tgt` without supervisor or endpoint, for the tests of what talks to it."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nvmuser.hostfs.sockets import answers
from nvmuser.rpc import Client
from nvmuser.supervisor.spdk import NO_TRACE
from nvmuser.supervisor.surroundings import STARTUP
from nvmuser.toolchain import find_spdk

START_S = 20.0


@dataclass
class BareTarget:
    """A plain `nvmf_tgt`, without supervisor or endpoint."""

    process: subprocess.Popen[bytes]
    rpc_socket: Path
    log: Path

    async def messages_taken(self) -> int:
        """How often, so far, its controllers found messages on their sockets when they looked."""
        return sum(
            poller["busy_count"] for poller in await self.pollers() if poller["name"] == "vfio_user_poll_connections"
        )

    async def pollers(self) -> list[dict[str, Any]]:
        """What its threads do from time to time."""
        async with await Client.connect(self.rpc_socket) as rpc:
            threads = (await rpc.call("thread_get_pollers"))["threads"]
        return [poller for thread in threads for poller in thread["timed_pollers"]]

    def kill(self) -> None:
        """SIGKILL, reaped."""
        self.process.kill()
        self.process.wait()


class TargetFactory:
    """Starts bare targets and ends what it started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[BareTarget] = []

    def start(
        self,
        name: str = "spdk",
        *,
        polled: bool = False,
        program: str = "nvmf_tgt",
        settings: Path = STARTUP,
        within: tuple[str, ...] = (),
    ) -> BareTarget:
        """Start one and wait until its RPC socket answers.

        :param polled: where time is measured, or interrupts are not supported. Else a target that polls would
            only take a whole core from its neighbours.
        :param program: of SPDK's targets.
        :param settings: a configuration in JSON.
        :param within: a command that runs it, as `ip netns exec NAME`.
        """
        rpc_socket, log = self._directory / f"{name}.sock", self._directory / f"{name}.log"
        rpc_socket.unlink(missing_ok=True)
        argv = [*within, str(find_spdk().binary(program)), "--no-huge", "--no-pci", "-s", "512", "-m", "0x1"]
        argv += ["--json", str(settings), "-r", str(rpc_socket), "--disable-cpumask-locks", *NO_TRACE]
        argv += [] if polled else ["--interrupt-mode"]
        with log.open("ab") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT)
        target = BareTarget(process, rpc_socket, log)
        self._started.append(target)
        deadline = time.monotonic() + START_S
        while not answers(rpc_socket):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{program} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)
        return target

    def end(self) -> None:
        for target in self._started:
            if target.process.poll() is None:
                target.process.terminate()
                try:
                    target.process.wait(10)
                except subprocess.TimeoutExpired:
                    target.kill()
