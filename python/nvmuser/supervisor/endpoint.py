"""The endpoint process as the supervisor sees it: started, informed of targets, replaced.

Owns the endpoint's process, the channel to it, and copies of the descriptors that must outlive it (`keeper.channel`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from nvmf_vfio.keeper.channel import Channel
from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmuser.errors import TargetError
from nvmuser.paths import StateDir
from nvmuser.supervisor.fd_store import SystemdFds
from nvmuser.supervisor.process import Process

_START_DEADLINE = 30.0
_STATUS_DEADLINE = 5.0
_LEAVE_DEADLINE = 3.0
"""Seconds. The endpoint gives up earlier (`nvmf_vfio.session`)."""
_STOP_GRACE = 5.0
_NAMES = 4096
"""Controllers that one message names at most."""
_NOBODY: dict[str, Any] = {"sessions": [], "rss_kib": 0, "controllers": 0}
"""The status of an endpoint that does not answer."""


def check_several(endpoint: EndpointProcess) -> None:
    """:raises TargetError: it cannot tell the guests of one target from those of another."""
    if not endpoint.several:
        raise TargetError(
            f"the endpoint that runs (pid {endpoint.process.pid}) is of an older nvmuser, and knows one target only: "
            "end it (kill -9; guests survive that, and a new one is started), then try again"
        )


class EndpointProcess:
    """One endpoint at a time, with descriptors that stay from one to the next."""

    def __init__(self, state: StateDir, answer: Callable[[str, str], Awaitable[dict[str, Any]]]) -> None:
        """:param answer: to a question about a controller, by its name (`nvmf_vfio.keeper.channel`)."""
        self._state = state
        self._answer = answer
        self._answering: set[asyncio.Task[None]] = set()
        self._fds = SystemdFds()
        self._channel: Channel | None = None
        self._process: Process | None = None
        self._hello: asyncio.Future[bool] | None = None
        self._status: asyncio.Future[dict[str, Any]] | None = None
        self._served: deque[asyncio.Future[dict[str, str]]] = deque()
        self._left: deque[asyncio.Future[None]] = deque()
        self._leaves = False
        self._partial: list[dict[str, Any]] = []
        self.several = True
        """Whether it takes one target's state for that target's controllers alone: one of an older version does not."""

    @property
    def process(self) -> Process:
        assert self._process is not None
        return self._process

    @property
    def _pid_file(self) -> Path:
        return self._state.run / "endpoint.pid"

    async def adopt(self) -> bool:
        """Take over an endpoint that has outlived its supervisor. It hands over everything once more."""
        process = Process.adopt(self._pid_file)
        if process is None:
            return False
        self._process = process
        try:
            await self._connect()
        except TargetError:
            await self._end()
            return False
        return True

    async def start(self) -> None:
        """Start an endpoint and give it the descriptors of its predecessor.

        :raises TargetError: it does not answer.
        """
        guests, targets = self._state.guest_dir("x").parent, self._state.target_dir("x").parent
        argv = [sys.executable, "-m", "nvmf_vfio.endpoint", "--control", str(self._state.endpoint_socket)]
        argv += ["--guests", str(guests), "--targets", str(targets)]
        self._state.endpoint_socket.unlink(missing_ok=True)
        self._process = Process.start(argv, pid_file=self._pid_file, log=self._state.logs / "endpoint.log")
        try:
            await self._connect()
        except TargetError:
            await self._end()
            raise

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._hello = loop.create_future()
        try:
            async with asyncio.timeout(_START_DEADLINE):
                sock = await self._reach()
                self._channel = Channel(sock, self._heard, self._channel_ended)
                fresh = await self._hello
        except TimeoutError:
            raise TargetError(f"the endpoint does not answer; see {self._state.logs / 'endpoint.log'}") from None
        if fresh:
            self._fds.restore(self._channel)
        self._channel.send("start")

    async def _reach(self) -> socket.socket:
        while self.process.alive:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                sock.connect(os.fspath(self._state.endpoint_socket))
                return sock
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                sock.close()
            await asyncio.sleep(0.01)
        raise TargetError(f"the endpoint {self.process.ending}; see {self._state.logs / 'endpoint.log'}")

    def _heard(self, message: dict[str, Any], descriptors: list[Descriptor]) -> None:
        match message["op"]:
            case "put":
                self._fds.push(message["name"], descriptors.pop())
            case "drop":
                self._fds.pop(message["name"])
            case "hello":
                self.several = message.get("several", False)
                self._leaves = message.get("leaves", False)
                if self._hello and not self._hello.done():
                    self._hello.set_result(message["fresh"])
            case "question":
                task = asyncio.create_task(self._reply(message))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case "served" if self._served:
                # An endpoint of an older version does not report them.
                self._answer_served(1, message.get("failed", {}))
            case "left" if self._left:
                # Also of one that is not waited for any more.
                self._left.popleft().set_result(None)
            case "status":
                self._partial += message["sessions"]
                if not message["more"] and self._status and not self._status.done():
                    facts = {key: message[key] for key in ("rss_kib", "controllers")}
                    self._status.set_result({"sessions": self._partial, **facts})
        close_all(descriptors)

    async def _reply(self, question: dict[str, Any]) -> None:
        asking = self._channel
        answer = await self._answer(question["controller"], question["question"])
        if asking and asking is self._channel:  # another one's questions may have the same numbers
            asking.send("answer", number=question["number"], **answer)

    def _answer_served(self, count: int, failed: dict[str, str]) -> None:
        for _ in range(count):
            served = self._served.popleft()
            if not served.done():
                served.set_result(failed)

    def _channel_ended(self) -> None:
        self._channel = None
        self._answer_served(len(self._served), {})
        while self._left:
            self._left.popleft().set_result(None)
        if self._status and not self._status.done():
            self._status.set_result(dict(_NOBODY))
        if self._hello and not self._hello.done():
            self._hello.set_exception(TargetError("the endpoint hung up"))

    async def serve(self, controllers: Iterable[str]) -> dict[str, str]:
        """Exactly these controllers have a socket for guests when this returns, unless the endpoint dies meanwhile.

        Returns those that could not be made: the reasons by the controllers' names.
        """
        if self._channel is None:
            return {}
        served: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._served.append(served)
        self._channel.send("serve", controllers=sorted(controllers))
        return await served

    async def leave(self, controllers: Iterable[str]) -> None:
        """Have the I/O of these end at a target that lives and is about to let go; without a reset, where that can be.

        When it does not end in time, it ends as the target lets go.
        """
        names = sorted(controllers)
        if self._channel is None or not self._leaves or not names:
            return
        left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left.append(left)
        self._channel.send("leave", controllers=names)
        await asyncio.wait([left], timeout=_LEAVE_DEADLINE)

    def target(self, state: str, controllers: Iterable[str]) -> None:
        """Report the state of these controllers' target: gone, drained or ready."""
        names = sorted(controllers)
        for first in range(0, len(names), _NAMES):
            if self._channel:
                self._channel.send("target", state=state, controllers=names[first : first + _NAMES])

    async def status(self) -> dict[str, Any]:
        """Guests and memory; empty when the endpoint does not answer in time."""
        if self._channel is None:
            return dict(_NOBODY)
        if self._status is None or self._status.done():
            self._partial = []
            self._status = asyncio.get_running_loop().create_future()
            self._channel.send("status")
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(self._status), _STATUS_DEADLINE)
        return dict(_NOBODY)

    async def _end(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel_ended()
        if self._process:
            await self._process.stop(_STOP_GRACE)
            self._process.close()

    async def replace(self) -> None:
        """The endpoint has died: start another and give it the guests."""
        await self._end()
        await self.start()

    async def stop(self) -> None:
        """End the endpoint and every guest's connection."""
        await self._end()
        self._fds.close()
