"""A running guest: booted, reachable, and ended on demand.

Owns QEMU's life: its start, the wait for the guest's agent while QEMU is watched, QMP, and the end (asked first, then
killed). QMP commands about devices belong to `nvmuser.guest.plug`.

Nothing in here ever sends `device_del` for a vfio-user-pci device: QEMU up to 11.1 aborts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import QMPClient, QMPError

from nvmuser import toolchain as host
from nvmuser.errors import GuestError, SetupError
from nvmuser.guest import migration
from nvmuser.guest.agent import Agent, AgentError, CommandResult, CommandTimeout, GuestProcess
from nvmuser.guest.process import QemuProcess
from nvmuser.guest.qemu import DRIVER, PLAIN_DRIVER, Boot, Runtime, arguments
from nvmuser.guest.spec import GuestSpec, check_sockets, image_format, reserved_memory
from nvmuser.hostfs.sockets import check_socket_path, listen_unix
from nvmuser.paths import SETUP

BOOT_DEADLINE = 180.0
"""Software emulation on a busy machine boots in 5 to 40 s; a user's own system may take longer."""

_QMP_DEADLINE = 20.0
_POWEROFF_GRACE = 15.0
_QUIT_GRACE = 5.0
_LAST_WORDS = 1.0
_CONSOLE_TAIL = 4

_T = TypeVar("_T")


class Guest:
    """A guest that runs. Made by `launch` and `attach`."""

    def __init__(self, runtime: Runtime, process: QemuProcess, qmp: QMPClient, agent: Agent) -> None:
        self.runtime = runtime
        self.process = process
        self.qmp = qmp
        self.agent = agent

    @property
    def boot_id(self) -> str:
        """The guest kernel's id of this boot."""
        return self.agent.boot_id

    async def wait_boot(self, previous: str = "", *, timeout: float = BOOT_DEADLINE) -> str:  # noqa: ASYNC109
        """Wait until the agent of another boot than `previous` answers; return that boot's id.

        :raises GuestError: not in time, or QEMU ended.
        """
        return await self._while_running(self.agent.wait_boot(previous, timeout=timeout))

    async def run(
        self,
        command: str,
        *,
        input: bytes = b"",
        timeout: float | None = 120.0,  # noqa: ASYNC109 (see Agent.run)
        check: bool = False,
    ) -> CommandResult:
        """Run a shell command in the guest to its end; see `Agent.run`."""
        return await self.agent.run(command, input=input, timeout=timeout, check=check)

    def stream(self, command: str) -> contextlib.AbstractAsyncContextManager[GuestProcess]:
        """Run a shell command; its output comes while it runs; see `Agent.stream`."""
        return self.agent.stream(command)

    async def put(self, path: str, data: bytes) -> None:
        """Write a small file in the guest; see `Agent.put`."""
        await self.agent.put(path, data)

    async def get(self, path: str) -> bytes:
        """Read a small file of the guest; see `Agent.get`."""
        return await self.agent.get(path)

    async def reboot(self, *, timeout: float = BOOT_DEADLINE) -> str:  # noqa: ASYNC109
        """Reboot from inside, and wait for the agent of the next boot.

        :raises GuestError: it did not come back in time.
        """
        before = self.boot_id
        with contextlib.suppress(AgentError):  # the agent may be gone before it can send the status
            await self.agent.run("reboot", timeout=timeout)
        return await self.wait_boot(before, timeout=timeout)

    async def reset(self, *, timeout: float = BOOT_DEADLINE) -> str:  # noqa: ASYNC109
        """Press the reset button, and wait for the agent of the next boot."""
        before = self.boot_id
        await self.qmp.execute("system_reset")
        return await self.wait_boot(before, timeout=timeout)

    async def stop(self) -> bool:
        """End the guest: from inside, else QEMU, else by SIGKILL. True when the guest shut down by itself."""
        if not await self._stands_still():
            if not self.process.ended.is_set() and self.boot_id:
                with contextlib.suppress(AgentError, CommandTimeout):
                    await self.agent.run("poweroff", timeout=_POWEROFF_GRACE)
            elif not self.process.ended.is_set():
                await self._tell("system_powerdown")
            if await self.process.wait_ended(_POWEROFF_GRACE):
                return True
        await self._tell("quit")
        if not await self.process.wait_ended(_QUIT_GRACE):
            await self.process.kill()
        return False

    async def _stands_still(self) -> bool:
        """Whether its CPUs are stopped (QMP `query-status`), so that it cannot shut down by itself."""
        with contextlib.suppress(QMPError, TimeoutError):
            status = await asyncio.wait_for(self.qmp.execute("query-status"), _QUIT_GRACE)
            return isinstance(status, dict) and status.get("running") is False
        return False

    async def _tell(self, command: str) -> None:
        with contextlib.suppress(QMPError, TimeoutError):
            await asyncio.wait_for(self.qmp.execute(command), _QUIT_GRACE)

    async def _while_running(self, work: Coroutine[Any, Any, _T]) -> _T:
        return await _unless_ended(self.process, work)


async def _unless_ended(process: QemuProcess, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, or QEMU's last words when it ended first."""
    task = asyncio.create_task(work)
    end = asyncio.create_task(process.ended.wait())
    try:
        await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
        failed = task.done() and not task.cancelled() and task.exception() is not None
        # Its connections end a moment before the process does; QEMU's output explains more than they do.
        if process.ended.is_set() or (failed and await process.wait_ended(_LAST_WORDS)):
            raise GuestError(f"QEMU ended: {process.why()}")
        return await task
    finally:
        task.cancel()
        end.cancel()
        await asyncio.gather(task, end, return_exceptions=True)


@contextlib.asynccontextmanager
async def launch(
    spec: GuestSpec, runtime_dir: Path, *, boot_deadline: float = BOOT_DEADLINE, wait: bool = True
) -> AsyncIterator[Guest]:
    """Boot a guest in a directory of its own. When the context is left, QEMU is gone, however it is left.

    The directory, with the logs in it, is removed if all went well, and kept if not: the error names it.

    :param wait: wait for the agent. Without, the caller has a guest that may not have booted yet.
    :raises GuestError: QEMU ended, or the agent did not answer within `boot_deadline`.
    """
    runtime = Runtime(runtime_dir)
    async with contextlib.AsyncExitStack() as stack:
        process = start_qemu(spec, runtime, foreground=True)
        stack.callback(process.close)
        stack.push_async_callback(process.kill)
        try:
            with naming_logs(runtime):
                async with connect(runtime, process, booting=True) as guest:
                    if wait:
                        await wait_agent(guest, boot_deadline)
                    yield guest
                    await guest.stop()
        except asyncio.CancelledError:
            # Somebody does not want it any more: that is no failure to be looked into.
            await process.kill()
            shutil.rmtree(runtime.directory)
            raise
    shutil.rmtree(runtime.directory)


@contextlib.contextmanager
def naming_logs(runtime: Runtime) -> Iterator[None]:
    """Add the place of the logs to errors of a guest; those of a command in it are clear without."""
    try:
        yield
    except GuestError as error:
        if type(error) is not GuestError:
            raise
        raise GuestError(f"{error} (logs in {runtime.directory})") from error


async def wait_agent(guest: Guest, deadline: float) -> None:
    """Wait for a guest's first word.

    :raises GuestError: it did not come; with the end of what its console shows.
    """
    try:
        await guest.wait_boot(timeout=deadline)
    except AgentError as error:
        console = guest.runtime.console_log.read_text(errors="replace").splitlines()
        tail = " | ".join(line.strip() for line in console[-_CONSOLE_TAIL:] if line.strip())
        raise GuestError(f"{error}; its console ends: {tail or '(nothing)'}") from error


def start_qemu(spec: GuestSpec, runtime: Runtime, *, foreground: bool, incoming: bool = False) -> QemuProcess:
    """Check what can be checked, then start QEMU.

    :param incoming: it waits for a guest that migrates to it.
    :raises NvmuserError: something is missing; nothing was started.
    """
    for path in runtime.sockets.values():
        check_socket_path(path)
    check_sockets(spec)
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(reserved_memory(spec))
        qemu, boot = find_qemu(spec), prepare(spec, memory)
        preload = ("env", host.libvfio.preload()) if spec.libvfio else ()
        _prepare_directory(spec, runtime, qemu if boot.uefi_code else None)
        # Listening before QEMU starts: nobody has to wait for its sockets to appear.
        listeners = {
            name: stack.enter_context(listen_unix(path, 0o600)).fileno() for name, path in runtime.sockets.items()
        }
        argv = [*preload, *qemu.argv, *arguments(spec, runtime, boot, listeners)]
        # It is told to run when its source has reported that it will not any more (`nvmuser.guest.move`).
        argv += ["-incoming", "defer", "-S"] if incoming else []
        inherited = [*listeners.values(), *([] if memory is None else [memory])]
        return QemuProcess.start(argv, runtime.qemu_log, inherited, foreground=foreground)


def _prepare_directory(spec: GuestSpec, runtime: Runtime, uefi: host.Qemu | None) -> None:
    """Make a guest's directory, with the files that QEMU opens, and without an earlier guest's logs."""
    runtime.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (runtime.qemu_log, runtime.console_log):
        path.unlink(missing_ok=True)
    if uefi is not None:
        assert uefi.uefi_vars is not None
        shutil.copyfile(uefi.uefi_vars, runtime.uefi_vars)
    if spec.sockets and not spec.libvfio:
        migration.write_image(runtime.no_migration)


def find_qemu(spec: GuestSpec) -> host.Qemu:
    """A QEMU that can be this guest's.

    :raises SetupError: there is none.
    """
    return host.find_qemu(PLAIN_DRIVER if spec.libvfio else DRIVER)


def prepare(spec: GuestSpec, memory: int | None) -> Boot:
    """What this host gives to such a guest.

    :param memory: see `Boot.memory`.
    :raises NvmuserError: it cannot.
    """
    qemu = find_qemu(spec)
    if spec.firmware == "uefi" and (qemu.firmware is None or qemu.uefi_vars is None):
        raise SetupError(f"no UEFI firmware (OVMF) for this QEMU: install ovmf, or run `{SETUP}`")
    appliance = None if spec.own_system else host.find_appliance(spec.suite)
    return Boot(
        accelerator=host.accelerator(),
        memory=memory,
        kernel=appliance.kernel if appliance else None,
        initrd=appliance.initrd if appliance else None,
        uefi_code=qemu.firmware if spec.firmware == "uefi" else None,
        image_format=image_format(spec.image) if spec.image else "raw",
    )


@contextlib.asynccontextmanager
async def connect(runtime: Runtime, process: QemuProcess, *, booting: bool = False) -> AsyncIterator[Guest]:
    """Connect to a QEMU's QMP and to the agent's port. The guest goes on when the context is left.

    :param booting: it was started just now; its agent will send hello by itself.
    :raises GuestError: QEMU ended, or its sockets do not answer.
    """
    qmp = QMPClient(runtime.directory.name)
    try:
        await _unless_ended(process, _connect_qmp(qmp, runtime.qmp))
        async with await Agent.connect(runtime.agent, greet=not booting) as agent:
            yield Guest(runtime, process, qmp, agent)
    finally:
        # It raises what broke the connection, such as QEMU's end; that is reported already, or wanted.
        with contextlib.suppress(QMPError, EOFError, OSError):
            await qmp.disconnect()


async def _connect_qmp(qmp: QMPClient, path: Path) -> None:
    try:
        async with asyncio.timeout(_QMP_DEADLINE):
            await qmp.connect(os.fspath(path))
    except (TimeoutError, QMPError) as error:
        raise GuestError(f"{path}: QEMU does not answer") from error
