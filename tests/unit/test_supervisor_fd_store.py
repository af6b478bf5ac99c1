"""systemd's side is a datagram socket and three variables: sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmf_vfio.protocol.descriptors import Descriptor
from nvmuser.supervisor.fd_store import SystemdFds


class Manager:
    """systemd, as far as its store goes: notifications arrive at its socket; one descriptor of a file is enough for it
    (`service_add_fd_store`)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.stored: dict[str, Descriptor] = {}

    def listen(self) -> None:
        """Take in what has been sent."""
        with contextlib.suppress(BlockingIOError):
            while True:
                message, numbers, _, _ = socket.recv_fds(self._sock, 4096, 4)
                facts = dict(line.split("=", 1) for line in message.decode().splitlines())
                if facts.get("FDSTOREREMOVE"):
                    self.stored.pop(facts["FDNAME"]).close()
                for number in numbers:
                    assert facts["FDPOLL"] == "0"
                    if any(_same_file(number, held.fileno()) for held in self.stored.values()):
                        os.close(number)
                    else:
                        self.stored[facts["FDNAME"]] = Descriptor(number)

    def starts_the_next(self, script: str) -> str:
        """What a process prints that is passed the store: in a process of its own, for descriptors are passed by
        number, from 3 on."""
        names = list(self.stored)
        prelude = (
            "import os; os.environ['LISTEN_PID'] = str(os.getpid())\n"
            "from nvmuser.supervisor.fd_store import SystemdFds\n"
            "fds = SystemdFds()\n"
            "held = fds._held\n"
        )
        # Their own numbers may be the ones that they shall get: first all far away, then down.
        moves = [f"exec {100 + i}<&{self.stored[name].fileno()}" for i, name in enumerate(names)]
        moves += [f"exec {3 + i}<&{100 + i}" for i in range(len(names))]
        shell = "; ".join([*moves, f"exec '{sys.executable}' -c \"$0\""])
        environment = os.environ | {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        numbers = [held.fileno() for held in self.stored.values()]
        argv = ["bash", "-c", shell, prelude + script]
        result = subprocess.run(argv, env=environment, pass_fds=numbers, capture_output=True, text=True)
        assert not result.stderr
        return result.stdout.strip()


def _same_file(one: int, other: int) -> bool:
    """kcmp(2), as systemd asks it."""
    pid = os.getpid()
    return ctypes.CDLL(None).syscall(312, pid, pid, 0, one, other) == 0


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    if platform.machine() != "x86_64":
        pytest.skip("kcmp's number is x86-64's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        manager = Manager(sock)
        yield manager
        for held in manager.stored.values():
            held.close()


def memfd(content: bytes) -> Descriptor:
    held = Descriptor(os.memfd_create("kept"))
    os.write(held.fileno(), content)
    return held


def eventfd() -> Descriptor:
    return Descriptor(os.eventfd(0))


def test_what_is_kept_is_stored_and_what_is_dropped_is_removed(manager: Manager) -> None:
    fds = SystemdFds()
    fds.push("c0/1/conn", memfd(b"guest"))
    manager.listen()
    assert os.pread(manager.stored["nvmuser/c0/1/conn"].fileno(), 5, 0) == b"guest"
    fds.pop("c0/1/conn")
    fds.pop("c0/1/conn")
    manager.listen()
    assert not manager.stored


def test_a_file_with_many_names_is_stored_once_and_as_long_as_one_of_them_is_held(manager: Manager) -> None:
    fds = SystemdFds()
    memory, interrupt = memfd(b"memory"), eventfd()
    fds.push("c0/1/0", memory)
    fds.push("c0/1/1", memory.duplicate())
    fds.push("c1/2/0", memory.duplicate())
    fds.push("c0/1/2", interrupt)
    fds.push("c0/1/3", interrupt.duplicate())
    fds.push("c0/1/4", eventfd())
    fds.pop("c0/1/0")
    fds.pop("c0/1/2")
    manager.listen()
    script = "print(sorted(held), os.pread(held['c1/2/0'].fileno(), 6, 0), os.pread(held['c0/1/1'].fileno(), 6, 0))"
    names = ["c0/1/1", "c0/1/3", "c0/1/4", "c1/2/0"]
    assert manager.starts_the_next(script) == f"{names} b'memory' b'memory'"
    for name in names:
        fds.pop(name)
    manager.listen()
    assert not manager.stored


def test_the_next_one_goes_on_with_the_index(manager: Manager) -> None:
    fds = SystemdFds()
    memory = memfd(b"memory")
    fds.push("c0/1/0", memory)
    fds.push("c0/1/1", memory.duplicate())
    manager.listen()
    manager.starts_the_next("fds.pop('c0/1/0')")
    manager.listen()
    assert manager.starts_the_next("print(sorted(held), os.pread(held['c0/1/1'].fileno(), 6, 0))") == (
        "['c0/1/1'] b'memory'"
    )
    manager.starts_the_next("fds.pop('c0/1/1')")
    manager.listen()
    assert not manager.stored


def test_what_is_in_no_index_is_given_back_and_what_is_not_ours_left_alone(manager: Manager) -> None:
    manager.stored = {"nvmuser/c0/1/0": memfd(b"lost"), "stdin": memfd(b"another's")}
    assert manager.starts_the_next("print(len(fds))") == "0"
    manager.listen()
    assert list(manager.stored) == ["stdin"]


def test_without_systemd_it_is_a_plain_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    fds = SystemdFds()
    fds.push("a", memfd(b""))
    assert "a" in fds
    fds.close()
    assert len(fds) == 0
