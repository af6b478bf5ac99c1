"""The commands of the control plane, on a state directory without a target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_run import Run, ok

from nvmuser.errors import ConflictError
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.outcome import Outcome
from nvmuser.rpc import Server
from nvmuser.supervisor import control


def refused(result: tuple[int, str, str], words: str, status: int) -> None:
    """One clear line on stderr, nothing on stdout."""
    assert (result[0], result[1]) == (status, "")
    assert result[2].startswith("nvmuser: ")
    assert result[2].count("\n") == 1
    assert words in result[2]


def test_the_life_of_a_volume(run: Run, tmp_path: Path) -> None:
    made = json.loads(ok(run("volume", "create", "a", "--size", "64M", "--json")))
    assert (tmp_path / "st/volumes/a").stat().st_size == 64 << 20
    ok(run("volume", "create", "m", "--size", "1M", "--backend", "malloc", "--volatile"))
    refused(run("controller", "create", "c", "--attach", "m"), "--volatile", 2)
    assert "takes effect when it starts" in ok(
        run("controller", "create", "c", "--attach", "a", "--attach", "m", "--volatile")
    )
    assert "data dies with the target" in ok(run("volume", "list"))
    shown = json.loads(ok(run("volume", "show", "a", "--json")))
    assert shown["used_by"] == ["controller c"]
    assert {key: shown[key] for key in ("uuid", "nguid", "eui64")} == {
        key: made[key] for key in ("uuid", "nguid", "eui64")
    }
    refused(run("volume", "delete", "a", "--yes"), "volume a: in use by controller c", 1)
    ok(run("controller", "detach", "c", "a"))
    refused(run("volume", "delete", "a"), "pass --yes", 2)
    ok(run("volume", "grow", "a", "128M"))
    assert (tmp_path / "st/volumes/a").stat().st_size == 128 << 20
    ok(run("volume", "delete", "a", "--yes"))
    assert not (tmp_path / "st/volumes/a").exists()
    (left,) = json.loads(ok(run("controller", "list", "--json")))
    assert [(one["nsid"], one["volume"]) for one in left["namespaces"]] == [(2, "m")]
    assert left["surviving"] is False


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        ("volume create", "Missing argument", 2),
        ("volume create A --size 1G", "volume name 'A'", 2),
        ("volume create a", "needs a size above 0", 2),
        ("volume create a --size 0", "size 0", 2),
        ("volume create a --size 1000", "not a multiple", 2),
        ("volume create a --size 9000T", "more than the", 2),
        ("volume create a --size 1M --backend null", "--volatile", 2),
        ("volume create a --size 1M --backend uring", "'uring' is not one of", 2),
        ("volume create a --size 1M --path /proc/version", "/proc/version: has no size", 1),
        ("volume show none", "volume none: no such volume", 1),
        ("volume delete none", "volume none: no such volume", 1),
        ("controller create c --attach none", "volume none: no such volume", 1),
        ("controller create c --nqn hello", "not of the form nqn.yyyy-mm", 2),
        ("controller create c --group nosuchgroup", "there is no group nosuchgroup", 2),
        ("controller create c --mode 0777", "'0777' is not one of", 2),
        ("controller delete none", "controller none: no such controller", 1),
        ("pool create p --base none", "pool p: there is no volume none", 1),
        ("remote create r --nqn nqn.2026-11.org.x:y --path 1.2.3.4:x", "expected HOST[:PORT]", 2),
        ("reconcile", "the target is not running", 1),
        ("apply -f /none.yaml", "/none.yaml: No such file", 2),
    ],
)
def test_refusals(run: Run, tmp_path: Path, arguments: str, words: str, status: int) -> None:
    refused(run(*arguments.split()), words, status)
    assert not list((tmp_path / "st").glob("volumes/*"))


def test_looking_makes_nothing(run: Run, tmp_path: Path) -> None:
    for command in ("volume", "controller", "pool", "remote"):
        assert ok(run(command, "list", "--json")) == "[]\n"
    assert ok(run("export")) == "version: 1\n"
    assert not (tmp_path / "st").exists()


def test_specifications(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("volumes: [{name: a, size: 64M}]\ncontrollers: [{name: c, namespaces: [a]}]\n")
    status, out, _ = run("diff", "-f", str(path))
    assert (status, out) == (1, "+ volume a\n+ controller c\n")
    waves: list[list[dict[str, Any]]] = json.loads(ok(run("apply", "-f", str(path), "--dry-run")))
    assert [call["method"] for call in waves[-1]] == ["nvmf_subsystem_add_listener"]
    assert not (tmp_path / "st/volumes").exists()
    assert ok(run("apply", "-f", str(path))).startswith("created volume a\ncreated controller c\n")
    assert ok(run("diff", "-f", str(path))) == ""
    exported = ok(run("export"))
    path.write_text(exported)
    assert ok(run("diff", "-f", str(path), "--prune")) == ""
    path.write_text("volumes: [{name: a, size: 64M}]\n")
    assert run("diff", "-f", str(path), "--prune")[:2] == (1, "- controller c\n")
    ok(run("apply", "-f", str(path), "--prune"))
    path.write_text("")
    refused(run("apply", "-f", str(path), "--prune"), "pass --yes", 2)
    ok(run("apply", "-f", str(path), "--prune", "--yes"))
    assert ok(run("export")) == "version: 1\n"


def test_many_at_once_do_not_undo_each_other(run: Run, tmp_path: Path) -> None:
    names = [f"v{n}" for n in range(6)]
    for name in names:
        ok(run("volume", "create", name, "--size", "1M"))
    ok(run("controller", "create", "c"))
    argv = [sys.executable, "-c", "from nvmuser.cli.main import main; main()", "--state-dir", str(tmp_path / "st")]
    attaching = [subprocess.Popen([*argv, "controller", "attach", "c", name]) for name in names]
    assert [one.wait() for one in attaching] == [0] * len(names)
    (controller,) = json.loads(ok(run("controller", "list", "--json")))
    assert sorted(one["volume"] for one in controller["namespaces"]) == names
    assert sorted(one["nsid"] for one in controller["namespaces"]) == [1, 2, 3, 4, 5, 6]


def test_profiles(run: Run, tmp_path: Path) -> None:
    path, core = tmp_path / "spec.yaml", min(os.sched_getaffinity(0))
    path.write_text(f"target: {{profile: eco, cores: [{core}]}}\nvolumes: [{{name: a, size: 64M}}]\n")
    ok(run("apply", "-f", str(path)))
    assert json.loads(ok(run("export", "--json")))["target"] == {"profile": "eco", "cores": [core]}
    ok(run("volume", "create", "n", "--backend", "null", "--size", "1M", "--volatile"))
    ok(run("volume", "create", "d", "--backend", "delay", "--base", "n", "--volatile"))
    attach = ("controller", "create", "c", "--volatile", "--attach", "a", "--attach")
    refused(run(*attach, "d"), "these need one: volume d (delay), volume n (null)", 1)
    path.write_text("target: {profile: balanced}\n")
    assert run("diff", "-f", str(path), "--prune")[1] == (
        f"~ target spdk  profile: eco → balanced, cores: {core} → none\n- volume a\n- volume d\n- volume n\n"
    )
    ok(run("apply", "-f", str(path)))
    ok(run(*attach, "d"))
    path.write_text("target: {profile: eco}\n")
    refused(run("apply", "-f", str(path)), f"{path}:1: target: the profile eco has no pollers", 2)
    path.write_text("target: {cores: [100000]}\n")
    refused(run("apply", "-f", str(path)), "core 100000 may not be used here; choose among", 2)
    path.write_text("target: {profile: fast}\n")
    refused(run("apply", "-f", str(path)), "profile 'fast'; choose from throughput, balanced, eco", 2)


async def test_a_supervisor_that_lives_gets_the_change(tmp_path: Path) -> None:
    """What it is sent, what comes back, and that the store is left to it."""
    state, seen = StateDir(tmp_path), list[dict[str, Any]]()

    async def change(change: dict[str, Any]) -> dict[str, Any]:
        seen.append(change)
        if change["delete"]:
            raise ConflictError("volume a: in use by controller c")
        return Outcome(calls=3, objects=tuple(change["create"])).to_json()

    state.run.mkdir()
    one = Volume("a", size=1 << 20)
    async with Server(state.control_socket, {"change": change}):
        outcome = await control.submit(state, Change(create=(one,) * 1000))
        assert (outcome.calls, len(outcome.objects), outcome.pending) == (3, 1000, False)
        assert seen == [Change(create=(one,) * 1000).to_json()]
        with pytest.raises(ConflictError, match=r"^volume a: in use by controller c"):
            await control.submit(state, Change(delete=(Key("volume", "a"),)))
    assert not state.store.exists()


def test_a_dry_run_makes_nothing(run: Run, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("version: 1\nvolumes:\n- {name: a, size: 16M}\n")
    assert '"bdev_aio_create"' in ok(run("apply", "-f", str(spec), "--dry-run"))
    assert not (tmp_path / "st").exists()
    ok(run("volume", "create", "b", "--size", "1M"))
    before = {path: path.read_bytes() for path in (tmp_path / "st").rglob("*") if path.is_file()}
    ok(run("apply", "-f", str(spec), "--dry-run"))
    ok(run("apply", "-f", str(spec), "--dry-run", "--prune", "--yes"))
    assert {path: path.read_bytes() for path in (tmp_path / "st").rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write to what is another user's")
def test_root_makes_nothing_in_another_users_deployment(run: Run, tmp_path: Path) -> None:
    """Its supervisor could not open it."""
    (tmp_path / "st").mkdir(exist_ok=True)
    os.chown(tmp_path / "st", 65534, 65534)
    refused(run("volume", "create", "a", "--size", "64M"), "runuser -u nobody -- nvmuser", 1)
    assert list((tmp_path / "st").iterdir()) == []
    ok(run("volume", "list"))
