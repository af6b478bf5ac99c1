"""The endpoint process: the sockets to which guests connect, for every controller of one state directory.

    python -m nvmf_vfio.endpoint --control SOCKET --guests DIR --targets DIR

Owns the listening sockets (`DIR/<controller>/cntrl`), a session for each connected guest, and the control socket on
which the supervisor reports which controllers there are and the state of each one's target. It reads no configuration
and starts no process. It goes on when its supervisor is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

from nvmf_vfio.keeper.channel import Channel
from nvmf_vfio.keeper.fd_store import FdStore, Record, StoredFd
from nvmf_vfio.keeper.questions import Questions
from nvmf_vfio.migration.written import Policy
from nvmf_vfio.protocol.descriptors import Descriptor, close_all
from nvmf_vfio.protocol.header import MAX_MESSAGE, ProtocolError
from nvmf_vfio.protocol.wire import Closed, Wire
from nvmf_vfio.session import Session
from nvmf_vfio.visitors import answer_busy, has_left

log = logging.getLogger(__name__)

_BACKLOG = 4
_STATUS_BATCH = 200
_ACCEPT_INTERVAL = 1.0
_MAX_VISITORS = 8
"""Connections to one controller on which no message has arrived yet."""


class Endpoint:
    """All guests' connections of one state directory.

    :param guests: directory of the guests' sockets.
    :param targets: directory of the targets' sockets.
    :param policy: what becomes of the I/O of a guest that migrates.
    """

    def __init__(self, guests: Path, targets: Path, policy: Policy = Policy.LIVE) -> None:
        self._guests = guests
        self._targets = targets
        self._policy = policy
        self._listeners: dict[str, socket.socket] = {}
        self._sessions: dict[str, Session] = {}
        self._visitors: dict[socket.socket, str] = {}
        """Connections on which no message has arrived yet, with their controllers."""
        self._refused: set[socket.socket] = set()
        """Those of them that were answered that the controller is busy, and have not left yet."""
        self._stores: dict[str, FdStore] = {}
        self._stored: dict[str, Descriptor] = {}
        self._channel: Channel | None = None
        self._states: dict[str, str] = {}
        """Of controllers' targets. `_other_state` is that of controllers of which none was reported."""
        self._other_state = "gone"
        self._questions = Questions(lambda: self._channel)
        self._leaving: set[asyncio.Task[None]] = set()
        self._serial = 0
        self._fresh = True
        self._loop = asyncio.get_running_loop()
        self.stopped = asyncio.Event()

    # -- the supervisor ------------------------------------------------------------------------------------------

    def connected(self, sock: socket.socket) -> None:
        """Take a supervisor's connection, in place of an earlier one."""
        if self._channel:
            self._channel.close()
        self._channel = Channel(sock, self._received, self._supervisor_gone)
        self._channel.send("hello", fresh=self._fresh, pid=os.getpid(), several=True, leaves=True)

    def _supervisor_gone(self) -> None:
        log.warning("the supervisor is gone; guests stay connected")
        self._channel = None
        self._questions.lost()

    def _received(self, message: dict[str, Any], descriptors: list[Descriptor]) -> None:
        match message["op"]:
            case "kept":
                self._stored.update(zip(message["names"], descriptors, strict=True))
                return
            case "start":
                self._start()
            case "serve":
                failed = self._serve(set(message["controllers"]))
                if self._channel:
                    self._channel.send("served", failed=failed)
            case "target":
                self._target(message["state"], message.get("controllers"))
            case "leave":
                task = self._loop.create_task(self._leave(message["controllers"]))
                self._leaving.add(task)
                task.add_done_callback(self._leaving.discard)
            case "answer":
                self._questions.answered(message)
            case "status":
                self._status()
            case "stop":
                self.stopped.set()
        close_all(descriptors)

    def _start(self) -> None:
        if self._fresh:
            self._fresh = False
            self._resume()
        else:
            for store in self._stores.values():
                store.push_all()

    def _target(self, state: str, controllers: list[str] | None) -> None:
        """:param controllers: whose target it is; None: all of them, from a supervisor that knows one target only."""
        if controllers is None:
            self._states, self._other_state = {}, state
            controllers = list(self._sessions)
        else:
            self._states.update(dict.fromkeys(controllers, state))
        for session in [self._sessions[name] for name in controllers if name in self._sessions]:
            match state:
                case "gone":
                    session.target_gone()
                case "drained":
                    session.target_drained()
                case "ready":
                    session.target_ready()

    async def _leave(self, controllers: list[str]) -> None:
        sessions = [self._sessions[name] for name in controllers if name in self._sessions]
        await asyncio.gather(*(session.leave() for session in sessions), return_exceptions=True)
        if self._channel:
            self._channel.send("left")

    def _is_target_ready(self, name: str) -> bool:
        return self._states.get(name, self._other_state) == "ready"

    def _status(self) -> None:
        sessions = [session.status() for session in self._sessions.values()]
        batches = [sessions[i : i + _STATUS_BATCH] for i in range(0, len(sessions), _STATUS_BATCH)] or [[]]
        if self._channel:
            for batch in batches:
                self._channel.send(
                    "status",
                    sessions=batch,
                    more=batch is not batches[-1],
                    rss_kib=_resident_kib(),
                    controllers=len(self._listeners),
                )

    # -- listeners -----------------------------------------------------------------------------------------------

    def _serve(self, controllers: set[str]) -> dict[str, str]:
        """Returns why some have no socket, by their names."""
        failed: dict[str, str] = {}
        for name in set(self._listeners) - controllers:
            self._unlisten(name)
        for name in sorted(controllers - set(self._listeners)):
            try:
                self._listen(name)
            except OSError as error:
                failed[name] = error.strerror or str(error)
                log.error("%s: no socket: %s", name, error)
        return failed

    def _listen(self, name: str) -> None:
        path = self._guests / name / "cntrl"
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        # A guest that starts now finds a socket that listens, or none. A file that is there already belongs to an
        # endpoint that is dead: there is one in a state directory.
        scratch = path.with_name(".next")  # No longer than the final name: paths of sockets are limited.
        scratch.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(os.fspath(scratch))
            scratch.chmod(0o660)
            listener.listen(_BACKLOG)
            scratch.replace(path)
        except OSError:
            listener.close()
            raise
        self._listeners[name] = listener
        self._loop.add_reader(listener, self._accept, name)

    def _unlisten(self, name: str) -> None:
        if session := self._sessions.get(name):
            session.close()
        self._forget_visitors(name)
        self._states.pop(name, None)
        listener = self._listeners.pop(name)
        self._loop.remove_reader(listener)
        listener.close()
        path = self._guests / name / "cntrl"
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()

    def _accept(self, name: str) -> None:
        listener = self._listeners[name]
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # No descriptors are left. The guest waits in the backlog, and must not keep this process awake.
            log.error("%s: a guest cannot connect: %s", name, error)
            self._loop.remove_reader(listener)
            self._loop.call_later(_ACCEPT_INTERVAL, self._accept_again, name, listener)
            return
        if list(self._visitors.values()).count(name) >= _MAX_VISITORS:
            log.warning("%s: a guest was turned away: %d others have sent no message yet", name, _MAX_VISITORS)
            sock.close()
            return
        # A client that only probes the socket leaves without a message. To the target it would be a guest, and keep
        # the next one waiting.
        self._visitors[sock] = name
        self._loop.add_reader(sock, self._first_message, name, sock)

    def _first_message(self, name: str, sock: socket.socket) -> None:
        if has_left(sock) or sock in self._refused:
            # Only this one: a guest that has connected, and sent no message yet, may be among the others.
            self._forget_visitor(sock)
            sock.close()
        elif name in self._sessions:
            log.warning("%s: a second guest was turned away", name)
            self._refused.add(sock)
            answer_busy(sock)
        else:
            self._forget_visitors(name, but=sock)
            self._welcome(name, sock)

    def _forget_visitor(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        self._refused.discard(sock)
        del self._visitors[sock]

    def _forget_visitors(self, name: str, *, but: socket.socket | None = None) -> None:
        for sock in [sock for sock, wanted in self._visitors.items() if wanted == name]:
            self._forget_visitor(sock)
            if sock is not but:
                sock.close()

    def _welcome(self, name: str, sock: socket.socket) -> None:
        self._serial += 1
        store = self._store(f"{name}/{self._serial}")
        try:
            store.adopt(f"{store.prefix}/conn", Descriptor(os.dup(sock.fileno())), push=True)
            record = Record.create(name)
            store.adopt(f"{store.prefix}/record", record, push=True)
        except OSError as error:
            log.error("%s: a guest cannot connect: %s", name, error)
            store.close()
            sock.close()
            return
        session = self._session(name, Wire(sock, limit=MAX_MESSAGE), record, store)
        log.info("%s: guest connected", name)
        session.start()
        if self._is_target_ready(name):
            session.target_ready()

    def _accept_again(self, name: str, listener: socket.socket) -> None:
        if self._listeners.get(name) is listener:
            self._loop.add_reader(listener, self._accept, name)

    # -- sessions ------------------------------------------------------------------------------------------------

    def _store(self, prefix: str) -> FdStore:
        def put(name: str, descriptor: Descriptor) -> None:
            if self._channel:
                self._channel.send("put", [descriptor], name=name)

        def drop(name: str) -> None:
            if self._channel:
                self._channel.send("drop", name=name)

        return FdStore(prefix, put, drop)

    def _session(self, name: str, wire: Wire, record: Descriptor, store: FdStore) -> Session:
        def ended() -> None:
            if self._sessions.get(name) is session:
                del self._sessions[name], self._stores[name]

        session = Session(
            name,
            self._targets / name / "cntrl",
            wire,
            record,
            store,
            is_target_ready=lambda: self._is_target_ready(name),
            ask=functools.partial(self._questions.ask, name),
            on_end=ended,
            policy=self._policy,
        )
        self._sessions[name] = session
        self._stores[name] = store
        return session

    def _resume(self) -> None:
        """Take over the guests of an endpoint that was killed, from what the supervisor has sent."""
        groups: dict[str, dict[str, Descriptor]] = {}
        for name, descriptor in self._stored.items():
            groups.setdefault(name.rpartition("/")[0], {})[name] = descriptor
        self._stored = {}
        for prefix, descriptors in sorted(groups.items(), key=lambda group: int(group[0].rpartition("/")[2])):
            controller, _, serial = prefix.partition("/")
            self._serial = max(self._serial, int(serial))
            if older := self._sessions.get(controller):
                # Its guest had gone, and the supervisor did not know yet.
                older.close()
            store = self._store(prefix)
            stored: dict[str, StoredFd] = {name: store.adopt(name, held) for name, held in descriptors.items()}
            self._resume_session(controller, store, stored)

    def _resume_session(self, controller: str, store: FdStore, stored: dict[str, StoredFd]) -> None:
        connection, record = stored.get(f"{store.prefix}/conn"), stored.get(f"{store.prefix}/record")
        if connection is None or record is None:
            store.close()
            return
        sock = socket.socket(fileno=os.dup(connection.descriptor.fileno()))
        session = self._session(controller, Wire(sock, limit=MAX_MESSAGE), record.descriptor, store)
        try:
            session.resume(stored)
            log.info("%s: guest taken over", controller)
        except (Closed, ProtocolError, OSError, KeyError, TypeError, ValueError) as error:
            # Also a record of another version's layout: the other guests must come back all the same.
            log.warning("%s: guest not taken over: %s", controller, error or "it has gone")
            session.close()

    def close(self) -> None:
        """Close every connection and socket."""
        for name in list(self._listeners):
            self._unlisten(name)
        for session in list(self._sessions.values()):
            session.close()
        if self._channel:
            self._channel.close()


def _resident_kib() -> int:
    """Anonymous memory of this process (RssAnon of proc_pid_status(5)), in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


async def serve(control: Path, guests: Path, targets: Path, policy: Policy = Policy.LIVE) -> None:
    """Serve guests until the supervisor sends `stop`, or SIGTERM.

    :param control: where the supervisor connects.
    :param guests: directory of the guests' sockets.
    :param targets: directory of the targets' sockets.
    :param policy: what becomes of the I/O of a guest that migrates.
    """
    loop = asyncio.get_running_loop()
    endpoint = Endpoint(guests, targets, policy)
    loop.add_signal_handler(signal.SIGTERM, endpoint.stopped.set)
    with contextlib.suppress(FileNotFoundError):
        control.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as listener:
        listener.bind(os.fspath(control))
        control.chmod(0o600)
        listener.listen(1)

        def accept() -> None:
            with contextlib.suppress(BlockingIOError):
                endpoint.connected(listener.accept()[0])

        loop.add_reader(listener, accept)
        try:
            await endpoint.stopped.wait()
        finally:
            loop.remove_reader(listener)
            endpoint.close()
            with contextlib.suppress(FileNotFoundError):
                control.unlink()


def main() -> None:
    """Run the endpoint with the options of the command line."""
    parser = argparse.ArgumentParser(prog="nvmf_vfio.endpoint", description="Stands between guests and SPDK.")
    parser.add_argument("--control", type=Path, required=True, help="socket on which the supervisor connects")
    parser.add_argument("--guests", type=Path, required=True, help="directory of the guests' sockets")
    parser.add_argument("--targets", type=Path, required=True, help="directory of the targets' sockets")
    policy = os.environ.get("NVMUSER_MIGRATION", Policy.LIVE)
    parser.add_argument("--migration", type=Policy, default=policy, help="whether I/O goes on while a guest migrates")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # A guest's memory maps and interrupts are descriptors here.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(serve(arguments.control, arguments.guests, arguments.targets, arguments.migration))


if __name__ == "__main__":
    main()
