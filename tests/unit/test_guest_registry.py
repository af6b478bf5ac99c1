"""Guests that were started: found again, or not, with processes that stand for QEMU."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from nvmuser.errors import GuestError, NotFoundError, UsageError
from nvmuser.guest.process import QemuProcess
from nvmuser.guest.registry import Registry
from nvmuser.hostfs.process import start_time


def record(root: Path, name: str, pid: int, started: int) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "qemu.log").write_text("$ qemu\nqemu: it broke\n")
    fields = {"name": name, "pid": pid, "started": started, "cpus": 1, "memory": 1 << 30, "sockets": ["/s"]}
    (root / name / "guest.json").write_text(json.dumps(fields))


def test_a_recycled_pid_is_not_our_guest(tmp_path: Path) -> None:
    record(tmp_path, "mine", os.getpid(), start_time(os.getpid()))
    record(tmp_path, "other", os.getpid(), start_time(os.getpid()) - 1)
    assert {found.name: found.running for found in Registry(tmp_path).list()} == {"mine": True, "other": False}


async def test_an_ended_guest_is_said_to_be_one_and_removed_by_stop(tmp_path: Path) -> None:
    record(tmp_path, "old", os.getpid(), 1)
    registry = Registry(tmp_path)
    with pytest.raises(GuestError, match=r"does not run any more: see .*qemu\.log"):
        async with registry.agent("old"):
            pass
    assert await registry.stop("old") is True
    assert registry.list() == []
    with pytest.raises(NotFoundError, match="no guest 'old'"):
        await registry.stop("old")


async def test_a_process_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as sleep:
        record(tmp_path, "deaf", sleep.pid, start_time(sleep.pid))
        assert await Registry(tmp_path).stop("deaf") is False
        assert sleep.wait(5) == -9
    assert not (tmp_path / "deaf").exists()


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 64, ".hidden", "A"])
def test_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="guest name"):
        Registry(tmp_path).runtime(name)


async def test_what_a_process_said_before_it_ended(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo qemu: warning: odd; echo qemu: broke; exit 1"]
    process = QemuProcess.start(argv, tmp_path / "log", (), foreground=True)
    assert await process.wait_ended(10)
    assert process.why() == "qemu: broke"
    process.close()
    silent = QemuProcess.start(["sh", "-c", "exit 3"], tmp_path / "log2", (), foreground=False)
    assert await silent.wait_ended(10)
    assert silent.why() == "exit status 3"
    silent.close()


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="No such file"):
        QemuProcess.start([str(tmp_path / "none")], tmp_path / "log", (), foreground=False)


async def test_a_second_session_says_for_whose_end_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        """An agent that has nothing to do."""

        async def __aenter__(self) -> Silent:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def wait_boot(self, *, timeout: float) -> None: ...  # noqa: ASYNC109 (as the real one)

    async def connect(path: Path) -> Silent:
        return Silent()

    monkeypatch.setattr("nvmuser.guest.registry.Agent.connect", connect)
    record(tmp_path, "box", os.getpid(), start_time(os.getpid()))
    registry, waited = Registry(tmp_path), list[int]()
    waiting = asyncio.Event()

    def on_wait(pid: int) -> None:
        waited.append(pid)
        waiting.set()

    async def second() -> None:
        async with registry.agent("box", on_wait=on_wait):
            assert ended, "it had its turn while the first one was not over"

    ended = False
    async with registry.agent("box", on_wait=on_wait):
        task = asyncio.create_task(second())
        await waiting.wait()
        ended = True
    await task
    assert waited == [os.getpid()]
