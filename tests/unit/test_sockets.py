"""Who listens at a socket: seen without a connection, where that can be seen."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvmuser.errors import NvmuserError
from nvmuser.hostfs import sockets, unix_diag
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir
from nvmuser.reconcile.calls import Call, Needs
from nvmuser.reconcile.gates import directories
from nvmuser.reconcile.tidy import tidy
from nvmuser.rpc.methods import Request

Listen = Callable[..., socket.socket]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    """`listen("x")`: a socket at that path."""
    opened = []

    def listen(name: str, kind: int = socket.SOCK_STREAM, *, backlog: int = 1) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        opened.append(listener)
        listener.bind(str(tmp_path / name))
        listener.listen(backlog)
        return listener

    yield listen
    for listener in opened:
        listener.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_look_is_no_visit(tmp_path: Path, listen: Listen, kind: int) -> None:
    listener = listen("x", kind)
    assert sockets.answers(tmp_path / "x")
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_a_socket_that_was_renamed_is_found(tmp_path: Path, listen: Listen) -> None:
    listener = listen("next")
    (tmp_path / "next").rename(tmp_path / "x")
    assert sockets.answers(tmp_path / "x")
    assert not sockets.answers(tmp_path / "next")
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_what_nobody_serves_does_not_answer(tmp_path: Path, listen: Listen) -> None:
    listen("left").close()
    (tmp_path / "file").touch()
    for name in ("left", "file", "none"):
        assert not unix_diag.is_listening(tmp_path / name)
        assert not sockets.answers(tmp_path / name)
    # Its file was taken by another: whom one finds at this path is nobody.
    listen("old")
    (tmp_path / "old").unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "old"))
        assert not sockets.answers(tmp_path / "old")


def test_many_listeners_are_told_in_several_messages(tmp_path: Path, listen: Listen) -> None:
    for number in range(1000):
        listen(str(number))
    assert all(unix_diag.is_listening(tmp_path / str(number)) for number in (0, 500, 999))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_where_the_kernel_does_not_tell_it_is_asked_by_a_connection(
    tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """As for a socket of another network namespace, or where there is no unix_diag."""

    def silent() -> Iterator[bytes]:
        raise OSError
        yield b""

    monkeypatch.setattr(unix_diag, "_listeners", silent)
    listen("x", kind)
    assert sockets.answers(tmp_path / "x")
    assert not sockets.answers(tmp_path / "none")


def test_a_listener_of_another_network_namespace_answers(tmp_path: Path) -> None:
    path = tmp_path / "x"
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); "
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = ["unshare", "--user", "--net", sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"ready\n"
        assert not unix_diag.is_listening(path)
        assert sockets.answers(path)
        process.stdin.close()


def test_many_directories_are_prepared_and_tidied_with_one_look(
    tmp_path: Path, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lists all listeners at each look: one for each socket took 8 s for 2,000 controllers."""
    state = StateDir(tmp_path)
    names = [str(number) for number in range(20)]
    for name in names:
        state.target_dir(name).mkdir(parents=True)
        listen(f"run/target/{name}/cntrl").close()
    served = listen("run/target/served")
    state.target_dir("20").mkdir()
    (tmp_path / "run/target/served").rename(state.target_dir("20") / "cntrl")
    looks = []
    real = unix_diag._listeners

    def counted() -> Iterator[bytes]:
        looks.append(1)
        return real()

    monkeypatch.setattr(unix_diag, "_listeners", counted)
    keys = [Key("controller", name) for name in (*names, "20")]
    calls = [Call(Request("nvmf_subsystem_add_listener", {}), key, needs=Needs(directory=True)) for key in keys]

    async def prepare() -> dict[Key, NvmuserError]:
        gate, failures = directories(calls, state)
        await gate.work
        return failures

    assert set(asyncio.run(prepare())) == {Key("controller", "20")}
    assert len(looks) == 1
    assert not any((state.target_dir(name) / "cntrl").exists() for name in names)
    for name in names:
        listen(f"run/target/{name}/cntrl").close()
    gone = [Entry(Controller(key.name), deleting=True) for key in keys]
    assert tidy(state, gone, Desired()) == {}
    assert len(looks) == 2
    assert [path.name for path in (tmp_path / "run/target").iterdir()] == ["20"]
    served.close()
