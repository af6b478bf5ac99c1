"""`target start --standby` on a target that runs: it is changed, and guests notice nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import click
import pytest
from click.testing import CliRunner

from nvmuser.cli.target import start
from nvmuser.errors import ConflictError, TargetError
from nvmuser.paths import StateDir
from nvmuser.rpc import Server
from nvmuser.supervisor import daemon

Run = Callable[..., click.testing.Result]


class StubSupervisor:
    """As far as this command knows one."""

    def __init__(self) -> None:
        self.asked: list[bool] = []
        self.refusal = ""

    async def stand_by(self, wanted: bool) -> None:
        if self.refusal:
            raise TargetError(self.refusal)
        self.asked.append(wanted)


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> StateDir:
    """With a short path, for the sockets in it."""
    state = StateDir(tmp_path_factory.mktemp("s"))
    state.run.mkdir()
    state.logs.mkdir()
    return state


@pytest.fixture
def supervisor(state: StateDir) -> Iterator[StubSupervisor]:
    """Serves in a thread of its own: the command has a loop of its own too."""
    stub, listening, loop, end = StubSupervisor(), threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with Server(state.control_socket, {"stand_by": stub.stand_by}):
            listening.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert listening.wait(60)
    yield stub
    loop.call_soon_threadsafe(end.set)
    thread.join()
    loop.close()


def invoke(state: StateDir, *arguments: str) -> click.testing.Result:
    return CliRunner().invoke(start, list(arguments), obj=state)


def test_it_is_changed_at_once(state: StateDir, supervisor: StubSupervisor) -> None:
    assert invoke(state, "--standby").output == "the target goes on with a standby, now and after later starts\n"
    assert "without standby" in invoke(state, "--no-standby").output
    assert supervisor.asked == [True, False]


def test_one_that_does_not_start_is_reported(state: StateDir, supervisor: StubSupervisor) -> None:
    supervisor.refusal = "the standby does not start now"
    result = invoke(state, "--standby")
    assert result.exit_code != 0
    assert "the standby does not start now" in str(result.exception)


def test_beside_other_options_nothing_is_changed(
    state: StateDir, supervisor: StubSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConflictError("a supervisor is running")

    monkeypatch.setattr(daemon, "start", refuse)
    assert isinstance(invoke(state, "--standby", "--profile", "eco").exception, ConflictError)
    assert supervisor.asked == []
