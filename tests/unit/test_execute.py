"""Calls that wait for what this machine does beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from nvmuser.model.keys import Key
from nvmuser.reconcile.calls import Call
from nvmuser.reconcile.execute import Gate, execute
from nvmuser.rpc import Client
from nvmuser.rpc.methods import Request


class Spdk:
    """Keeps the replies."""

    def __init__(self) -> None:
        self.replies: dict[str, asyncio.Future[Any]] = {}

    def post(self, method: str, params: Mapping[str, Any]) -> asyncio.Future[Any]:
        self.replies[method] = asyncio.get_running_loop().create_future()
        return self.replies[method]


def call(method: str, *after: int) -> Call:
    return Call(Request(method, {}), Key("controller", "c"), "add", after)


async def test_a_gate_that_opens_with_the_last_reply_is_passed() -> None:
    work, spdk = asyncio.get_running_loop().create_future(), Spdk()
    gate = Gate(work, frozenset({1}))
    running = asyncio.ensure_future(
        execute(cast(Client, spdk), [call("first"), call("behind", 0)], lambda call: None, gate)
    )
    while "first" not in spdk.replies:  # noqa: ASYNC110 (a turn of the loop)
        await asyncio.sleep(0)
    # Both are done before either's callback runs, the reply's first.
    spdk.replies["first"].set_result(None)
    work.set_result(None)
    while "behind" not in spdk.replies and not running.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    spdk.replies["behind"].set_result(None)
    result = await running
    assert [done.request.method for done in result.done] == ["first", "behind"]
    assert result.skipped == []
