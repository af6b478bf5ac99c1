"""Controllers and namespaces: connecting to one, and what it says of itself.

Owns the connection; commands go over the queues that it opens (`queue`, `aio`).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nvmuser.errors import HostConnectionError, HostError, NotFoundError, UsageError
from nvmuser.initiator.aio import AsyncQueue
from nvmuser.initiator.commands import Commands
from nvmuser.initiator.environment import api, reason
from nvmuser.initiator.queue import Queue

ADMIN_TIMEOUT_S = 10.0
"""How long an admin command may take unless `connect` is given another time."""


@dataclass(frozen=True)
class ControllerInfo:
    """Identify Controller, as far as it is of use (NVMe base specification, figure "Identify Controller data").

    :param max_transfer: bytes; longer commands are split by the driver.
    :param shadow_doorbells: the controller looks for commands in memory, so that hardly any doorbell is written.
    """

    vendor: int
    subsystem_vendor: int
    controller_id: int
    serial: str
    model: str
    firmware: str
    nqn: str
    version: tuple[int, int, int]
    max_transfer: int
    max_queues: int
    namespaces: int
    compare: bool
    write_zeroes: bool
    dsm: bool
    volatile_cache: bool
    shadow_doorbells: bool


@dataclass(frozen=True)
class Namespace:
    """One namespace, as it was when it was listed; sizes are in bytes. It is valid until its controller is closed."""

    id: int
    block_size: int
    blocks: int
    metadata_size: int
    uuid: uuid.UUID | None
    nguid: bytes | None
    eui64: bytes | None
    _controller: Controller = field(repr=False, compare=False)
    _pointer: Any = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.block_size * self.blocks

    def handle(self, controller: Controller) -> Any:
        """The driver's handle, for commands to this open controller: the driver frees it with its own.

        :raises UsageError: the namespace is another connection's.
        """
        if self._controller is not controller:
            raise UsageError(f"namespace {self.id} is another connection's: ask {controller.path}'s for its own")
        return self._pointer


def connect(directory: Path | str, *, timeout: float = ADMIN_TIMEOUT_S) -> Controller:
    """Connect to the controller whose socket is `directory`/cntrl, and enable it.

    Blocks for about 30 ms; in an event loop, `await asyncio.to_thread(connect, …)`.

    :param timeout: seconds for each admin command, at any time.
    :raises HostConnectionError: no target listens there, or another host is connected, or it is no NVMe controller.
    :raises SetupError: the module `nvmuser_nvme` is missing.
    """
    path = Path(directory)
    if not (path / "cntrl").exists():
        raise HostConnectionError(f"{path}: no socket `cntrl` in it: is the target running?")
    _, lib = api()
    pointer = lib.nvmuser_connect(str(path.resolve()).encode(), max(1, round(timeout * 1000)))
    if not pointer:
        raise HostConnectionError(f"{path}: no connection{reason()}; a controller takes one host at a time")
    return Controller(path, pointer)


class Controller:
    """A connected controller. Close it, or use it as a context manager; its queues are closed with it."""

    def __init__(self, path: Path, pointer: Any) -> None:
        self.path = path
        self._pointer = pointer
        self._queues: list[Commands[Any]] = []

    @property
    def pointer(self) -> Any:
        """The driver's handle.

        :raises HostError: the controller is closed.
        """
        if self._pointer is None:
            raise HostError(f"{self.path}: the controller is closed")
        return self._pointer

    def identify(self) -> ControllerInfo:
        """What the controller says of itself. Known since the connection was made: nothing is sent.

        :raises HostError: the controller is closed.
        """
        ffi, lib = api()
        raw = ffi.new("struct nvmuser_identity *")
        lib.nvmuser_identify(self.pointer, raw)

        def text(value: Any) -> str:
            return str(ffi.string(value).decode(errors="replace"))

        return ControllerInfo(
            vendor=raw.vendor, subsystem_vendor=raw.subsystem_vendor, controller_id=raw.controller_id,
            serial=text(raw.serial), model=text(raw.model), firmware=text(raw.firmware), nqn=text(raw.nqn),
            version=(raw.version >> 16, raw.version >> 8 & 0xFF, raw.version & 0xFF),
            max_transfer=raw.max_transfer, max_queues=raw.max_queues, namespaces=raw.namespaces,
            compare=raw.compare, write_zeroes=raw.write_zeroes, dsm=raw.dsm,
            volatile_cache=raw.volatile_cache, shadow_doorbells=raw.shadow_doorbells,
        )  # fmt: skip

    def namespaces(self) -> list[Namespace]:
        """The active namespaces, with changes that the controller has reported meanwhile.

        :raises HostConnectionError: the controller is gone.
        """
        self.poll()
        _, lib = api()
        found = []
        number = lib.nvmuser_next_namespace(self.pointer, 0)
        while number:
            found.append(self.namespace(number))
            number = lib.nvmuser_next_namespace(self.pointer, number)
        return found

    def namespace(self, number: int = 1) -> Namespace:
        """The active namespace of this number.

        :raises NotFoundError: it is not active.
        """
        ffi, lib = api()
        raw = ffi.new("struct nvmuser_namespace *")
        pointer = lib.nvmuser_namespace(self.pointer, number, raw)
        if not pointer:
            raise NotFoundError(f"{self.path}: no namespace {number}")
        eui64 = bytes(ffi.buffer(raw.eui64))
        return Namespace(
            id=raw.id, block_size=raw.block_size, blocks=raw.blocks, metadata_size=raw.metadata_size,
            uuid=uuid.UUID(bytes=bytes(ffi.buffer(raw.uuid))) if raw.has_uuid else None,
            nguid=bytes(ffi.buffer(raw.nguid)) if raw.has_nguid else None,
            eui64=eui64 if any(eui64) else None,
            _controller=self, _pointer=pointer,
        )  # fmt: skip

    def poll(self) -> None:
        """Process what the controller reports: events, and answers to aborts.

        :raises HostConnectionError: it is gone. What was in flight may have been carried out.
        """
        _, lib = api()
        if lib.nvmuser_poll_admin(self.pointer) < 0:
            raise HostConnectionError(f"{self.path}: the controller is gone (its target ended, or gave it up)")

    def queue(self, depth: int = 64, *, timeout: float | None = None) -> Queue:
        """A queue pair that is polled.

        :param timeout: seconds that `Request.wait` waits.
        :raises UsageError: the depth is not 1 to 1024.
        :raises HostError: the controller gives no queue, or is closed.
        """
        queue = Queue(self, depth, timeout)
        self._queues.append(queue)
        return queue

    def async_queue(self, depth: int = 64, *, timeout: float | None = None) -> AsyncQueue:
        """A queue pair whose commands are awaited, in the running event loop.

        :param timeout: seconds after which a command is aborted and fails.
        :raises UsageError: the depth is not 1 to 1024.
        :raises HostError: the controller gives no queue, or is closed.
        """
        queue = AsyncQueue(self, depth, timeout)
        self._queues.append(queue)
        return queue

    def forget(self, queue: Commands[Any]) -> None:
        """Take a closed queue off the list of those to close."""
        self._queues.remove(queue)

    def close(self) -> None:
        """Close the queues and shut the controller down. Idempotent."""
        if self._pointer is None:
            return
        for queue in list(self._queues):
            queue.close()
        _, lib = api()
        lib.nvmuser_disconnect(self._pointer)
        self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
