"""One SPDK process: which arguments it gets, when it is ready, where it answers.

Owns the choice of memory and cores, and one JSON-RPC connection. What the process serves is up to the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from nvmuser.errors import RpcError, TargetError
from nvmuser.hostfs import hugepages
from nvmuser.model.cores import assigned
from nvmuser.model.objects import MEMORY_MIN, TargetSettings
from nvmuser.paths import DEFAULT_TARGET, StateDir, named_in
from nvmuser.reconcile.actual import transports
from nvmuser.rpc import Client
from nvmuser.supervisor import surroundings
from nvmuser.supervisor.last_words import LastWords
from nvmuser.supervisor.process import Process
from nvmuser.toolchain import Spdk
from nvmuser.toolchain.rbd import MODULE

log = logging.getLogger(__name__)

MEMORY_MIB = MEMORY_MIN >> 20
NO_TRACE = ("--num-trace-entries", "0")
"""An SPDK process that is killed would leave its trace behind, 3 MiB of shared memory."""
_TAKEN = "another process took them while this one started, and gave them back: start it again"
_START_DEADLINE = 60.0
_STOP_GRACE = 10.0


@dataclass(frozen=True)
class Options:
    """How targets are run.

    :param hugepages: None decides by what the machine has.
    :param cores: CPU numbers; empty chooses of those that this process may use.
    :param profile: of `model.TargetSettings.profiles`; empty is the first.
    :param max_controllers: how many it has room for; 0: as many as NVMe has ids.
    :param memory_mib: what it takes when it starts.
    :param rbd: with SPDK's module for images in Ceph.
    """

    hugepages: bool | None = None
    cores: tuple[int, ...] = ()
    profile: str = ""
    max_controllers: int = 0
    memory_mib: int = MEMORY_MIB
    rbd: bool = False

    def why_no_hugepages(self) -> str | None:
        """What is short, with the command that helps; None when there are enough."""
        return hugepages.why_unusable(self.memory_mib << 20)

    def resolve_hugepages(self) -> bool:
        """:raises TargetError: hugepages are asked for, but there are none."""
        reason = self.why_no_hugepages()
        if self.hugepages and reason:
            raise TargetError(f"no hugepages: {reason}")
        return not reason if self.hugepages is None else self.hugepages

    def resolve_cores(self) -> tuple[int, ...]:
        """:raises TargetError: a core is asked for that this process may not use."""
        allowed = os.sched_getaffinity(0)
        if foreign := set(self.cores) - allowed:
            usable = ", ".join(map(str, sorted(allowed)))
            raise TargetError(f"core {min(foreign)} may not be used here; choose among {usable}")
        settings = TargetSettings(profile=self.profile or TargetSettings.profile, cores=self.cores)
        return assigned([settings], allowed)[settings.name]


def arguments(spdk: Spdk, rpc_socket: Path, options: Options, startup: Path = surroundings.STARTUP) -> list[str]:
    """The command line of a target. Without PCI: it serves files, never a device of the host's.

    :param startup: its configuration; see `surroundings.startup`.
    """
    cores = ",".join(map(str, options.resolve_cores()))
    argv = [str(spdk.binary("nvmf_tgt")), "--no-pci", "--rpc-socket", str(rpc_socket), "--cpumask", f"[{cores}]"]
    # A standby shares its core with the target that it stands by for.
    argv += ["--disable-cpumask-locks", "--mem-size", str(options.memory_mib)]
    # Unlinked at once, hugepages are free again however the process ends.
    argv += ["--huge-unlink"] if options.resolve_hugepages() else ["--no-huge"]
    argv += NO_TRACE
    # What guests write is not examined for pools, mirrors and partitions: only what the engine names is.
    # To look at each file takes 7 ms as it comes and 25 ms as it goes, also after a crash.
    argv += ["--json", str(startup)]
    argv += ["--interrupt-mode"] if options.profile == "eco" else []
    return argv


async def end_others(state: StateDir, names: Collection[str]) -> None:
    """End processes that an earlier supervisor has left, of targets by other names than these."""
    for pid_file in sorted(state.run.glob("target-*.pid")):
        name, generation = named_in(pid_file)
        if name not in names:
            await _end(pid_file, state.process_socket(name, generation))


async def _end(pid_file: Path, rpc_socket: Path) -> None:
    if process := Process.adopt(pid_file):
        await process.kill()
        process.close()
    pid_file.unlink(missing_ok=True)
    rpc_socket.unlink(missing_ok=True)


class _HugepagesTaken(TargetError):
    """They were counted, and gone when SPDK wanted them."""


class Target:
    """A running SPDK and the connection to it."""

    def __init__(
        self, process: Process, rpc: Client, spdk: Spdk, rpc_socket: Path, options: Options, generation: int = 0
    ) -> None:
        self.process = process
        self.rpc = rpc
        self.spdk = spdk
        self.rpc_socket = rpc_socket
        self.options = options
        self.generation = generation
        self.hugepages = False

    @classmethod
    async def start(
        cls, state: StateDir, spdk: Spdk, options: Options, generation: int, name: str = DEFAULT_TARGET
    ) -> Self:
        """Start SPDK and wait until it answers. Hugepages that others take first it does without, unless asked for.

        :raises TargetError: it ended, or did not answer; the message has the last line of its log.
        """
        try:
            return await cls._start(state, spdk, options, generation, name)
        except _HugepagesTaken as error:
            if options.hugepages:
                raise
            log.warning("target %s: %s; started without", name, error)
        target = await cls._start(state, spdk, replace(options, hugepages=False), generation, name)
        target.options = options
        return target

    @classmethod
    async def _start(cls, state: StateDir, spdk: Spdk, options: Options, generation: int, name: str) -> Self:
        rpc_socket = state.process_socket(name, generation)
        log_file = state.target_log(name)
        start = log_file.stat().st_size if log_file.exists() else 0
        pid_file = state.process_pid(name, generation)
        with surroundings.runtime_directory(state) as environment:
            startup = surroundings.startup(options.max_controllers, Path(environment["RUNTIME_DIRECTORY"]))
            argv = arguments(spdk, rpc_socket, options, startup)
            environment |= surroundings.preloaded(spdk) if options.rbd else {}
            process = Process.start(argv, pid_file=pid_file, log=log_file, environment=environment)
            try:
                async with asyncio.timeout(_START_DEADLINE):
                    rpc = await _answering(process, rpc_socket, options)
            except BaseException as error:
                await process.kill()
                process.close()
                if isinstance(error, TimeoutError):
                    raise TargetError(f"SPDK did not answer within {_START_DEADLINE:g} s; see {log_file}") from None
                raise
        if rpc is None:
            process.close()
            words = LastWords(log_file, start)
            if words.lacked_memory and "--no-huge" not in argv:
                raise _HugepagesTaken(f"no hugepages: {options.why_no_hugepages() or _TAKEN}")
            raise TargetError(f"SPDK {process.ending}: {words.error} (log: {log_file})")
        target = cls(process, rpc, spdk, rpc_socket, options, generation)
        target.hugepages = "--no-huge" not in argv
        return target

    @classmethod
    async def adopt(cls, state: StateDir, spdk: Spdk, name: str = DEFAULT_TARGET) -> Self | None:
        """Take over the process of a target that an earlier supervisor has left behind, if it still answers. Others of
        the same target are ended."""
        found = None
        for pid_file in sorted(state.run.glob("target-*.pid")):
            whose, generation = named_in(pid_file)
            if whose != name:
                continue
            rpc_socket = state.process_socket(name, generation)
            if found is None and state.rpc_socket_of(name).resolve() == rpc_socket.resolve():
                found = await cls._adopt(pid_file, rpc_socket, spdk, generation)
                if found:
                    continue
            await _end(pid_file, rpc_socket)
        return found

    @classmethod
    async def _adopt(cls, pid_file: Path, rpc_socket: Path, spdk: Spdk, generation: int) -> Self | None:
        process = Process.adopt(pid_file)
        if process is None:
            return None
        rpc = None
        try:
            rpc = await Client.connect(rpc_socket, timeout=5.0)
            await transports(rpc)
        except RpcError as error:
            log.warning("target %d is not taken over: %s", process.pid, error)
            if rpc:
                await rpc.aclose()
            process.close()
            return None
        options = await _options_of(process, rpc)
        target = cls(process, rpc, spdk, rpc_socket, options, generation)
        target.hugepages = bool(options.hugepages)
        return target

    async def park(self) -> None:
        """Stop it in its tracks (SIGSTOP): a standby must not spin on its core."""
        self.process.signal(signal.SIGSTOP)

    async def unpark(self) -> None:
        self.process.signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End it in good order: SPDK closes its volumes and finishes their I/O."""
        await self.process.stop(_STOP_GRACE)
        await self.close()

    async def close(self) -> None:
        """Let go of a target that has ended."""
        await self.rpc.aclose()
        self.process.close()
        self.rpc_socket.unlink(missing_ok=True)
        self.rpc_socket.with_name(self.rpc_socket.name + ".lock").unlink(missing_ok=True)


async def _answering(process: Process, rpc_socket: Path, options: Options) -> Client | None:
    """Connect as soon as SPDK has its RPC socket up and its subsystems initialised; None when it ended before."""
    while process.alive:
        try:
            rpc = await Client.connect(rpc_socket, timeout=5.0)
        except RpcError:
            await asyncio.sleep(0.01)
            continue
        # A client that is only dropped leaves its task behind, to be found by the garbage collector.
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(rpc)
            try:
                await rpc.call("framework_wait_init", timeout=_START_DEADLINE)
            except RpcError:
                await asyncio.sleep(0.01)
                continue
            if options.profile == "balanced":
                await rpc.call("framework_set_scheduler", {"name": "dynamic"})
            stack.pop_all()
            return rpc
    return None


async def _options_of(process: Process, rpc: Client) -> Options:
    """How a target runs that an earlier supervisor started: by its command line, and its scheduler."""
    try:
        argv = Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").split("\0")
        maps = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
        scheduler = (await rpc.call("framework_get_scheduler")).get("scheduler_name", "")
    except (OSError, RpcError) as error:
        log.warning("target %d: how it runs is not known: %s", process.pid, error)
        return Options()
    profile = "eco" if "--interrupt-mode" in argv else "balanced" if scheduler == "dynamic" else "throughput"
    mask = argv[argv.index("--cpumask") + 1] if "--cpumask" in argv else ""
    cores = tuple(int(core) for core in mask.strip("[]").split(",") if core.isdigit())
    memory = argv[argv.index("--mem-size") + 1] if "--mem-size" in argv else ""
    memory_mib = int(memory) if memory.isdigit() else MEMORY_MIB
    return Options("--no-huge" not in argv, cores, profile, memory_mib=memory_mib, rbd=MODULE in maps)
