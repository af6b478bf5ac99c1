"""A target that is ending answers calls to the last, and must not be taken for one that refuses them."""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest

from nvmuser.errors import RpcConnectionError, RpcServerError
from nvmuser.model.desired import Desired
from nvmuser.reconcile.actual import query
from nvmuser.reconcile.partial import query_part
from nvmuser.rpc.client import Client

_INTERNAL = -32603


class Spdk:
    """Refuses everything.

    :param message: with these words.
    """

    def __init__(self, message: str, code: int = _INTERNAL) -> None:
        self._message = message
        self._code = code

    async def call(self, method: str, params: Any = None) -> Any:
        raise RpcServerError(method, params, self._code, self._message)

    @property
    def client(self) -> Client:
        return cast(Client, self)


async def test_it_is_as_if_it_had_ended() -> None:
    spdk = Spdk("Unable to find a target.")
    with pytest.raises(RpcConnectionError, match="is ending"):
        await query(spdk.client)
    with pytest.raises(RpcConnectionError, match="is ending"):
        await query_part(spdk.client, Desired())


async def test_what_refuses_is_not_ending() -> None:
    with pytest.raises(RpcServerError, match="no memory"):
        await query(Spdk("no memory", -errno.ENOMEM).client)
