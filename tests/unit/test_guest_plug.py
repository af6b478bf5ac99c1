"""What of plugging can be told without a QEMU: who may reach a socket, and a QMP socket that is none."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from nvmuser.errors import GuestError
from nvmuser.guest import plug

NOBODY = 65534


@pytest.mark.skipif(os.geteuid() == NOBODY, reason="this test's other user is nobody")
def test_who_may_reach_a_socket(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    path = top / "cntrl"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        top.chmod(0o700)
        # Whatever is above is not ours to open; the first closed directory is the one that is named.
        assert plug._closed_to(path, NOBODY) in (top, *tmp_path.parents, tmp_path)
        assert plug._closed_to(path, os.geteuid()) is None
        assert plug._closed_to(path, 0) is None
        path.chmod(0o000)
        if os.geteuid() != 0:
            assert plug._closed_to(path, os.geteuid()) == path


async def test_no_qmp_there(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="no QMP there"):
        async with plug.connected(tmp_path / "none"):
            pass


async def test_a_monitor_that_somebody_else_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plug, "_CONNECT_DEADLINE", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(silent, tmp_path / "qmp"):
        with pytest.raises(GuestError, match="serves one client"):
            async with plug.connected(tmp_path / "qmp"):
                pass
