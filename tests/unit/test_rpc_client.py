"""The client against scripted servers, and against our own server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nvmuser.errors import ConflictError, RpcConnectionError, RpcServerError, RpcTimeoutError, UsageError
from nvmuser.rpc import Client, Server
from nvmuser.rpc.framing import ObjectSplitter
from nvmuser.rpc.server import Handler

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(path: Path, script: Script) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield


async def read_requests(reader: asyncio.StreamReader, count: int) -> list[dict[str, Any]]:
    splitter, found = ObjectSplitter(1 << 20), list[dict[str, Any]]()
    while len(found) < count:
        found += map(json.loads, splitter.feed(await reader.read(1 << 16)))
    return found


def reply(request: dict[str, Any], result: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}, ensure_ascii=False).encode()


async def test_replies_in_any_order_byte_by_byte(tmp_path: Path) -> None:
    async def reversed_replies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for request in reversed(await read_requests(reader, 3)):
            for byte in reply(request, {"é": request["params"]}):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)

    async with scripted(tmp_path / "s", reversed_replies), await Client.connect(tmp_path / "s") as client:
        results = await asyncio.gather(*(client.call("m", {"n": n}) for n in range(3)))
    assert results == [{"é": {"n": n}} for n in range(3)]


async def test_window_bounds_calls_in_flight(tmp_path: Path) -> None:
    seen: list[int] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        splitter = ObjectSplitter(1 << 20)
        for _ in range(4):
            batch = list(map(json.loads, splitter.feed(await reader.read(1 << 16))))
            seen.append(len(batch))
            writer.write(b"".join(reply(one, None) for one in batch))

    async with scripted(tmp_path / "s", count), await Client.connect(tmp_path / "s", window=2) as client:
        await asyncio.gather(*(client.call("m") for _ in range(6)))
    assert max(seen) <= 2


async def test_late_reply_is_dropped(tmp_path: Path) -> None:
    taken, go_on = asyncio.Event(), asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (first,) = await read_requests(reader, 1)
        taken.set()
        await go_on.wait()
        writer.write(reply(first, "late"))
        (second,) = await read_requests(reader, 1)
        writer.write(reply(second, "in time"))

    async with scripted(tmp_path / "s", late), await Client.connect(tmp_path / "s") as client:
        with pytest.raises(RpcTimeoutError, match="slow: no reply"):
            await client.call("slow", timeout=0.01)
        await taken.wait()
        go_on.set()
        assert await client.call("next") == "in time"


async def test_cancellation_frees_the_slot(tmp_path: Path) -> None:
    sent = asyncio.Event()

    async def last_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_requests(reader, 1)
        sent.set()
        writer.write(reply((await read_requests(reader, 1))[0], "last"))

    async with (
        scripted(tmp_path / "s", last_only),
        await Client.connect(tmp_path / "s", window=1) as client,
    ):
        first = asyncio.create_task(client.call("first"))
        await sent.wait()
        waiting = asyncio.create_task(client.call("waiting"))
        await asyncio.sleep(0)
        for task in (waiting, first):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await client.call("last") == "last"


@pytest.mark.parametrize("answer", [b"", b"oops", b'{"id":', b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700}}'])
async def test_a_broken_stream_ends_every_call(tmp_path: Path, answer: bytes) -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_requests(reader, 2)
        writer.write(answer)

    async with scripted(tmp_path / "s", broken), await Client.connect(tmp_path / "s") as client:
        results = await asyncio.gather(client.call("a"), client.call("b"), return_exceptions=True)
        assert [type(one) for one in results] == [RpcConnectionError, RpcConnectionError]
        with pytest.raises(RpcConnectionError):
            await client.call("c")
        assert client.closed


async def test_server_error_is_typed(tmp_path: Path) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (request,) = await read_requests(reader, 1)
        error = {"code": -17, "message": "File exists"}
        writer.write(json.dumps({"id": request["id"], "error": error}).encode())

    async with scripted(tmp_path / "s", refuse), await Client.connect(tmp_path / "s") as client:
        with pytest.raises(RpcServerError) as caught:
            await client.call("make", {"name": "x"})
    assert (caught.value.code, caught.value.method, caught.value.params) == (-17, "make", {"name": "x"})


async def test_refusals_before_sending(tmp_path: Path) -> None:
    with pytest.raises(RpcConnectionError, match="No such file"):
        await Client.connect(tmp_path / "nobody")
    with pytest.raises(UsageError, match="longer than 107"):
        await Client.connect(tmp_path / ("x" * 120))

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""

    async with scripted(tmp_path / "s", never), await Client.connect(tmp_path / "s") as client:
        with pytest.raises(UsageError, match="the server takes 32767"):
            await client.call("big", {"x": "y" * 40000})


async def test_our_server_round_trip(tmp_path: Path) -> None:
    async def add(a: int, b: int = 1) -> int:
        return a + b

    async def refuse() -> None:
        raise ConflictError("volume a: attached to controller c")

    async def spdk() -> None:
        raise RpcServerError("bdev_x", {"p": 1}, -5, "Input/output error")

    async def defect() -> None:
        raise KeyError("oh")

    methods: dict[str, Handler] = {"add": add, "refuse": refuse, "spdk": spdk, "defect": defect}
    async with Server(tmp_path / "s", methods), await Client.connect(tmp_path / "s") as client:
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        assert await client.call("add", {"a": 1, "b": 2}) == 3
        with pytest.raises(ConflictError, match=r"^volume a: attached to controller c$"):
            await client.call("refuse")
        with pytest.raises(RpcServerError, match="Input/output error") as caught:
            await client.call("spdk")
        assert (caught.value.method, caught.value.code) == ("bdev_x", -5)
        with pytest.raises(RpcServerError, match="KeyError"):
            await client.call("defect")
        with pytest.raises(RpcServerError, match="Method not found"):
            await client.call("nothing")
        with pytest.raises(RpcServerError, match="Invalid parameters"):
            await client.call("add", {"c": 1})
    assert not (tmp_path / "s").exists()


async def test_server_answers_out_of_order_and_finishes_on_leaving(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def wait() -> str:
        await release.wait()
        return "done"

    async def go() -> None:
        release.set()

    async with Server(tmp_path / "s", {"wait": wait, "go": go}):
        client = await Client.connect(tmp_path / "s")
        waiting = asyncio.create_task(client.call("wait"))
        await asyncio.sleep(0.01)
        await client.call("go")
    assert await waiting == "done"
    await client.aclose()


async def test_server_refuses_a_living_socket_and_replaces_a_stale_one(tmp_path: Path) -> None:
    async def hello() -> str:
        return "hello"

    async with Server(tmp_path / "s", {"hello": hello}):
        with pytest.raises(ConflictError, match="somebody answers"):
            await Server(tmp_path / "s", {}).__aenter__()
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="not a socket"):
        await Server(tmp_path / "file", {}).__aenter__()


async def test_posted_calls_end_as_others_do(tmp_path: Path) -> None:
    async def add(a: int, b: int) -> int:
        return a + b

    async with Server(tmp_path / "s", {"add": add}):
        client = await Client.connect(tmp_path / "s", max_request=200)
        sums = [client.post("add", {"a": n, "b": 1}) for n in range(300)]
        assert await asyncio.gather(*sums) == list(range(1, 301))
        with pytest.raises(RpcServerError, match="Method not found"):
            await client.post("nothing")
        with pytest.raises(UsageError, match="the server takes 200"):
            await client.post("add", {"a": "x" * 200})
        late = client.post("add", {"a": 1, "b": 1})
        await client.aclose()
        with pytest.raises(RpcConnectionError):
            await late
        with pytest.raises(RpcConnectionError):
            await client.post("add", {"a": 1, "b": 1})
