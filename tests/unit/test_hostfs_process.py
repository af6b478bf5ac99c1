"""Processes held by pidfds: the right one, its end, and each descriptor closed once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvmuser.errors import TargetError
from nvmuser.hostfs.process import HeldProcess, start_time
from nvmuser.supervisor.process import Process, is_running


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_its_end_is_seen_and_a_child_is_reaped_first(sleeper: subprocess.Popen[bytes]) -> None:
    codes: list[int] = []
    held = HeldProcess.open(sleeper.pid, lambda: codes.append(sleeper.wait()))
    assert held.alive
    held.signal(signal.SIGKILL)
    assert await held.wait_ended(60)
    assert codes == [-signal.SIGKILL]
    held.signal(signal.SIGKILL)
    held.close()


async def test_closed_twice_no_stranger_is_closed(sleeper: subprocess.Popen[bytes]) -> None:
    """The second time its number is somebody else's."""
    held = HeldProcess.open(sleeper.pid)
    held.close()
    stranger = os.open("/dev/null", os.O_RDONLY)
    held.close()
    os.fstat(stranger)
    os.close(stranger)


async def test_a_supervisors_process_that_is_closed_twice(tmp_path: Path) -> None:
    process = Process.start(["true"], pid_file=tmp_path / "p.pid", log=tmp_path / "log")
    await process.wait()
    process.close()
    strangers = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
    process.close()
    for stranger in strangers:
        os.fstat(stranger)
        os.close(stranger)
    assert not (tmp_path / "p.pid").is_symlink()


async def test_found_by_pid_and_start_time_only(sleeper: subprocess.Popen[bytes]) -> None:
    before = descriptors()
    started = start_time(sleeper.pid)
    assert HeldProcess.find(sleeper.pid, started + 1) is None
    assert HeldProcess.find(0, 0) is None
    assert descriptors() == before
    held = HeldProcess.find(sleeper.pid, started)
    assert held
    held.close()
    sleeper.kill()
    sleeper.wait()
    assert HeldProcess.find(sleeper.pid, started) is None


async def test_one_that_takes_the_number_while_it_is_looked_at(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start time is read when the pidfd holds the process already: before, it says nothing of that process."""
    order: list[str] = []
    real = os.pidfd_open

    def opened(pid: int) -> int:
        order.append("open")
        return real(pid)

    def read(pid: int) -> int:
        order.append("read")
        return start_time(pid)

    monkeypatch.setattr(os, "pidfd_open", opened)
    monkeypatch.setattr("nvmuser.hostfs.process.start_time", read)
    held = HeldProcess.find(sleeper.pid, start_time(sleeper.pid))
    assert held
    held.close()
    assert order == ["open", "read"]


async def test_the_peer_of_a_connection(tmp_path: Path) -> None:
    script = (
        "import socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1]); listener.listen()\n"
        "print(flush=True)\n"
        "connection = listener.accept()[0]\n"
        "connection.recv(1)\n"
    )
    path = tmp_path / "s"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as server:
        assert server.stdout
        server.stdout.readline()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            held = HeldProcess.of_peer(sock)
            assert held.pid == server.pid
            assert held.alive
        assert await held.wait_ended(60)
        held.close()


async def test_a_pid_file_names_its_process(tmp_path: Path) -> None:
    process = Process.start(["sleep", "1000"], pid_file=tmp_path / "p.pid", log=tmp_path / "log")
    assert is_running(tmp_path / "p.pid")
    adopted = Process.adopt(tmp_path / "p.pid")
    assert adopted
    await asyncio.gather(process.kill(), adopted.wait())
    adopted.close()
    process.close()
    assert not is_running(tmp_path / "p.pid")
    assert Process.adopt(tmp_path / "p.pid") is None


@pytest.mark.parametrize("content", ["", "x", "1:", ":", "1:2:3", "-1:5", "99999999999999999999:1", "1:0"])
async def test_a_damaged_pid_file_names_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.pid").symlink_to(content or "?")
    assert not is_running(tmp_path / "p.pid")
    assert Process.adopt(tmp_path / "p.pid") is None


async def test_a_program_that_is_not_there_and_a_log_that_cannot_be(tmp_path: Path) -> None:
    before = descriptors()
    for argv, log in ((["/none"], tmp_path / "log"), (["true"], tmp_path / "none/log")):
        with pytest.raises(TargetError, match=r"/none.*: No such file"):
            Process.start(argv, pid_file=tmp_path / "p.pid", log=log)
    assert descriptors() == before
