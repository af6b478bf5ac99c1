"""Remotes: paths as people write them, where names lead, who this host is, and files of earlier versions."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from nvmuser.errors import ConflictError, SetupError, UsageError
from nvmuser.hostfs import host_identity
from nvmuser.hostfs.host_identity import HostIdentity
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Remote, Volume, object_from_json
from nvmuser.model.remote_path import RemotePath
from nvmuser.model.spec import dump, export, parse
from nvmuser.paths import StateDir
from nvmuser.reconcile import fabrics, reasons, remotes
from nvmuser.reconcile.actual import Actual, RemoteController
from nvmuser.reconcile.calls import Plan
from nvmuser.reconcile.plan import plan
from nvmuser.reconcile.status import Status, status_of
from nvmuser.store import Store

NQN = "nqn.2026-11.org.example:far"
HOST = HostIdentity("nqn.2026-11.org.example:us", "6f1fa3a4-3a39-4b39-9b4f-6f3b3f4a9d10")


@pytest.mark.parametrize(
    ("text", "address", "port", "written"),
    [
        ("10.0.0.1", "10.0.0.1", 4420, "10.0.0.1:4420"),
        ("store.example:4421", "store.example", 4421, "store.example:4421"),
        ("localhost", "localhost", 4420, "localhost:4420"),
        ("::1", "::1", 4420, "[::1]:4420"),
        ("[FD00::1]:4421", "FD00::1", 4421, "[FD00::1]:4421"),
        ("[::1]", "::1", 4420, "[::1]:4420"),
    ],
)
def test_a_path_is_an_address_or_a_name(text: str, address: str, port: int, written: str) -> None:
    path = RemotePath.parse(text)
    assert (path.address, path.port, str(path)) == (address, port, written)
    assert RemotePath.parse(written) == path


@pytest.mark.parametrize(
    "text", ["", ":4420", "a b", "host:", "host:0", "host:70000", "[::1", "a:b:c", "-x", "[name]x"]
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="path"):
        RemotePath.parse(text)


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = {"kind": "remote", "name": "far", "nqn": NQN, "paths": [{"name": "10.0.0.1", "port": 4421}, {"name": "::1"}]}
    new = Remote("far", nqn=NQN, paths=(RemotePath("10.0.0.1", 4421), RemotePath("::1")))
    assert object_from_json(old) == new
    with Store(tmp_path / "store.sqlite") as store:
        with store.transaction():
            store.put([Entry(new)])
        store._db.execute("UPDATE object SET spec = ?", (json.dumps(old),))
    with Store(tmp_path / "store.sqlite") as store:
        assert store.load().get(Key("remote", "far")) == new
    text = f"remotes:\n  - name: far\n    nqn: {NQN}\n    paths: [{{name: 10.0.0.1, port: 4421}}, {{name: '::1'}}]\n"
    assert parse(text, "old.yaml").objects == (new,)
    written = dump(export(Desired({new.key: Entry(new)})))
    assert "address: 10.0.0.1" in written
    assert parse(written, "new.yaml").objects == (new,)


def planned(remote: Remote, actual: Actual, routes: remotes.Routes) -> Plan:
    return plan(Desired({remote.key: Entry(remote)}), actual, Path, routes=routes)


def far(*paths: tuple[str, int]) -> Actual:
    return Actual(remotes={"far": RemoteController("far", NQN, paths)})


def test_a_name_that_leads_elsewhere_is_followed_and_one_that_is_lost_keeps_what_it_has() -> None:
    path = RemotePath("store.example")
    remote = Remote("far", nqn=NQN, paths=(path,))
    moved = planned(remote, far(("10.0.0.1", 4420)), remotes.Routes(HOST, {path: ("10.0.0.2",)}))
    assert [(call.request.method, call.request.params["traddr"]) for call in moved.calls] == [
        ("bdev_nvme_attach_controller", "10.0.0.2"),
        ("bdev_nvme_detach_controller", "10.0.0.1"),
    ]
    assert moved.calls[0].request.params["hostnqn"] == HOST.nqn
    assert moved.calls[0].request.params["hostid"] == HOST.id
    assert moved.calls[1].after == (0,)
    assert planned(remote, far(("10.0.0.1", 4420)), remotes.Routes(HOST, {path: ("10.0.0.9", "10.0.0.1")})).calls == ()
    lost = planned(remote, far(("10.0.0.1", 4420)), remotes.Routes(HOST, {}, {path: "no such host"}))
    assert lost.calls == ()
    assert [str(conflict) for conflict in lost.conflicts] == [
        "remote far: path store.example:4420: cannot resolve store.example: no such host"
    ]


def test_two_names_of_one_address_are_one_path() -> None:
    paths = (RemotePath("one.example"), RemotePath("two.example"))
    routes = remotes.Routes(HOST, dict.fromkeys(paths, ("10.0.0.1",)))
    assert len(planned(Remote("far", nqn=NQN, paths=paths), Actual(), routes).calls) == 1


def test_a_remote_that_lacks_a_path_or_has_another_key_is_there_and_drifted() -> None:
    remote = Remote("far", nqn=NQN, paths=(RemotePath("10.0.0.1"), RemotePath("10.0.0.2")), psk="/p")
    desired = Desired({remote.key: Entry(remote)})

    def status(actual: Actual) -> Status:
        return status_of(desired, actual, plan(desired, actual, Path))

    assert status(Actual()).missing == (remote.key,)
    for there in (
        replace(far(("10.0.0.1", 4420)), keys={"far.psk": "/p"}),
        replace(far(("10.0.0.1", 4420)), keys={"far.psk": "/other"}),
    ):
        assert (status(there).missing, status(there).drifted) == ((), (remote.key,))


def test_keys_are_files_that_spdk_reads_and_go_with_the_remote() -> None:
    remote = Remote("far", nqn=NQN, paths=(RemotePath("10.0.0.1"),), dhchap_key="/k", psk="/p")
    (call,) = [one for one in planned(remote, Actual(), remotes.Routes(HOST)).calls if "nqn" in str(one.request.params)]
    assert "keep_alive_timeout_ms" not in call.request.params
    remote = replace(remote, reconnect_s=20, fail_after_s=60, keep_alive_s=3)
    calls = planned(remote, Actual(), remotes.Routes(HOST)).calls
    assert calls[-1].request.params["reconnect_delay_sec"] == 20
    assert calls[-1].request.params["fast_io_fail_timeout_sec"] == 60
    assert calls[-1].request.params["keep_alive_timeout_ms"] == 3000
    methods = [call.request.method for call in calls]
    assert methods == ["keyring_file_add_key", "keyring_file_add_key", "bdev_nvme_attach_controller"]
    known = replace(far(("10.0.0.1", 4420)), keys={"far.dhchap_key": "/k", "far.psk": "/p"})
    assert planned(remote, known, remotes.Routes(HOST)).calls == ()
    gone = plan(Desired({remote.key: Entry(remote, deleting=True)}), known, Path)
    assert [call.request.method for call in gone.calls] == [
        "bdev_nvme_detach_controller", "keyring_file_remove_key", "keyring_file_remove_key",
    ]  # fmt: skip


def test_who_this_host_is_is_made_once_and_can_be_set(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "st")
    made = host_identity.load(state)
    assert made.nqn == f"nqn.2014-08.org.nvmexpress:uuid:{made.id}"
    assert host_identity.load(state) == made
    assert host_identity.keep(state, HOST.nqn) == HostIdentity(HOST.nqn, made.id)
    assert host_identity.keep(state, host_id=HOST.id) == host_identity.load(state) == HOST
    for nqn, host_id in (("us", ""), ("", "not a UUID"), (f"nqn.2026-11.org.example:{'x' * 220}", "")):
        with pytest.raises(UsageError):
            host_identity.keep(state, nqn, host_id)
    assert host_identity.load(state) == HOST
    state.host_nqn.write_text("nonsense\n")
    with pytest.raises(SetupError, match="expected nqn"):
        host_identity.load(state)


async def test_what_speaks_no_nvme_is_said_so() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x09\0\0\0\x10\0\0\0SSH-2.0-")
        await writer.drain()
        writer.close()

    for serve, text in ((hang_up, "it may want TLS"), (greet, "not as NVMe/TCP does")):
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answer = await fabrics.ask("127.0.0.1", port, NQN, HOST.nqn, HOST.id)
            assert answer.stage == "silent"
            assert text in answer.text


def test_a_namespace_of_a_remote_is_one_volume() -> None:
    remote = Remote("far", nqn=NQN, paths=(RemotePath("10.0.0.1"),))

    def volume(name: str, nsid: int, far: str = "far") -> Volume:
        return Volume(name, "remote", remote=far, remote_nsid=nsid)

    def declare(*volumes: Volume) -> Desired:
        return next_desired(Desired(), Change((remote, replace(remote, name="near"), *volumes)), lambda one: one)

    declare(volume("a", 1), volume("b", 2), volume("c", 1, "near"))
    with pytest.raises(ConflictError, match="volume b: its namespace, 1 of remote far, is volume a's already"):
        declare(volume("a", 1), volume("b", 1))


def test_a_namespace_that_the_remote_does_not_have() -> None:
    remote = Remote("far", nqn=NQN, paths=(RemotePath("10.0.0.1"),))
    volume = Volume("v", "remote", remote="far", remote_nsid=7)
    desired = Desired({one.key: Entry(one) for one in (remote, volume)})
    there = far(("10.0.0.1", 4420))
    assert volume.key in plan(desired, there, Path).waiting
    message, lost = (
        reasons.missing({volume.key}, {}, desired, actual)[volume.key].message for actual in (there, Actual())
    )
    assert message == "remote far has no namespace 7"
    assert lost.startswith("not there: what it lies on is missing")
