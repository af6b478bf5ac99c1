"""A JSON-RPC 2.0 server on a UNIX socket, framed as SPDK's own, so that one client serves both.

Owns the socket's file and the connections. It does not decide what a method means, nor run two requests in
any order: each request is a task of its own, and what must not overlap is for the handler to ensure.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nvmuser.errors import NvmuserError, RpcServerError
from nvmuser.hostfs.sockets import listen_unix
from nvmuser.rpc.framing import FramingError, ObjectSplitter

Handler = Callable[..., Awaitable[Any]]

REQUEST_MAX = 64 * 1024 * 1024
"""Bytes of one request: a whole specification of thousands of objects travels in one."""

INVALID_PARAMS = -32602
"""The method takes other parameters: JSON-RPC 2.0's code for it."""
_PARSE_ERROR, _INVALID_REQUEST, _METHOD_NOT_FOUND, _INTERNAL_ERROR, _OURS = -32700, -32600, -32601, -32603, -32000

_FINISH_S = 5.0
"""How long leaving waits for handlers that are at work, so that the reply to "stop" still goes out."""

_log = logging.getLogger(__name__)


class Server:
    """Serves `methods` at `path` while it is entered.

    A handler gets the request's `params` as keyword arguments. It raises errors of `nvmuser.errors`; `Client`
    raises the same class again. A handler goes on when its client hangs up: half a change is worse than an
    unheard reply.
    """

    def __init__(self, path: Path, methods: Mapping[str, Handler], *, mode: int = 0o600) -> None:
        self._path = path
        self._methods = methods
        self._mode = mode
        self._server: asyncio.Server | None = None
        self._requests: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        """Listen.

        :raises ConflictError: somebody answers there already, or the path is not ours to remove.
        """
        listener = listen_unix(self._path, self._mode)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=1 << 20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening, let requests at work finish for a while, hang up, remove the socket."""
        assert self._server is not None
        self._server.close()
        current = asyncio.current_task()
        at_work = {task for task in self._requests if task is not current}
        if at_work:
            _, late = await asyncio.wait(at_work, timeout=_FINISH_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for writer in list(self._writers):
            writer.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        splitter = ObjectSplitter(REQUEST_MAX)
        mine: set[asyncio.Task[None]] = set()
        try:
            while chunk := await reader.read(1 << 20):
                for request in splitter.feed(chunk):
                    task = asyncio.create_task(self._answer(request, writer))
                    for tasks in (mine, self._requests):
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
            # The client may have shut down its sending side only: what it asked is still answered.
            await asyncio.gather(*mine, return_exceptions=True)
        except FramingError as error:
            await _send(writer, None, error=_error(_PARSE_ERROR, str(error)))
        except (OSError, asyncio.CancelledError):
            pass  # hung up, or the server is leaving; either way this connection is over
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            message = json.loads(request)
        except ValueError as error:
            await _send(writer, None, error=_error(_PARSE_ERROR, str(error)))
            return
        call_id, method = message.get("id"), message.get("method")
        params = message.get("params", {})
        handler = self._methods.get(method) if isinstance(method, str) else None
        if not isinstance(method, str) or not isinstance(params, dict):
            reason = "not a JSON-RPC 2.0 request with named parameters"
            await _send(writer, call_id, error=_error(_INVALID_REQUEST, reason))
        elif handler is None:
            await _send(writer, call_id, error=_error(_METHOD_NOT_FOUND, f"Method not found: {method}"))
        else:
            await self._run(handler, call_id, params, writer)

    async def _run(self, handler: Handler, call_id: Any, params: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            inspect.signature(handler).bind(**params)
        except TypeError as error:
            await _send(writer, call_id, error=_error(INVALID_PARAMS, f"Invalid parameters: {error}"))
            return
        work = asyncio.ensure_future(handler(**params))
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            work.cancel()
            raise
        if failure := work.exception():
            await _send(writer, call_id, error=_describe(failure))
        else:
            await _send(writer, call_id, result=work.result())


def _describe(error: BaseException) -> dict[str, Any]:
    """The error object that lets `Client` raise the same class again."""
    if isinstance(error, RpcServerError):
        data = {"method": error.method, "params": error.params, "code": error.code, "message": error.message}
        return _error(_OURS, str(error), {"class": "RpcServerError", **data})
    if isinstance(error, NvmuserError):
        return _error(_OURS, str(error), {"class": _known_class(error)})
    # A defect in a handler must not leave its client waiting; the log has where it was.
    _log.error("a method failed", exc_info=error)
    return _error(_INTERNAL_ERROR, f"{type(error).__name__}: {error}")


def _known_class(error: NvmuserError) -> str:
    """The nearest class that the other side knows: one that is defined in `nvmuser.errors`."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == NvmuserError.__module__)


def _error(code: int, message: str, data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"code": code, "message": message} | ({"data": data} if data else {})


async def _send(writer: asyncio.StreamWriter, call_id: Any, **content: Any) -> None:
    if writer.is_closing():
        return
    message = json.dumps({"jsonrpc": "2.0", "id": call_id, **content}, separators=(",", ":")).encode() + b"\n"
    with contextlib.suppress(OSError):  # the client hung up; what was done is done
        writer.write(message)
        await writer.drain()
