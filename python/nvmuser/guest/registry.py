"""Guests that go on when the command that started them has ended: `nvmuser guest start`, `list`, `exec`, `stop`.

Owns one directory per guest, with a record in it by which its QEMU is found again: pid and start time, so that another
process with the same pid is never taken for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nvmuser.errors import ConflictError, GuestError, NotFoundError
from nvmuser.guest import saved
from nvmuser.guest.agent import Agent
from nvmuser.guest.machine import BOOT_DEADLINE, Guest, connect, naming_logs, start_qemu, wait_agent
from nvmuser.guest.process import QemuProcess
from nvmuser.guest.qemu import Runtime
from nvmuser.guest.spec import GuestSpec
from nvmuser.hostfs import permissions
from nvmuser.hostfs.process import start_time
from nvmuser.model.names import check_name
from nvmuser.paths import StateDir

_RECORD = "guest.json"
_TURN_INTERVAL = 0.1
"""Seconds between looks at a lock: to wait in a thread for it could not be cancelled."""


@dataclass(frozen=True)
class GuestRecord:
    """A guest that was started."""

    name: str
    pid: int
    started: int
    """The process's start time in the kernel's ticks."""
    cpus: int
    memory: int
    sockets: tuple[str, ...]
    libvfio: bool = False
    """Whether its QEMU has libvfio preloaded, for what is plugged in later too."""
    machine: dict[str, Any] = field(default_factory=dict)
    """What the same guest elsewhere has to have (`nvmuser.guest.saved`)."""

    @property
    def running(self) -> bool:
        """Whether its QEMU lives."""
        return start_time(self.pid) == self.started


def registry(state: StateDir) -> Registry:
    """The guests of a deployment."""
    return Registry(state.run / "vm")


class Registry:
    """The guests below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def runtime(self, name: str) -> Runtime:
        """The files of a guest, which need not exist.

        :raises UsageError: no guest can have this name.
        """
        check_name("guest", name)
        return Runtime(self._root / name)

    def list(self) -> list[GuestRecord]:
        """All guests that were started and not stopped, also those whose QEMU has ended.

        :raises AccessError: this user may not look.
        """
        with permissions.explained():
            try:
                names = sorted(os.listdir(self._root))
            except FileNotFoundError:
                return []
            return [record for name in names if (record := _read(self._root / name / _RECORD))]

    def get(self, name: str) -> GuestRecord:
        """:raises NotFoundError: no guest of this name was started."""
        record = _read(self.runtime(name).directory / _RECORD)
        if record is None:
            raise NotFoundError(f"there is no guest {name!r}: `nvmuser guest list` shows those there are")
        return record

    async def start(self, name: str, spec: GuestSpec, *, wait: bool = True, incoming: bool = False) -> GuestRecord:
        """Start a guest, and wait until its agent answers.

        :param incoming: its QEMU waits for a guest that migrates to it, which is not waited for.
        :raises ConflictError: it runs already.
        :raises GuestError: it did not boot; its logs are kept.
        """
        runtime = self.runtime(name)
        with contextlib.suppress(NotFoundError):
            if self.get(name).running:
                raise ConflictError(f"guest {name!r} runs already")
        if spec.memory_file is not None and not incoming and spec.memory_file.exists():
            raise ConflictError(f"{spec.memory_file}: exists already: it may be another guest's memory")
        process = start_qemu(spec, runtime, foreground=False, incoming=incoming)
        record = GuestRecord(
            name,
            process.pid,
            start_time(process.pid),
            spec.cpus,
            spec.memory,
            tuple(str(path) for path in spec.sockets),
            spec.libvfio,
            saved.to_json(spec),
        )
        try:
            # Until the record is there, nobody could find it again.
            _write(runtime.directory / _RECORD, record)
            with naming_logs(runtime):
                async with connect(runtime, process, booting=True) as guest:
                    if wait and not incoming:
                        await wait_agent(guest, BOOT_DEADLINE)
        except BaseException:
            await process.kill()
            (runtime.directory / _RECORD).unlink(missing_ok=True)
            raise
        finally:
            process.close()
        return record

    @contextlib.asynccontextmanager
    async def agent(
        self, name: str, *, deadline: float = BOOT_DEADLINE, on_wait: Callable[[int], None] = lambda pid: None
    ) -> AsyncIterator[Agent]:
        """A session with the guest's agent. A port serves one session at a time: a second one waits for its turn.

        :param on_wait: called with the pid of the process whose session it waits for, if it has to.
        :raises GuestError: it does not run, or does not answer.
        """
        runtime, record = self.runtime(name), self.get(name)
        if not record.running:
            raise GuestError(
                f"guest {name!r} does not run any more: see {runtime.qemu_log}, then `nvmuser guest stop {name}`"
            )
        async with _turn(runtime.agent_lock, on_wait), await Agent.connect(runtime.agent) as agent:
            await agent.wait_boot(timeout=deadline)
            yield agent

    async def discard(self, name: str, *, keep_memory: bool = False) -> None:
        """End a guest's QEMU without asking the guest, which is not in it (any more), and remove its directory.

        :param keep_memory: if it is a file.
        """
        runtime, record = self.runtime(name), self.get(name)
        if process := QemuProcess.find(record.pid, record.started, runtime.qemu_log):
            await process.kill()
            process.close()
        if not keep_memory:
            _forget_memory(record)
        shutil.rmtree(runtime.directory)

    async def stop(self, name: str) -> bool:
        """End a guest and remove its directory. True when it shut down by itself, or had ended already."""
        runtime, record = self.runtime(name), self.get(name)
        graceful = True
        process = QemuProcess.find(record.pid, record.started, runtime.qemu_log)
        if process is not None:
            try:
                graceful = await _shut_down(runtime, process)
            finally:
                await process.kill()
                process.close()
        _forget_memory(record)
        shutil.rmtree(runtime.directory)
        return graceful


def _forget_memory(record: GuestRecord) -> None:
    if path := record.machine.get("memory_file"):
        Path(path).unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _turn(path: Path, on_wait: Callable[[int], None]) -> AsyncIterator[None]:
    """Hold the lock on an agent's port; the kernel lets go of it when we die."""
    with path.open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            on_wait(int(lock.read() or 0))
            while True:
                await asyncio.sleep(_TURN_INTERVAL)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


async def _shut_down(runtime: Runtime, process: QemuProcess) -> bool:
    try:
        async with connect(runtime, process) as guest:
            await _hear(guest)
            return await guest.stop()
    except GuestError:
        return False  # it is beyond being asked


async def _hear(guest: Guest) -> None:
    """An agent that lives answers at once; without one the guest is asked through ACPI."""
    with contextlib.suppress(GuestError):
        await guest.wait_boot(timeout=5.0)


def _read(path: Path) -> GuestRecord | None:
    """:raises GuestError: it is not what `_write` has written."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return GuestRecord(**{**fields, "sockets": tuple(fields["sockets"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError) as error:
        raise GuestError(f"{path}: damaged ({error}); end that guest's QEMU and remove {path.parent}") from error


def _write(path: Path, record: GuestRecord) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    scratch.rename(path)
