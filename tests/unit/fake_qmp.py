"""A QEMU as seen over QMP, for what no QEMU here does: to survive an unplug, or a guest that refuses one.

What it answers has the form that `tests/guest/test_plug.py` sees of the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

_GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 0}, "package": ""}, "capabilities": []}}


class FakeQemu:
    """:ivar asked: the commands that change something, in order."""

    def __init__(self, version: tuple[int, int, int], *, ports: int = 2) -> None:
        self.version = version
        self.devices = {f"port{number}": "pcie-root-port" for number in range(ports)}
        self.buses: dict[str, str] = {}
        self.refuses: set[str] = set()
        """Devices that it does not take."""
        self.clings_to: set[str] = set()
        """Devices that the guest does not let go of."""
        self.nodes: set[str] = set()
        """Names of block nodes."""
        self.asked: list[tuple[str, str]] = []

    @contextlib.asynccontextmanager
    async def client(self, path: Path) -> AsyncIterator[QMPClient]:
        async with await asyncio.start_unix_server(self._serve, path):
            client = QMPClient("test")
            await client.connect(str(path))
            yield client
            await client.disconnect()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(message: dict[str, Any]) -> None:
            writer.write(json.dumps(message).encode() + b"\n")

        send(_GREETING)
        async for request in _requests(reader):
            answer, *events = self._answer(request["execute"], request.get("arguments", {}))
            for event in events:
                send(event)
            send(answer | {key: request[key] for key in ("id",) if key in request})
        writer.close()

    def _answer(self, command: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        match command:
            case "query-version":
                numbers = dict(zip(("major", "minor", "micro"), self.version, strict=True))
                return [{"return": {"qemu": numbers, "package": ""}}]
            case "qom-list":
                there = self.devices if arguments["path"] == "/machine/peripheral" else {}
                return [{"return": [{"name": name, "type": f"child<{kind}>"} for name, kind in there.items()]}]
            case "query-memdev":
                return [{"return": [{"id": "mem", "size": 1 << 30, "share": True, "prealloc": False}]}]
            case "query-pci":
                taken = [{"qdev_id": port, "pci_bridge": {"devices": [{}]}} for port in self.buses.values()]
                return [{"return": [{"bus": 0, "devices": taken}]}]
            case "query-named-block-nodes":
                return [{"return": [{"node-name": name} for name in sorted(self.nodes)]}]
            case "blockdev-add":
                self.nodes.add(arguments["node-name"])
            case "blockdev-del":
                self.nodes.remove(arguments["node-name"])
            case "device_add":
                return self._add(arguments)
            case "device_del":
                return self._del(arguments["id"])
        return [{"return": {}}]

    def _add(self, device: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(("device_add", device["id"]))
        if device["id"] in self.refuses:
            return [{"error": {"class": "GenericError", "desc": "no"}}]
        self.devices[device["id"]] = device["driver"]
        self.buses[device["id"]] = device["bus"]
        return [{"return": {}}]

    def _del(self, name: str) -> list[dict[str, Any]]:
        self.asked.append(("device_del", name))
        clings = name in self.clings_to
        if not clings:
            del self.devices[name], self.buses[name]
        event = "DEVICE_UNPLUG_GUEST_ERROR" if clings else "DEVICE_DELETED"
        data = {"device": name, "path": f"/machine/peripheral/{name}"}
        # Before the reply: whoever begins to listen only then has missed it.
        return [{"return": {}}, {"event": event, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}}]


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The client puts nothing between them."""
    text = ""
    while data := await reader.read(65536):
        text += data.decode()
        with contextlib.suppress(json.JSONDecodeError):
            while text:
                request, end = json.JSONDecoder().raw_decode(text)
                text = text[end:].lstrip()
                yield request
