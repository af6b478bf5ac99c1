"""What the supervisor says to an endpoint, and what it does not say to one of an older version."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvmf_vfio.keeper.channel import Channel
from nvmuser.errors import TargetError
from nvmuser.paths import StateDir
from nvmuser.supervisor.endpoint import EndpointProcess, check_several
from nvmuser.supervisor.process import Process


class Sent:
    """The channel, as far as this needs it."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, op: str, **fields: Any) -> None:
        self.messages.append({"op": op, **fields})


@pytest.fixture
def endpoint(tmp_path: Path) -> EndpointProcess:
    async def answer(_controller: str, _question: str) -> dict[str, Any]:
        raise AssertionError("nobody asks")

    endpoint = EndpointProcess(StateDir(tmp_path), answer)
    endpoint._process = cast(Process, SimpleNamespace(pid=4711))
    endpoint._channel = cast(Channel, Sent())
    return endpoint


def test_an_older_endpoint_is_told_from_its_hello(endpoint: EndpointProcess) -> None:
    endpoint._heard({"op": "hello", "fresh": False, "pid": 4711, "several": True}, [])
    check_several(endpoint)
    endpoint._heard({"op": "hello", "fresh": False, "pid": 4711}, [])
    with pytest.raises(TargetError, match=r"pid 4711.* one target only: end it"):
        check_several(endpoint)


def test_many_controllers_are_named_in_several_messages(endpoint: EndpointProcess) -> None:
    names = [f"c{number}" for number in range(10_000)]
    endpoint.target("gone", names)
    messages = cast(Sent, endpoint._channel).messages
    assert [message["state"] for message in messages] == ["gone"] * 3
    assert sorted(name for message in messages for name in message["controllers"]) == sorted(names)


def test_nobody_is_told_nothing(endpoint: EndpointProcess) -> None:
    """A message without a name would be of all."""
    endpoint.target("gone", ())
    assert cast(Sent, endpoint._channel).messages == []
