"""Starting, finding and stopping the supervisor from a CLI.

    python -m nvmuser.supervisor.daemon --state-dir DIR --ready-fd N …

Owns the lock on the state directory, by which a second start is refused however the first one ended, and the hand-over
of "ready" to the process that started it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import resource
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, NoReturn

from nvmuser import collector
from nvmuser.errors import ConflictError, NvmuserError, TargetError, TargetNotRunning, UsageError
from nvmuser.hostfs import permissions
from nvmuser.paths import SUN_PATH_MAX, StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client
from nvmuser.store import Store
from nvmuser.supervisor import control, fd_store
from nvmuser.supervisor.choice import chosen_spdk
from nvmuser.supervisor.settings import Settings
from nvmuser.supervisor.spdk import Options
from nvmuser.supervisor.supervisor import Supervisor
from nvmuser.toolchain import Spdk
from nvmuser.toolchain.spdk import check_prefix

log = logging.getLogger(__name__)

_ROOM_FOR_NAME = 32
"""Bytes of a controller's name that must fit into its socket's path. A longer name is checked when it is declared."""
_STOP_DEADLINE = 60.0
_WAYS = (
    "guests keep their disks with `nvmuser target start` and nothing but --standby or --no-standby, with `target:` in "
    "a specification (`nvmuser apply`) and with `nvmuser target restart`; they lose them with `nvmuser target stop`"
)
"""How one that runs is changed."""


def prepare(state: StateDir) -> None:
    """Make the directories of a state directory.

    :raises UsageError: its path is too long for sockets.
    :raises AccessError: this user may not make them.
    :raises TargetError: it belongs to somebody else, or cannot be made.
    """
    longest = state.socket("x" * _ROOM_FOR_NAME, direct=True)
    if len(os.fsencode(longest)) > SUN_PATH_MAX:
        room = SUN_PATH_MAX - (len(os.fsencode(longest)) - len(os.fsencode(state.root)))
        raise UsageError(f"{state.root}: too long for UNIX sockets; a state directory's path may have {room} bytes")
    try:
        with permissions.explained():
            for directory in (state.root, state.run, state.logs, state.volumes):
                directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            owner = state.run.stat().st_uid
    except OSError as error:
        raise TargetError(f"{error.filename}: {error.strerror}; choose another with --state-dir") from error
    if owner != os.geteuid():
        raise TargetError(f"{state.run} belongs to user {owner}; choose another directory with --state-dir")


@contextmanager
def locked(state: StateDir) -> Iterator[IO[str]]:
    """Hold the state directory. The kernel lets go of it when the holder dies.

    :raises ConflictError: a supervisor holds it.
    """
    with open(os.open(state.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = file.read().strip() or "unknown"
            raise ConflictError(f"{state.root}: a supervisor is running (pid {pid}); {_WAYS}") from None
        # For people, and for the message above: on a full disk it is as it was.
        content = f"{os.getpid()}\n".encode()
        with contextlib.suppress(OSError):
            os.pwrite(file.fileno(), content, 0)
            os.ftruncate(file.fileno(), len(content))
        yield file


def _command(state: StateDir, options: Options, settings: Settings, ready_fd: int) -> list[str]:
    """The supervisor's command line, after everything has been looked at that can be refused beforehand."""
    prepare(state)
    with Store(state.store):
        pass
    spdk = chosen_spdk(state)
    with locked(state):
        # Held only to say so at once; the supervisor takes it for itself.
        pass
    argv = [sys.executable, "-m", "nvmuser.supervisor.daemon"]
    argv += ["--state-dir", str(state.root), "--spdk", str(spdk.prefix)]
    argv += ["--ready-fd", str(ready_fd), "--cores", ",".join(map(str, options.cores))]
    argv += ["--profile", options.profile] if options.profile else []
    argv += ["--max-controllers", str(options.max_controllers)]
    argv += ["--settings", json.dumps(dataclasses.asdict(settings))]
    os.set_inheritable(ready_fd, True)
    return argv


def become(state: StateDir, options: Options, settings: Settings) -> NoReturn:
    """Turn this very process into a supervisor, for a service manager: its pid, its output, its descriptors.

    :raises ConflictError: one is running already.
    """
    argv = _command(state, options, settings, os.dup(1))
    sys.stdout.flush()
    os.execv(argv[0], argv)


def start(
    state: StateDir,
    options: Options,
    settings: Settings | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Start a supervisor in the background and wait until everything wanted is there.

    :param settings: None is as of the last start.
    :param environment: in addition to ours.
    :raises ConflictError: one is running already.
    :raises NvmuserError: it could not start; nothing is left running.
    """
    read_fd, write_fd = os.pipe()
    log_file = state.logs / "supervisor.log"
    with os.fdopen(read_fd) as pipe:
        try:
            known = settings or Settings.load(state).with_said(hugepages=options.hugepages)
            argv = _command(state, options, known, write_fd)
            with log_file.open("ab") as log, open(os.devnull, "rb") as nothing:
                # Not a `Popen`: this process ends before the supervisor does, and must not wait for it.
                files = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), 0)]
                files += [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
                os.posix_spawn(
                    sys.executable, argv, {**os.environ, **(environment or {})}, file_actions=files, setsid=True
                )
        finally:
            os.close(write_fd)
        answer = pipe.read().strip()
    if answer != "ready":
        raise TargetError(answer or f"the supervisor ended at once; see {log_file}")


async def stop(state: StateDir) -> None:
    """Stop the supervisor, the target and the endpoint, and wait until they have ended.

    :raises TargetNotRunning: there is none.
    """
    async with control.connected(state) as client:
        try:
            process = client.hold_peer()
        except ProcessLookupError:
            raise TargetError("the supervisor runs in another PID namespace (a container): stop it there") from None
        try:
            await client.call("stop")
            if not await process.wait_ended(_STOP_DEADLINE):
                log_file = state.logs / "supervisor.log"
                raise TargetError(f"the supervisor (pid {process.pid}) does not end; see {log_file}")
        finally:
            process.close()
    with contextlib.suppress(ChildProcessError):
        # It is this process's own child when `start` was called here.
        os.waitpid(process.pid, os.WNOHANG)  # noqa: ASYNC222 (it has ended)


@asynccontextmanager
async def running(
    state: StateDir,
    options: Options | None = None,
    *,
    standby: bool = False,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Client]:
    """A supervisor for as long as the block lasts: for tests and benchmarks."""
    options = options or Options()
    await asyncio.to_thread(start, state, options, Settings(standby, options.hugepages), environment)
    try:
        async with control.connected(state) as client:
            yield client
    finally:
        with contextlib.suppress(TargetNotRunning):
            await stop(state)


def _declare(state: StateDir, options: Options, settings: Settings) -> None:
    """What is said about the target holds for this start and for all that follow.

    :raises ConflictError: a volume in use does not go with it.
    """
    with contextlib.closing(Engine(state)) as engine:
        before = engine.target_settings()
        after = dataclasses.replace(
            before,
            profile=options.profile or before.profile,
            cores=options.cores or before.cores,
            max_controllers=options.max_controllers or before.max_controllers,
        )
        if after != before:
            engine.declare(after)
    try:
        settings.save(state)
    except OSError as error:
        log.error("%s: %s; the next start will not know how this one was run", state.settings, error.strerror)


async def _run(state: StateDir, spdk: Spdk, options: Options, settings: Settings, ready_fd: int) -> NvmuserError | None:
    """Returns why it was never ready, which has been reported."""
    on_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def report(future: asyncio.Future[None]) -> None:
        error = future.exception()
        _report(ready_fd, error)
        os.close(ready_fd)
        if not error:
            fd_store.notify("READY=1")

    on_ready.add_done_callback(report)
    _declare(state, options, settings)
    supervisor = Supervisor(state, spdk, options, settings)
    try:
        await supervisor.run(on_ready)
    except NvmuserError as error:
        if on_ready.done():
            raise
        on_ready.set_exception(error)
        return error
    finally:
        with contextlib.suppress(OSError):
            state.control_socket.unlink(missing_ok=True)
    return None


def _report(ready_fd: int, error: BaseException | None) -> None:
    """To the process that waits for the start, if it still does."""
    with contextlib.suppress(OSError):
        os.write(ready_fd, (" ".join(str(error).split()) if error else "ready").encode())


def main() -> None:
    parser = argparse.ArgumentParser(prog="nvmuser.supervisor.daemon")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--spdk", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--cores", default="")
    parser.add_argument("--profile", default="")
    parser.add_argument("--max-controllers", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={})
    arguments = parser.parse_args()
    collector.look_less_often()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # What a shell has opened for its own ends (`flock`, a pipe) must not live as long as the supervisor.
    first = 3 + len(fd_store.listed())
    os.closerange(first, arguments.ready_fd)
    os.closerange(max(first, arguments.ready_fd + 1), os.sysconf("SC_OPEN_MAX"))
    # The keeper has copies of every guest's descriptors.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    state = StateDir(arguments.state_dir)
    cores = tuple(int(core) for core in arguments.cores.split(",") if core)
    settings = Settings(**arguments.settings)
    options = Options(settings.hugepages, cores, arguments.profile, arguments.max_controllers)
    try:
        with locked(state):
            failed = asyncio.run(_run(state, check_prefix(arguments.spdk), options, settings, arguments.ready_fd))
    except NvmuserError as error:
        _report(arguments.ready_fd, error)
        sys.exit(f"{error}")
    if failed:
        sys.exit(f"{failed}")  # a service manager looks at the exit status


if __name__ == "__main__":
    main()
