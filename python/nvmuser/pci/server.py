"""Serving devices: many of them in one asyncio loop, each at a socket of its own.

Owns when a context attaches and runs, and the end of clients that keep others waiting. libvfio-user's poll descriptor
(libvfio-user.h, vfu_get_poll_fd) wakes the loop when a message waits; nothing polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from nvmuser.errors import ConflictError
from nvmuser.hostfs.sockets import check_socket_path, remove_stale
from nvmuser.pci import raw
from nvmuser.pci.context import Context
from nvmuser.pci.device import PciDevice

ATTACH_SECONDS = 5.0
"""How long a client may take to send its version, in seconds."""
PARTIAL_SECONDS = 2.0
"""How long the rest of a message may take, in seconds."""
_PARTIAL_POLL = 0.005
_HANG_UP_AGAIN = 0.05
_BURST = 64
"""Messages of one client in a row, before the loop goes round."""


class Server:
    """One device at one socket, for one client after the other; the device keeps its state between them.

    ::

        async with Server(Board(), Path("/run/board.sock")) as server:
            await server.wait()
    """

    def __init__(self, device: PciDevice, path: Path) -> None:
        self.device = device
        self.path = path
        self._tasks: set[asyncio.Task[None]] = set()
        self._reading: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._partial_since: float | None = None

    async def __aenter__(self) -> Self:
        """Listen.

        :raises UsageError: the device's declarations contradict each other, or the path is too long.
        :raises SetupError: nvmuser_vfu is not there.
        :raises ConflictError: the device is served already, or another process answers at the path.
        """
        if self.device.is_served:
            raise ConflictError(f"{type(self.device).__name__}: served already")
        description = self.device.describe()
        check_socket_path(self.path)
        remove_stale(self.path)
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[None] = self._loop.create_future()
        self._context = Context(self.path, description, self.device)
        self.device.bind(self._context)
        self._read(self._accept)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_reading()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        # Still bound: a last reset of the device is part of this.
        self._context.close()
        self.device.bind(None)
        if not self._failed.cancel() and error is None:
            self._failed.result()

    async def wait(self) -> None:
        """Wait, and raise what a callback raises if it is no `Exception`."""
        await asyncio.shield(self._failed)

    # What the loop waits for: a client, a message, the rest of a message, or nothing but the device.

    def _read(self, callback: Callable[[], None]) -> None:
        self._reading = self._context.fileno()
        self._loop.add_reader(self._reading, callback)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._loop.remove_reader(self._reading)
            self._reading = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self) -> None:
        self._stop_reading()
        self._start(self._attach())

    async def _attach(self) -> None:
        # libvfio-user reads the client's version with a plain recv: in a thread, so that a client which says nothing
        # holds up no other device.
        with ThreadPoolExecutor(1, thread_name_prefix="attach") as pool:
            attached = self._loop.run_in_executor(pool, self._context.attach)
            try:
                await asyncio.wait([attached], timeout=ATTACH_SECONDS)
            finally:
                # Again and again: the thread may be just about to accept.
                while not attached.done():
                    self._context.hang_up()
                    await asyncio.wait([attached], timeout=_HANG_UP_AGAIN)
        if error := attached.exception():
            raw.log.info("no client: %s", error)
        else:
            self._context.limit_waiting()
        self._read(self._message if self._context.is_attached else self._accept)

    def _message(self) -> None:
        for _ in range(_BURST):
            waits = self._context.message_waits()
            if not waits:
                if waits is None:
                    self._wait_for_rest()
                return
            self._partial_since = None
            if not self._went(self._context.run()):
                return

    def _went(self, result: int) -> bool:
        """What follows from carrying out a message; whether to go on reading."""
        if result == 0:
            return True
        self._stop_reading()
        if (error := self._context.error) is not None:
            self._failed.set_exception(error)
        elif result == errno.ENOTCONN:
            self._read(self._accept)
        elif result == errno.EBUSY:
            self._start(self._quiesce())
        else:
            raw.log.warning("%s: %s: the client is disconnected", self.path, errno.errorcode.get(result, result))
            self._context.hang_up()
            self._read(self._message)
        return False

    def _wait_for_rest(self) -> None:
        # The descriptor stays readable, so that waiting for it would spin.
        now = self._loop.time()
        if self._partial_since is None:
            self._partial_since = now
        self._stop_reading()
        if now - self._partial_since > PARTIAL_SECONDS:
            raw.log.warning("%s: the rest of a message did not come: the client is disconnected", self.path)
            self._partial_since = None
            self._context.hang_up()
            self._read(self._message)
        else:
            self._timer = self._loop.call_later(_PARTIAL_POLL, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._read(self._message)
        self._message()

    async def _quiesce(self) -> None:
        """The device is not quiet yet, and the client waits for that."""
        unmapped = asyncio.Event()
        self._context.memory.unmapped = unmapped.set
        if self._context.quiescing is not None:
            quiescing = asyncio.ensure_future(self._context.quiescing)
            self._context.quiescing = None
            try:
                await asyncio.wait([quiescing])
            finally:
                quiescing.cancel()
            if error := quiescing.exception():
                raw.log.error("%s: quiescing failed: %s", self.path, error, exc_info=error)
                # libvfio-user would leave the client without an answer (vfu_device_quiesced, quiesce_errno).
                self._context.hang_up()
        if self._context.memory.is_mapped:
            await unmapped.wait()
        if self._went(self._context.quiesced()):
            self._read(self._message)


async def serve(devices: Mapping[Path, PciDevice]) -> None:
    """Serve devices, each at its socket, until SIGINT or SIGTERM, or until cancelled.

    :raises UsageError: as `Server.__aenter__`, which also raises SetupError and ConflictError.
    """
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    try:
        async with contextlib.AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(Server(device, path)) for path, device in devices.items()]
            waiting = [asyncio.ensure_future(server.wait()) for server in servers]
            waiting.append(asyncio.ensure_future(_until(over)))
            done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            for task in done:
                task.result()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _until(event: asyncio.Event) -> None:
    await event.wait()
