"""`nvmuser apply` of a file that it has seen before, on a supervisor that answers as if all were right."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nvmuser.cli.main import cli
from nvmuser.model import spec
from nvmuser.model.desired import Entry
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.outcome import Outcome
from nvmuser.rpc import Server
from nvmuser.store import Store

SPEC = "version: 1\nvolumes: [{name: a, backend: malloc, size: 64M, volatile: true}]\n"


class Host:
    """A state directory, its supervisor's answers, and how often a specification was read."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = StateDir(root)
        self.file = root / "spec.yaml"
        self.file.write_text(SPEC)
        self.read = self.reconciled = 0
        self.changes: list[dict[str, Any]] = []
        parse = spec.parse

        def counted(text: str, source: str) -> spec.Spec:
            self.read += 1
            return parse(text, source)

        monkeypatch.setattr(spec, "parse", counted)

    async def apply(self, *words: str) -> str:
        async def reconcile() -> dict[str, Any]:
            self.reconciled += 1
            return Outcome().to_json()

        async def change(change: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
            self.changes.append(change)
            return Outcome().to_json()

        async with Server(self.state.control_socket, {"reconcile": reconcile, "change": change}):
            return await self.run("apply", "-f", str(self.file), *words)

    async def run(self, *words: str) -> str:
        arguments = ["--state-dir", str(self.state.root), *words]
        result = await asyncio.to_thread(CliRunner().invoke, cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture
async def host(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Everything was made as the file says, and seen to be so."""
    host = Host(tmp_path_factory.mktemp("s"), monkeypatch)
    await host.run("apply", "-f", str(host.file))
    host.state.run.mkdir(exist_ok=True)
    assert await host.apply() == "nothing to do\n"
    host.read = host.reconciled = 0
    return host


async def test_what_has_not_changed_is_not_read_again(host: Host) -> None:
    assert await host.apply() == "nothing to do\n"
    assert json.loads(await host.apply("--json"))["changed"] == []
    assert (host.read, host.reconciled) == (0, 2), "but what has drifted is put right"


async def test_another_file_is_read(host: Host) -> None:
    host.file.write_text(SPEC.replace("64M", "128M"))
    assert "changed volume a" in await host.apply()
    assert host.read == 1


async def test_another_meaning_is_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    await host.apply("--prune")
    monkeypatch.chdir(host.state.root)
    await host.apply("--prune")
    assert host.read == 2


async def test_after_a_change_the_file_is_read(host: Host) -> None:
    with Store(host.state.store) as store, store.transaction():
        changed = Volume("a", "malloc", size=128 << 20, volatile=True)
        store.put([Entry(changed, True, False, False)])
    assert "changed volume a" in await host.apply()
    assert host.read == len(host.changes) == 1


async def test_without_a_supervisor_the_file_is_read(host: Host) -> None:
    assert "the target is not running" in await host.run("apply", "-f", str(host.file))
    assert host.read == 1
