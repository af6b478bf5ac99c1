"""Sockets for guests that cannot be made: reported, and tried again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from vfio_fds import until
from vfio_supervisor import endpoint_process

from nvmuser.reconcile.engine import Engine
from nvmuser.supervisor import backoff
from nvmuser.supervisor.doors import Doors
from nvmuser.supervisor.endpoint import EndpointProcess
from nvmuser.supervisor.history import History


class FakeEndpoint:
    """Answers with `answers`, one after the other, and with the last of them from then on."""

    def __init__(self, *answers: dict[str, str]) -> None:
        self._answers = list(answers)
        self.served: list[list[str]] = []

    async def serve(self, controllers: list[str]) -> dict[str, str]:
        self.served.append(controllers)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class FakeEngine:
    opened = 0

    def controllers(self) -> list[str]:
        return ["a", "b"]

    def open_sockets(self) -> None:
        self.opened += 1


def doors(*answers: dict[str, str]) -> tuple[Doors, FakeEndpoint, History]:
    endpoint, history = FakeEndpoint(*answers), History()
    return Doors(cast(EndpointProcess, endpoint), cast(Engine, FakeEngine()), history), endpoint, history


def texts(history: History) -> list[str]:
    return [trouble.text for trouble in history.troubles]


async def test_what_has_no_socket_is_reported_until_it_has() -> None:
    opened, _, history = doors({"a": "No space left on device"}, {})
    await opened.open()
    assert texts(history) == ["no guest can connect to controller a, without a socket: No space left on device"]
    await opened.open()
    assert texts(history) == []


async def test_many_are_one_line() -> None:
    opened, _, history = doors({f"c{number}": "Full" for number in range(7)} | {"x": "Denied"})
    await opened.open()
    assert texts(history) == [
        "no guest can connect to controllers c0, c1, c2, c3, c4 and 2 more, without a socket: Full",
        "no guest can connect to controller x, without a socket: Denied",
    ]


async def test_it_is_tried_until_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_FIRST", 0.0)
    opened, endpoint, history = doors({"a": "Full"}, {"a": "Full"}, {"a": "Full"}, {})
    trying = asyncio.ensure_future(opened.keep_open())
    await opened.open()
    await until(lambda: not history.troubles)
    assert endpoint.served == [["a", "b"]] * 4
    trying.cancel()


async def test_the_endpoint_names_what_it_could_not_make(tmp_path: Path) -> None:
    (tmp_path / "guests").mkdir()
    (tmp_path / "guests/a").touch()
    async with endpoint_process(tmp_path) as (_, supervisor):
        supervisor.begin(["a", "b"])

        async def answer(count: int) -> Any:
            await until(lambda: len(supervisor.heard("served")) == count)
            return supervisor.heard("served")[-1]["failed"]

        assert await answer(1) == {"a": "File exists"}
        assert (tmp_path / "guests/b/cntrl").is_socket()
        (tmp_path / "guests/a").unlink()
        supervisor.send("serve", controllers=["a", "b"])
        assert await answer(2) == {}
        assert (tmp_path / "guests/a/cntrl").is_socket()
