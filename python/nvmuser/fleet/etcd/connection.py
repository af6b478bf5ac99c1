"""Calls to one of several etcd members: the next one is taken when one does not answer.

Owns the channels, and what becomes of gRPC's errors. A read goes on with the next member by itself; what changes
something is sent once, and who sent it must read back what became of it (`nvmuser.fleet.etcd.client`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from nvmuser.errors import FleetError, FleetUnavailable, UnknownOutcome
from nvmuser.fleet.etcd.messages import CLASSES
from nvmuser.fleet.etcd.tls import Address, Tls, why_not

DEADLINE_S = 1.5
"""Of a call, all members together: with what is said about it, a change ends in less than 3 s."""
_ATTEMPT_S = 0.6
_PAUSE_S = 0.1
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),  # etcd hangs up on clients that ask more often than each 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 256 << 20),
)
HAS_LEADER = (("hasleader", "true"),)
"""Metadata: a member that is cut off from the others refuses, instead of showing what was there once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """One of etcd's: its path, and its messages by their names."""

    path: str
    request: str
    reply: str


RANGE = Method("/etcdserverpb.KV/Range", "RangeRequest", "RangeResponse")
TXN = Method("/etcdserverpb.KV/Txn", "TxnRequest", "TxnResponse")
COMPACT = Method("/etcdserverpb.KV/Compact", "CompactionRequest", "CompactionResponse")
WATCH = Method("/etcdserverpb.Watch/Watch", "WatchRequest", "WatchResponse")
GRANT = Method("/etcdserverpb.Lease/LeaseGrant", "LeaseGrantRequest", "LeaseGrantResponse")
REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", "LeaseRevokeRequest", "LeaseRevokeResponse")
KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", "LeaseKeepAliveRequest", "LeaseKeepAliveResponse")
STATUS = Method("/etcdserverpb.Maintenance/Status", "StatusRequest", "StatusResponse")


class Connection:
    """A context manager, used in one event loop.

    :param deadline: seconds of a call, all members together.
    """

    def __init__(self, endpoints: Sequence[str], tls: Tls | None = None, deadline: float = DEADLINE_S) -> None:
        self._deadline = deadline
        self._addresses = [Address.parse(endpoint) for endpoint in endpoints]
        self._tls = tls
        self._credentials = tls.credentials() if tls else None
        self._channels: dict[Address, grpc.aio.Channel] = {}
        self._current = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """May be called again."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    @property
    def address(self) -> Address:
        """The member that is asked now."""
        return self._addresses[self._current % len(self._addresses)]

    def next_member(self) -> None:
        """Ask the next one from now on."""
        self._current = (self._current + 1) % len(self._addresses)

    def _channel(self) -> grpc.aio.Channel:
        address = self.address
        if address not in self._channels:
            if address.secure:
                credentials = self._credentials or grpc.ssl_channel_credentials()
                channel = grpc.aio.secure_channel(str(address), credentials, options=_OPTIONS)
            else:
                channel = grpc.aio.insecure_channel(str(address), options=_OPTIONS)
            self._channels[address] = channel
        return self._channels[address]

    def _stub(self, kind: str, method: Method) -> Any:
        make = getattr(self._channel(), kind)
        request, reply = CLASSES[method.request], CLASSES[method.reply]
        return make(method.path, request_serializer=request.SerializeToString, response_deserializer=reply.FromString)

    def stream(self, method: Method) -> Any:
        """A stream in both directions with the present member."""
        return self._stub("stream_stream", method)(metadata=HAS_LEADER)

    async def read(self, method: Method, request: Any) -> Any:
        """Call what may be called again: all members are tried, until the deadline.

        :raises FleetUnavailable: none answers. :raises FleetError: etcd refuses.
        """
        end, hopeless = time.monotonic() + self._deadline, 0
        for attempt in itertools.count(1):
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                return await self._stub("unary_unary", method)(request, timeout=min(left, _ATTEMPT_S))
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AWAY:
                    raise _refused(error) from error
                log.debug("%s: %s", self.address, error.details())
                self.next_member()
                hopeless += "handshake" in (error.details() or "")
            if hopeless == len(self._addresses):
                break
            if attempt % len(self._addresses) == 0:
                await asyncio.sleep(min(_PAUSE_S, max(0.0, end - time.monotonic())))
        raise FleetUnavailable(await self.explain())

    async def write(self, method: Method, request: Any) -> Any:
        """Call what must not be called again.

        :raises UnknownOutcome: it may have been carried out. :raises FleetError: etcd refuses: it was not.
        """
        try:
            return await self._stub("unary_unary", method)(request, timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            if error.code() in _AWAY or error.code() is grpc.StatusCode.UNKNOWN:
                member = self.address
                self.next_member()
                raise UnknownOutcome(f"etcd {member} may have carried it out: {error.details()}") from error
            raise _refused(error) from error

    async def explain(self) -> str:
        """Why no member answers, in words."""
        reasons = await asyncio.gather(*(why_not(address, self._tls) for address in self._addresses))
        said = [
            f"{address}: {reason or 'connects, and does not answer'}"
            for address, reason in zip(self._addresses, reasons, strict=True)
        ]
        return f"etcd is not to be had ({'; '.join(said)}): nothing can be changed until it is; what there is goes on"


def _refused(error: grpc.aio.AioRpcError) -> FleetError:
    return FleetError(f"etcd refuses: {error.details()}")
