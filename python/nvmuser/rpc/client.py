"""The JSON-RPC client: pipelined on one UNIX-socket connection.

Owns the connection, the ids, and the deadlines. It does not know any method, and it does not reconnect: a
call whose connection ended may have been carried out, and only the caller can know whether to look or to
repeat.

SPDK's server polls its sockets every 4 ms and answers one poll later, so calls made one after the other take
8 ms each; with many in flight they take a fraction of that. Replies come in any order and are matched by id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nvmuser import errors
from nvmuser.errors import NvmuserError, RpcConnectionError, RpcServerError, RpcTimeoutError, UsageError
from nvmuser.hostfs.permissions import denied
from nvmuser.hostfs.process import HeldProcess
from nvmuser.paths import SUN_PATH_MAX
from nvmuser.rpc.framing import ObjectSplitter

SPDK_REQUEST_MAX = 32 * 1024 - 1
"""Bytes of one request: with SPDK_JSONRPC_RECV_BUF_SIZE full, its server takes the connection for closed."""

REPLY_MAX = 64 * 1024 * 1024
"""Bytes of one reply. SPDK's own limit is SPDK_JSONRPC_SEND_BUF_SIZE_MAX, 32 MiB."""

WINDOW = 256
"""Calls in flight: twice as many of ours as fit into the 32 KiB that the server takes at each poll, so that the next
are there when it looks again."""


_compact = json.JSONEncoder(separators=(",", ":")).encode


class _Default:
    """Type of `DEFAULT`, so that None can mean "no deadline"."""


DEFAULT = _Default()


class Client:
    """One connection. Use as an async context manager, from any number of tasks of one event loop at once."""

    def __init__(
        self,
        path: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        window: int,
        timeout: float,
        max_request: int,
    ) -> None:
        self.path = path
        self._reader = reader
        self._writer = writer
        self._slots = asyncio.Semaphore(window)
        self._timeout = timeout
        self._max_request = max_request
        self._next_id = 0
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._posted: dict[int, tuple[asyncio.Future[Any], str, Mapping[str, Any] | None]] = {}
        self._outbox = bytearray()
        self._failure: RpcConnectionError | None = None
        self._receiver = asyncio.create_task(self._receive(), name=f"rpc-client {path}")

    @classmethod
    async def connect(
        cls,
        path: Path,
        *,
        window: int = WINDOW,
        timeout: float = 10.0,  # noqa: ASYNC109 (also the default of the calls)
        max_request: int = SPDK_REQUEST_MAX,
    ) -> Self:
        """Connect once.

        :param window: calls in flight; further ones wait for their turn.
        :param timeout: seconds to connect, and the default deadline of each call.
        :param max_request: bytes of one request that the server takes.
        :raises RpcConnectionError: nobody answers at `path`.
        :raises AccessError: this user may not connect to it.
        """
        if len(os.fsencode(path)) > SUN_PATH_MAX:
            raise UsageError(f"{path}: longer than {SUN_PATH_MAX} bytes, the limit of a UNIX socket's path")
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        except TimeoutError:
            raise RpcConnectionError(f"{path}: no connection within {timeout:g} s") from None
        except PermissionError as error:
            raise denied(path) from error
        except OSError as error:
            raise RpcConnectionError(f"{path}: {error.strerror or error}") from error
        return cls(path, reader, writer, window=window, timeout=timeout, max_request=max_request)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def peer_pid(self) -> int | None:
        """The process that serves the socket, as the kernel knows it; None when the connection is closed."""
        peer = self._writer.get_extra_info("socket")
        if peer is None or self.closed:
            return None
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        return int(pid)

    def hold_peer(self) -> HeldProcess:
        """Hold the process that serves the socket.

        :raises ProcessLookupError: it has ended, or is in another PID namespace.
        """
        peer = self._writer.get_extra_info("socket")
        if peer is None or self.closed:
            raise ProcessLookupError("the connection is closed")
        return HeldProcess.of_peer(peer)

    @property
    def closed(self) -> bool:
        """True once the connection is of no further use."""
        return self._failure is not None

    async def aclose(self) -> None:
        """Close the connection. Calls in flight end with RpcConnectionError. May be called again."""
        self._fail(RpcConnectionError(f"{self.path}: connection closed"))
        self._receiver.cancel()
        await asyncio.wait([self._receiver])
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout: float | _Default | None = DEFAULT,  # noqa: ASYNC109 (it begins when the request is sent)
    ) -> Any:
        """Call `method`, return its result.

        :param timeout: seconds from when the request is sent (waiting for a slot in the window is not the
            server's delay); None for no deadline.
        :raises RpcServerError: the server refused; or the error of `nvmuser.errors` that our own server names.
        :raises RpcTimeoutError: no reply in time. The call may still be carried out; its late reply is
            dropped.
        :raises RpcConnectionError: the connection ended. The call may have been carried out.
        :raises UsageError: the request is larger than the server takes; nothing was sent.
        """
        limit = self._timeout if isinstance(timeout, _Default) else timeout
        async with self._slots:
            if self._failure:
                raise RpcConnectionError(str(self._failure))
            self._next_id += 1
            call_id = self._next_id
            request = self._encode(call_id, method, params)
            reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
            self._pending[call_id] = reply
            try:
                async with asyncio.timeout(limit):
                    self._writer.write(request)
                    await self._writer.drain()
                    message = await reply
            except TimeoutError:
                raise RpcTimeoutError(f"{method}: no reply from {self.path} within {limit:g} s") from None
            except OSError as error:
                raise RpcConnectionError(f"{self.path}: {error.strerror or error}") from error
            finally:
                self._pending.pop(call_id, None)
                reply.cancel()  # no "exception was never retrieved" for a reply that nobody awaits any more
        if "error" in message:
            raise _typed(method, params, message["error"])
        return message.get("result")

    def post(self, method: str, params: Mapping[str, Any] | None = None) -> asyncio.Future[Any]:
        """Send at once, outside the window and without a deadline: for who keeps both itself, over thousands
        of calls.

        The future ends as `call` does.
        """
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._failure:
            result.set_exception(RpcConnectionError(str(self._failure)))
            return result
        self._next_id += 1
        call_id = self._next_id
        try:
            request = self._encode(call_id, method, params)
        except UsageError as error:
            result.set_exception(error)
            return result
        if not self._outbox:  # what is posted in one turn of the event loop leaves in one write
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox += request
        self._posted[call_id] = (result, method, params)
        return result

    def _flush(self) -> None:
        self._writer.write(bytes(self._outbox))
        self._outbox.clear()

    def _encode(self, call_id: int, method: str, params: Mapping[str, Any] | None) -> bytes:
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": call_id, "method": method}
        if params:
            message["params"] = params
        request = _compact(message).encode()
        if len(request) > self._max_request:
            raise UsageError(f"{method}: a request of {len(request)} bytes; the server takes {self._max_request}")
        return request

    async def _receive(self) -> None:
        splitter = ObjectSplitter(REPLY_MAX)
        try:
            while chunk := await self._reader.read(1 << 20):
                for reply in splitter.feed(chunk):
                    self._dispatch(json.loads(reply))
            self._fail(RpcConnectionError(f"{self.path}: the server closed the connection"))
        except RpcConnectionError as error:
            self._fail(RpcConnectionError(f"{self.path}: {error}"))
        except OSError as error:
            self._fail(RpcConnectionError(f"{self.path}: {error.strerror or error}"))
        except ValueError as error:
            self._fail(RpcConnectionError(f"{self.path}: a reply is not JSON: {error}"))

    def _dispatch(self, message: dict[str, Any]) -> None:
        call_id = message.get("id")
        if call_id is None and "error" in message:
            # The server could not even read the id; which call that was is not known.
            raise RpcConnectionError(f"the server did not understand a request: {message['error']}")
        if posted := self._posted.pop(call_id, None) if isinstance(call_id, int) else None:
            result, method, params = posted
            if result.done():
                return
            if "error" in message:
                result.set_exception(_typed(method, params, message["error"]))
            else:
                result.set_result(message.get("result"))
            return
        reply = self._pending.get(call_id) if isinstance(call_id, int) else None
        if reply is not None and not reply.done():  # else: too late, its caller is gone
            reply.set_result(message)

    def _fail(self, error: RpcConnectionError) -> None:
        if self._failure:
            return
        self._failure = error
        for reply in (*self._pending.values(), *(posted for posted, _, _ in self._posted.values())):
            if not reply.done():
                reply.set_exception(RpcConnectionError(str(error)))
        self._posted.clear()


def _typed(method: str, params: Mapping[str, Any] | None, error: Any) -> NvmuserError:
    """The exception for an error object: our server's own class when it names one, else RpcServerError."""
    if not isinstance(error, dict):
        return RpcServerError(method, params, 0, str(error))
    code, message, data = error.get("code", 0), str(error.get("message", "")), error.get("data")
    name = data.get("class") if isinstance(data, dict) else None
    kind = getattr(errors, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, NvmuserError) and kind is not RpcServerError:
        return kind(message)
    if kind is RpcServerError and isinstance(data, dict):
        return RpcServerError(data["method"], data.get("params"), data["code"], data["message"])
    return RpcServerError(method, dict(params) if params else None, code, message)
