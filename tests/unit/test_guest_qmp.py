"""A QMP session whose QEMU ends: an error of ours, at a command that waits and at the next one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from qemu.qmp import Runstate

from nvmuser.errors import GuestError
from nvmuser.guest.qmp import connected

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}, "capabilities": []}}


class Qemu:
    """It answers `qmp_capabilities`, and ends at the next command, or when `end` is called."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        writer.write(json.dumps(GREETING).encode() + b"\n")
        await reader.read(4096)
        writer.write(b'{"return": {}}\n')
        await reader.read(4096)
        self.end()

    def end(self) -> None:
        assert self._writer
        self._writer.close()


async def ask(path: Path, qemu: Qemu, *, after_its_end: bool) -> None:
    async with connected(path) as qmp:
        if after_its_end:
            qemu.end()
            while qmp.runstate == Runstate.RUNNING:
                await qmp.runstate_changed()
        await qmp.execute("query-status")


@pytest.mark.parametrize("after", [False, True], ids=["waiting", "after"])
async def test_qemu_ends(tmp_path: Path, after: bool) -> None:
    qemu = Qemu()
    async with await asyncio.start_unix_server(qemu.serve, tmp_path / "qmp"):
        with pytest.raises(GuestError, match="QEMU hung up"):
            await ask(tmp_path / "qmp", qemu, after_its_end=after)
