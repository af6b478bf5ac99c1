"""The supervisor's end of the channel to an endpoint, and the real endpoint in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from vfio_fds import PATIENCE, until

from nvmf_vfio.keeper.channel import Channel, HeldFds
from nvmf_vfio.protocol.descriptors import Descriptor, close_all


class Supervisor:
    """The supervisor's end of the channel, with the descriptors that it holds.

    :ivar errors: what it answers to the questions that it refuses.
    :ivar silent: it does not answer questions.
    """

    def __init__(self, fds: HeldFds | None = None) -> None:
        self.fds = HeldFds() if fds is None else fds
        self.messages: list[dict[str, object]] = []
        self.channel: Channel | None = None
        self.is_ended = False
        self.identity: dict[str, object] = {"nqn": "nqn.2026-11.org.nvmuser:c", "namespaces": [{"nsid": 1}]}
        self.errors: dict[str, str] = {}
        self.silent = False

    def attach(self, sock: socket.socket) -> None:
        self.channel = Channel(sock, self._heard, self._ended)

    def _heard(self, message: dict[str, object], descriptors: list[Descriptor]) -> None:
        if message["op"] == "put":
            self.fds.push(str(message["name"]), descriptors.pop())
        elif message["op"] == "drop":
            self.fds.pop(str(message["name"]))
        else:
            self.messages.append(message)
        if message["op"] == "question" and not self.silent:
            error = self.errors.get(str(message["question"]), "")
            self.send("answer", number=message["number"], error=error, identity=self.identity)
        close_all(descriptors)

    def _ended(self) -> None:
        self.is_ended = True

    def heard(self, op: str) -> list[dict[str, object]]:
        return [message for message in self.messages if message["op"] == op]

    def asked(self, controller: str) -> list[object]:
        """The questions about a controller so far."""
        return [one["question"] for one in self.heard("question") if one["controller"] == controller]

    def send(self, op: str, **fields: object) -> None:
        assert self.channel is not None
        self.channel.send(op, **fields)

    def begin(self, controllers: list[str]) -> None:
        """As the real one greets an endpoint that is fresh."""
        assert self.channel is not None
        self.fds.restore(self.channel)
        self.send("start")
        self.send("serve", controllers=controllers)

    async def status(self) -> dict[str, object]:
        count = len(self.heard("status"))
        self.send("status")
        await until(lambda: len(self.heard("status")) > count)
        return self.heard("status")[-1]

    def close(self) -> None:
        if self.channel:
            self.channel.close()
        self.fds.close()


@contextlib.asynccontextmanager
async def endpoint_process(
    directory: Path, fds: HeldFds | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Supervisor]]:
    """The real endpoint with a supervisor that has sent it nothing yet. SIGKILL at the end."""
    control = directory / "endpoint.sock"
    control.unlink(missing_ok=True)
    argv = ["-m", "nvmf_vfio.endpoint", "--control", str(control)]
    argv += ["--guests", str(directory / "guests"), "--targets", str(directory / "targets")]
    with (directory / "endpoint.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, *argv, stderr=log)
    supervisor = Supervisor(fds)
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                try:
                    sock.connect(os.fspath(control))
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    sock.close()
                await asyncio.sleep(0.01)
        supervisor.attach(sock)
        await until(lambda: supervisor.heard("hello"))
        yield process, supervisor
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if supervisor.channel:
            supervisor.channel.close()
