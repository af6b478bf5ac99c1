"""The API under requests that nobody sane would send: made up from its own document, raw bytes, slow clients. It keeps
answering, never with a 5xx of its own, and always as its document says."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from api_process import SLEEPING, serving, token
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from nvmuser.api.app import described
from nvmuser.paths import StateDir
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor.settings import Settings

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip
SCHEMA = schemathesis.openapi.from_dict(described()).exclude(path_regex="/restart$|/operations/")


pytestmark = pytest.mark.matrix


@dataclass
class Served:
    state: StateDir
    url: str
    token: str


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """Over a real target. An operator cannot name files of this machine."""
    with tempfile.TemporaryDirectory(prefix="nvmuser-") as directory, ExitStack() as stack:
        state = StateDir(Path(directory))
        daemon.start(state, SLEEPING, Settings())
        stack.callback(lambda: asyncio.run(daemon.stop(state)))
        _, (url,) = stack.enter_context(serving(state, "--listen", "127.0.0.1:0", "--rate", "100000"))
        yield Served(state, url, token(state, "operator"))


@SCHEMA.parametrize()
@settings(max_examples=8, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
def test_what_the_document_allows_and_what_it_does_not(case: Any, served: Served) -> None:
    if case.query:
        case.query.pop("watch", None)  # which goes on for ever
    headers = {"Authorization": f"Bearer {served.token}"}
    answer = case.call(base_url=served.url, headers=headers, timeout=60)
    case.validate_response(answer, checks=CHECKS, headers=headers)


HOSTILE = [
    b"", b"\r\n\r\n", b"\0" * 4096, b"GET", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET /v1/volumes HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET /v1/volumes/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\n\r\n",
    b"GET /v1/volumes/%00 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\n\r\n",
    b"GET /v1/volumes/%ff%fe HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\n\r\n",
    b"GET /v1/volumes?after=%ff&limit=%00 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\n\r\n",
    b"POST /v1/volumes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/volumes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 99999999999\r\n\r\n{",
    b"POST /v1/volumes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/spec HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\nContent-Length: 12\r\n\r\n&a [*a, *a ]",
    b"GET /v1/events?watch=true HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\nLast-Event-ID: 9e99\r\n\r\n",
    b"BREW /v1/volumes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer TOKEN\r\n\r\n",
]  # fmt: skip


async def test_ten_thousand_hostile_requests_and_slow_clients(served: Served) -> None:
    """Those that never end their request hold nobody up, and are hung up on."""
    chance = random.Random(1)
    host, port = served.url.removeprefix("http://").split(":")
    seen: dict[bytes, int] = {}

    async def hostile() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        text = chance.choice(HOSTILE).replace(b"TOKEN", served.token.encode())
        if chance.random() < 0.3:
            spoiled = bytearray(text or b"x")
            spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
            text = bytes(spoiled)
        writer.write(text)
        try:
            writer.write_eof()
            status = (await asyncio.wait_for(reader.read(64), 30))[9:12]
            seen[status] = seen.get(status, 0) + 1
        except (OSError, TimeoutError):
            pass
        finally:
            writer.close()

    slow = [await asyncio.open_connection(host, int(port)) for _ in range(50)]
    for _, writer in slow:
        writer.write(b"GET /v1/volumes HTTP/1.1\r\nHo")
    began = time.monotonic()
    for _ in range(200):
        await asyncio.gather(*(hostile() for _ in range(50)), return_exceptions=True)
    assert not {status for status in seen if status.startswith(b"5")}, seen
    async with httpx.AsyncClient(base_url=served.url, headers={"Authorization": f"Bearer {served.token}"}) as client:
        assert (await client.get("/v1/principal")).status_code == 200
        assert (await client.get("/v1/status")).json()["objects"]["drifted"] == []
    for reader, writer in slow:
        # Hung up on, or answered that this is no request, once its time is over.
        await asyncio.wait_for(reader.read(), max(1.0, 60 - (time.monotonic() - began)))
        writer.close()
    assert control.live_processes(served.state) == ["endpoint", "target"]
