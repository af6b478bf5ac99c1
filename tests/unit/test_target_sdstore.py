"""systemd's side is a datagram socket and three variables: sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmf_vfio.descriptors import Descriptor
from nvmuser.target.sdstore import StoredKeeper


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's socket, at which a service's notifications arrive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def memfd(content: bytes) -> Descriptor:
    held = Descriptor(os.memfd_create("kept"))
    os.write(held.fileno(), content)
    return held


def test_what_is_kept_is_stored_and_what_is_dropped_is_removed(manager: socket.socket) -> None:
    keeper = StoredKeeper()
    keeper.put("c0/1/conn", memfd(b"guest"))
    message, descriptors, _, _ = socket.recv_fds(manager, 4096, 4)
    assert message == b"FDSTORE=1\nFDNAME=nvmuser/c0/1/conn\nFDPOLL=0"
    [number] = descriptors
    assert os.pread(number, 5, 0) == b"guest"
    os.close(number)
    keeper.drop("c0/1/conn")
    assert manager.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=nvmuser/c0/1/conn"
    keeper.drop("c0/1/conn")
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_the_next_one_finds_it() -> None:
    """In a process of its own, for descriptors are passed by number, from 3 on."""
    script = (
        "import os; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from nvmuser.target.sdstore import StoredKeeper\n"
        "keeper = StoredKeeper(); print(len(keeper), 'c0/1/conn' in keeper, 'stdin' in keeper)"
    )
    with memfd(b"") as held:
        environment = os.environ | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "nvmuser/c0/1/conn:stdin"}
        shell = f"exec 3<&{held.fileno()} 4</dev/null; exec '{sys.executable}' -c \"$0\""
        argv = ["bash", "-c", shell, script]
        result = subprocess.run(argv, env=environment, pass_fds=[held.fileno()], capture_output=True, text=True)
    assert result.stdout.split() == ["1", "True", "False"], result.stderr


def test_without_systemd_it_is_a_plain_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    keeper = StoredKeeper()
    keeper.put("a", memfd(b""))
    assert "a" in keeper
    keeper.close()
    assert len(keeper) == 0
