"""One SPDK process: which arguments it gets, when it is ready, where it answers.

Owns the choice of memory and cores, and one JSON-RPC connection. What the process serves is up to the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nvmuser.errors import RpcError, SetupError, TargetError
from nvmuser.hostfs import hugepages
from nvmuser.model.cores import assigned
from nvmuser.model.objects import MAX_CONTROLLERS, MEMORY_MIN, TargetSettings
from nvmuser.paths import DEFAULT_TARGET, StateDir, named_in
from nvmuser.rpc import Client
from nvmuser.supervisor.process import Process
from nvmuser.toolchain import Spdk, find_spdk
from nvmuser.toolchain.rbd import MODULE, find_module
from nvmuser.toolchain.spdk import check_prefix, default_prefix

log = logging.getLogger(__name__)

MEMORY_MIB = MEMORY_MIN >> 20
STARTUP = Path(__file__).with_name("startup.json")
"""SPDK's configuration before any call."""
NO_TRACE = ("--num-trace-entries", "0")
"""An SPDK process that is killed would leave its trace behind, 3 MiB of shared memory."""
_START_DEADLINE = 60.0
_STOP_GRACE = 10.0
_MEMORY_FS = Path("/dev/shm")


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

    def resolve_hugepages(self) -> bool:
        """:raises TargetError: hugepages are asked for, but there are none."""
        reason = hugepages.why_unusable(self.memory_mib << 20)
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


def arguments(spdk: Spdk, rpc_socket: Path, options: Options, startup: Path = STARTUP) -> list[str]:
    """The command line of a target. Without PCI: it serves files, never a device of the host's.

    :param startup: its configuration; see `_startup`.
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


def _startup(options: Options, directory: Path) -> Path:
    """SPDK's configuration: ours, or, where it is to have room for another number of controllers, a copy with that.

    :raises OSError: the copy cannot be written.
    """
    if options.max_controllers in (0, MAX_CONTROLLERS):
        return STARTUP
    content = json.loads(STARTUP.read_text(encoding="ascii"))
    calls = [call for subsystem in content["subsystems"] for call in subsystem["config"]]
    (room,) = (call for call in calls if call["method"] == "nvmf_set_max_subsystems")
    # The discovery subsystem is one of them.
    room["params"]["max_subsystems"] = options.max_controllers + 1
    path = directory / STARTUP.name
    path.write_text(json.dumps(content), encoding="ascii")
    return path


@contextlib.contextmanager
def _runtime_directory(state: StateDir) -> Iterator[dict[str, str]]:
    """The environment with a directory for DPDK, gone when the block ends.

    DPDK makes `dpdk/spdk_pid<N>` in $RUNTIME_DIRECTORY, else in /var/run or /tmp (`eal_create_runtime_dir`), uses it
    for nothing here (`--no-shconf`), and leaves it behind. In /tmp the parent would belong to the first user, and a new
    directory needs a block of what may be a full disk.
    """
    parent = _MEMORY_FS if os.access(_MEMORY_FS, os.W_OK) else state.run
    directory = tempfile.mkdtemp(prefix="nvmuser-", dir=parent)
    try:
        yield {"RUNTIME_DIRECTORY": directory}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _preloaded(spdk: Spdk) -> dict[str, str]:
    """The environment that loads the module for images in Ceph. Without it all other volumes are served; what needs it
    says so."""
    try:
        return {"LD_PRELOAD": str(find_module(spdk.prefix))}
    except SetupError as error:
        log.warning("%s", error)
        return {}


def chosen_spdk(state: StateDir) -> Spdk:
    """The SPDK of this deployment: $NVMUSER_SPDK's, else the one that `target upgrade` has chosen, else set-up's.

    :raises SetupError: it is not there, or will not do.
    """
    if "NVMUSER_SPDK" in os.environ or not state.spdk.is_symlink():
        return find_spdk()
    try:
        return check_prefix(state.spdk.readlink())
    except SetupError as error:
        raise SetupError(f"{error}; `target upgrade` chose it: remove {state.spdk} to go without") from None


def choose_spdk(state: StateDir, spdk: Spdk) -> None:
    """Have later starts use it too.

    :raises OSError: that cannot be kept.
    """
    state.spdk.unlink(missing_ok=True)
    if spdk.prefix != default_prefix():
        state.spdk.symlink_to(spdk.prefix)


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
        """Start SPDK and wait until it answers.

        :raises TargetError: it ended, or did not answer; the message has the last line of its log.
        """
        rpc_socket = state.process_socket(name, generation)
        log_file = state.target_log(name)
        start = log_file.stat().st_size if log_file.exists() else 0
        pid_file = state.process_pid(name, generation)
        with _runtime_directory(state) as environment:
            startup = _startup(options, Path(environment["RUNTIME_DIRECTORY"]))
            argv = arguments(spdk, rpc_socket, options, startup)
            environment |= _preloaded(spdk) if options.rbd else {}
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
            raise TargetError(f"SPDK {process.ending}: {_last_error(log_file, start)} (log: {log_file})")
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
        try:
            rpc = await Client.connect(rpc_socket, timeout=5.0)
        except RpcError:
            log.warning("target %d does not answer", process.pid)
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


def _last_error(log_file: Path, start: int) -> str:
    """The line of a log that most likely says why; of its end when it was put aside meanwhile."""
    try:
        with log_file.open("rb") as file:
            file.seek(start if file.seek(0, os.SEEK_END) >= start else 0)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"its log cannot be read: {error.strerror}"
    errors = [line for line in lines if "ERROR" in line or "EAL:" in line or "rror" in line]
    return (errors or lines or ["no output"])[-1].strip()
