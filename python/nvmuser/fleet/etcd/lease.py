"""A lease that is kept alive, and granted again where it was lost: by it others see that this process lives.

A restarted etcd grants each lease its whole time again, so that leases end late, never early.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio

from nvmuser.errors import FleetError
from nvmuser.fleet.etcd.client import Client
from nvmuser.fleet.etcd.connection import GRANT, KEEP_ALIVE, REVOKE
from nvmuser.fleet.etcd.messages import CLASSES

_RETRY_S = 0.5

log = logging.getLogger(__name__)


async def grant(client: Client, seconds: int) -> int:
    """A new lease: its number.

    :raises FleetError: etcd does not answer.
    """
    # Granted twice, one ends by itself.
    return int((await client.connection.read(GRANT, CLASSES["LeaseGrantRequest"](TTL=seconds))).ID)


async def revoke(client: Client, number: int) -> None:
    """End a lease, and delete its keys.

    :raises FleetError: etcd does not answer, or there is none.
    """
    await client.connection.read(REVOKE, CLASSES["LeaseRevokeRequest"](ID=number))


async def keep(client: Client, seconds: int, granted: Callable[[int], Awaitable[None]]) -> None:
    """Have a lease for ever.

    :param granted: is called with the number of each new lease, and writes the keys that go with it.
    """
    while True:
        try:
            number = await grant(client, seconds)
            await granted(number)
            while await _renewed(client, number):  # noqa: ASYNC110 (time is what it is about)
                await asyncio.sleep(seconds / 3)
        except FleetError as error:
            log.debug("lease: %s", error)
        await asyncio.sleep(_RETRY_S)


async def _renewed(client: Client, number: int) -> bool:
    """False where the lease has ended. While no member answers, nobody knows: it is tried again.

    :raises FleetError: etcd does not answer.
    """
    call = client.connection.stream(KEEP_ALIVE)
    try:
        async with asyncio.timeout(2):
            await call.write(CLASSES["LeaseKeepAliveRequest"](ID=number))
            reply = await call.read()
        return reply is not grpc.aio.EOF and reply.TTL > 0
    except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError):
        client.connection.next_member()
        await asyncio.sleep(_RETRY_S)
        return True
    finally:
        call.cancel()


async def renew(client: Client, number: int) -> bool:
    """Keep a lease alive once. False where it has ended.

    :raises FleetError: etcd does not answer.
    """
    return await _renewed(client, number)
