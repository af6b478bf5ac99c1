"""The client, and the command line over it: against the API in a process of its own, without a target."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nvmuser.cli.main import cli
from nvmuser.client import AsyncClient, Client, Event
from nvmuser.errors import (
    AccessError,
    ConflictError,
    NotFoundError,
    NvmuserError,
    RpcConnectionError,
    StaleError,
    UsageError,
)
from nvmuser.paths import StateDir
from nvmuser.store import Store
from nvmuser.store.credentials import new_token

NVMUSER = (sys.executable, "-c", "from nvmuser.cli.main import main; main()")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[StateDir, str, str]]:
    """A state directory, the URL of its API, and an operator's token."""
    with tempfile.TemporaryDirectory(prefix="nvmuser-") as directory:
        state = StateDir(Path(directory))
        token, kept = new_token("ci", "operator", 0)
        with Store(state.store) as store:
            store.add_credential(kept)
        command = [*NVMUSER, "--state-dir", directory, "api", "serve", "--listen", "0"]
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as api:
            assert api.stdout
            url = api.stdout.readline().removeprefix("serving at ").strip()
            yield state, url, token
            api.terminate()
            assert api.wait(30) == 143


@pytest.fixture
def client(served: tuple[StateDir, str, str]) -> Iterator[Client]:
    _, url, token = served
    with Client(url, token) as client:
        yield client
        for collection in ("controllers", "volumes"):
            for one in client.list(collection):
                client.delete(collection, one.name, wipe=collection == "volumes")


def test_what_is_declared_comes_back(client: Client) -> None:
    made = client.create("volumes", {"name": "a", "size": "1M"})
    assert (made.name, made.spec["size"]) == ("a", 1 << 20)
    shown = client.get("volumes", "a")
    assert (shown.spec, shown.revision, shown.status["state"]) == (made.spec, made.revision, "pending")
    assert [one.name for one in client.list("volumes")] == ["a"]
    grown = client.patch("volumes", "a", {"size": "2M"}, match=made.revision)
    assert grown.spec["size"] == 2 << 20
    with pytest.raises(StaleError):
        client.patch("volumes", "a", {"size": "4M"}, match=made.revision)
    assert client.put("volumes", "a", grown.spec).revision == grown.revision
    client.delete("volumes", "a", wipe=True)
    with pytest.raises(NotFoundError, match="volume a: no such volume"):
        client.get("volumes", "a")


def test_errors_are_the_hosts_own(client: Client, served: tuple[StateDir, str, str]) -> None:
    client.create("volumes", {"name": "a", "size": "1M"})
    with pytest.raises(ConflictError, match="exists already; choose another name"):
        client.create("volumes", {"name": "a", "size": "1M"})
    with pytest.raises(UsageError, match="unknown field 'colour'"):
        client.create("volumes", {"name": "b", "colour": "red"})
    with Client(served[1], "nvmuser_wrong") as other, pytest.raises(AccessError, match="not known here"):
        list(other.list("volumes"))
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(RpcConnectionError, match=r"http://127\.0\.0\.1:1: "):
        nobody.get("volumes", "a")


def test_a_watcher_goes_on_where_it_was(client: Client) -> None:
    client.create("volumes", {"name": "a", "size": "1M"})
    with contextlib.closing(client.watch(after=0)) as events:
        first = next(event for event in events if event and event.name == "a")
    assert isinstance(first, Event)
    assert (first.action, first.who) == ("create", "token ci")
    client.patch("volumes", "a", {"size": "2M"})
    with contextlib.closing(client.watch(after=first.id)) as events:
        second = next(event for event in events if event and event.name == "a" and event.action == "update")
    assert second
    assert second.id > first.id


async def test_the_same_for_asyncio(served: tuple[StateDir, str, str], client: Client) -> None:
    async with AsyncClient(served[1], served[2]) as other:
        made = await other.create("volumes", {"name": "a", "size": "1M"})
        assert [one.revision async for one in other.list("volumes")] == [made.revision]
        async for event in other.watch(after=0):
            assert event
            break
        with pytest.raises(ConflictError):
            await other.create("volumes", {"name": "a", "size": "1M"})


@pytest.fixture
def token_file(served: tuple[StateDir, str, str], tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(served[2] + "\n")
    return path


def test_commands_over_the_api(served: tuple[StateDir, str, str], token_file: Path, client: Client) -> None:
    def run(*words: str) -> str:
        arguments = ["--server", served[1], "--token-file", str(token_file), *words]
        return CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False).output

    assert "volume a created" in run("volume", "create", "a", "--size", "1M")
    run("volume", "create", "b", "--size", "1M")
    run("volume", "grow", "a", "2M")
    run("volume", "limit", "a", "--iops", "1000")
    assert json.loads(run("volume", "show", "a", "--json"))["size"] == 2 << 20
    run("controller", "create", "c", "--attach", "a")
    run("controller", "attach", "c", "b")
    run("controller", "detach", "c", "a")
    run("volume", "rename", "a", "z")
    assert [one["name"] for one in json.loads(run("volume", "list", "--json"))] == ["b", "z"]
    assert "name: z" in run("export")
    run("controller", "delete", "c")
    run("volume", "delete", "z", "--yes")
    # The host itself has the same.
    here = CliRunner().invoke(cli, ["--state-dir", str(served[0].root), "volume", "list", "--json"])
    assert [one["name"] for one in json.loads(here.output)] == ["b"]
    with Store(served[0].store) as store:
        assert {event.actor.who for event in store.events() if event.key.kind != "token"} == {"token ci"}


def test_an_admin_says_who_may_from_elsewhere(served: tuple[StateDir, str, str], token_file: Path) -> None:
    state, url, _ = served
    admin, kept = new_token("boss", "admin", 0)
    with Store(state.store) as store:
        store.add_credential(kept)

    def run(secret: str, *words: str) -> str:
        token_file.write_text(secret)
        arguments = ["--server", url, "--token-file", str(token_file), "token", *words]
        return CliRunner().invoke(cli, arguments, standalone_mode=False, catch_exceptions=False).output

    secret = run(admin, "create", "dash", "--expires", "1h").strip()
    with Client(url, secret) as client:
        assert client.request("GET", "/v1/principal")["role"] == "viewer"
        with pytest.raises(AccessError, match="this needs admin"):
            run(secret, "list")
        listed = run(admin, "list", "--json")
        assert [one["name"] for one in json.loads(listed)] == ["boss", "ci", "dash"]
        assert secret not in listed
        assert run(admin, "revoke", "dash") == "token dash revoked\n"
        with pytest.raises(AccessError, match="not known here"):
            client.request("GET", "/v1/principal")
    assert run(admin, "revoke", "boss") == "token boss revoked\n"


@pytest.mark.parametrize(
    "words", ["target start", "target logs", "guest list", "rpc bdev_get_bdevs", "doctor", "sma serve"]
)
def test_what_is_for_the_host_alone_says_so(served: tuple[StateDir, str, str], token_file: Path, words: str) -> None:
    command = [*NVMUSER, "--server", served[1], "--token-file", str(token_file), *words.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    reason = "this works on the host itself alone, without --server"
    assert ended.stderr in (f"nvmuser: {words.split()[0]}: {reason}\n", f"nvmuser: {reason}\n")


def test_what_would_change_and_what_has(
    served: tuple[StateDir, str, str], token_file: Path, client: Client, tmp_path: Path
) -> None:
    def run(*words: str) -> Result:
        arguments = ["--server", served[1], "--token-file", str(token_file), *words]
        return CliRunner().invoke(cli, arguments, standalone_mode=False)

    spec = tmp_path / "spec.yaml"
    spec.write_text("volumes: [{name: a, size: 1M}, {name: b, size: 1M}]\n")
    client.create("volumes", {"name": "a", "size": "1M"})
    would = run("diff", "-f", str(spec))
    assert (would.output, would.exit_code) == ("+ volume b\n", 1)
    (first, *_) = json.loads(run("apply", "-f", str(spec), "--dry-run").output)
    assert {call["params"]["name"] for call in first if call["method"] == "bdev_aio_create"} == {"a", "b"}
    assert [one.name for one in client.list("volumes")] == ["a"]
    spec.write_text("controllers: [{name: c, namespaces: [nowhere]}]\n")
    impossible = run("diff", "-f", str(spec))
    assert isinstance(impossible.exception, NvmuserError)
    assert impossible.exception.exit_status == 2
    client.patch("volumes", "a", {"size": "2M"})
    (event,) = json.loads(run("events", "-n", "1", "--json").output)
    assert (event["action"], event["name"], event["before"]["size"]) == ("update", "a", 1 << 20)
    assert len(run("events", "-n", "2").output.splitlines()) == 2
    assert json.loads(run("target", "list", "--json").output)[0]["name"] == "spdk"


@pytest.mark.parametrize(
    "options",
    [("--token-file", "x"), ("--server", "http://x", "--state-dir", "x"), ("--server", "x", "--token-file", "/none")],
)
def test_which_host_has_to_be_said(options: tuple[str, ...]) -> None:
    ended = subprocess.run([*NVMUSER, *options, "volume", "list"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1


def test_the_sample_keeps_as_many_as_are_wanted(
    served: tuple[StateDir, str, str], token_file: Path, client: Client
) -> None:
    sample = Path(__file__).parents[2] / "samples/orchestrator.py"

    def run(count: int) -> list[str]:
        command = [sys.executable, str(sample), served[1], str(token_file), str(count), "--size", "1M"]
        subprocess.run(command, capture_output=True, text=True, check=True)
        return [one.name for one in client.list("controllers")]

    assert run(2) == ["vm0", "vm1"]
    with Store(served[0].store) as store:
        _, before = store.event_bounds()
    assert run(2) == ["vm0", "vm1"]
    with Store(served[0].store) as store:
        assert store.events(before) == []
    assert run(1) == ["vm0"]
    assert [one.name for one in client.list("volumes")] == ["vm0"]
