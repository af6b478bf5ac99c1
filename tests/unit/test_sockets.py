"""Who listens at a socket: seen without a connection, where that can be seen."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nvmuser.hostfs import sockets, unix_diag

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
