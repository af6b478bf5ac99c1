"""Remotes, against a second real target: by name and IPv6, admitted or not, with keys; why one is not attached."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from remote_pair import NQN, Pair, dhchap_key, free_port, key_file, tls_key

from nvmuser import initiator
from nvmuser.errors import ConflictError, NvmeStatusError, NvmuserError, TargetError, UsageError
from nvmuser.hostfs import host_identity, reservation_keys
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume


async def test_a_name_is_resolved_to_the_address_that_answers(pair: Pair) -> None:
    await pair.admit(host_identity.load(pair.state).nqn)
    await pair.listen()
    await pair.attach("localhost")
    assert pair.engine.rpc
    (attached,) = await pair.engine.rpc.call("bdev_nvme_get_controllers")
    assert attached["ctrlrs"][0]["trid"]["traddr"] == "127.0.0.1"


async def test_ipv6_in_any_form(pair: Pair) -> None:
    await pair.admit(host_identity.load(pair.state).nqn)
    await pair.listen("::1")
    await pair.attach("0:0::1")


async def test_a_namespace_is_one_volume_and_has_to_be_there(pair: Pair) -> None:
    await pair.admit(host_identity.load(pair.state).nqn)
    await pair.listen()
    await pair.attach("127.0.0.1")
    with pytest.raises(TargetError, match=r"^volume v7: remote far has no namespace 7; nothing was changed$"):
        await pair.engine.change(Change((Volume("v7", "remote", remote="far", remote_nsid=7),)))
    with pytest.raises(ConflictError, match=r"^volume two: its namespace, 1 of remote far, is volume disk's already$"):
        await pair.engine.change(Change((Volume("two", "remote", remote="far", remote_nsid=1),)))
    status = await pair.engine.status()
    assert (status.drifted, status.missing) == ((), ())


async def test_io_ends_with_errors_after_the_time_that_was_set_and_goes_on_when_there_is_a_path(pair: Pair) -> None:
    await pair.admit(host_identity.load(pair.state).nqn)
    await pair.listen()
    await pair.attach("127.0.0.1", fail_after_s=1)

    where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(pair.port)}
    host = await asyncio.to_thread(initiator.connect, pair.state.target_dir("x"))
    with host, host.queue(4, timeout=60) as queue:

        def write() -> None:
            queue.write(host.namespace(1), 0, bytes(4096)).wait()

        await asyncio.to_thread(write)
        await pair.far.call("nvmf_subsystem_remove_listener", {"nqn": NQN, "listen_address": where})
        with pytest.raises(NvmeStatusError):
            await asyncio.to_thread(write)
        await pair.listen()
        while True:  # until it has connected again
            try:
                await asyncio.to_thread(write)
            except NvmeStatusError:
                continue
            break


async def test_a_remote_that_says_nothing_any_more_has_no_connection(pair: Pair) -> None:
    """Stopped: its kernel goes on to acknowledge what it is sent."""
    await pair.admit(host_identity.load(pair.state).nqn)
    await pair.listen()
    await pair.attach("127.0.0.1", keep_alive_s=1)
    assert pair.far.peer_pid
    host = await asyncio.to_thread(initiator.connect, pair.state.target_dir("x"))
    with host, host.queue(4, timeout=120) as queue:

        def write() -> None:
            queue.write(host.namespace(1), 0, bytes(4096)).wait()

        await asyncio.to_thread(write)
        os.kill(pair.far.peer_pid, signal.SIGSTOP)
        try:
            writing = asyncio.create_task(asyncio.to_thread(write))
            async with asyncio.timeout(60):
                while any(way.connected for way in (await pair.engine.status()).remotes):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            assert not writing.done()
        finally:
            os.kill(pair.far.peer_pid, signal.SIGCONT)
        await writing


async def test_each_reason_is_its_own(pair: Pair) -> None:
    host = host_identity.load(pair.state)
    await pair.listen()
    not_admitted = await pair.refusal("127.0.0.1")
    assert f"it does not admit this host: have it admit {host.nqn}" in not_admitted
    await pair.admit(host.nqn)
    assert "it has no subsystem nqn.2026-11.org.example:none" in await pair.refusal(
        "localhost", "nqn.2026-11.org.example:none"
    )
    assert "path no.such.invalid:" in (unknown := await pair.refusal("no.such.invalid"))
    assert "cannot resolve no.such.invalid" in unknown
    pair.port = free_port()
    assert f"path 127.0.0.1:{pair.port}: the connection was refused: nothing listens there" in await pair.refusal(
        "127.0.0.1"
    )


async def test_the_host_is_who_it_was_at_each_attachment(pair: Pair) -> None:
    """By its name, and the first half of its identifier: the second half is the process's own."""
    host = host_identity.keep(pair.state, "nqn.2026-11.org.example:us")
    await pair.admit(host.nqn)
    await pair.listen()
    await pair.attach("127.0.0.1")
    (seen,) = await pair.far.call("nvmf_subsystem_get_controllers", {"nqn": NQN})
    assert (seen["hostnqn"], seen["hostid"][:18]) == (host.nqn, host.id[:18])
    key = reservation_keys.key_in(seen["hostid"])
    assert reservation_keys.load(pair.state).is_ours(key)


async def test_both_show_who_they_are_by_keys(pair: Pair, tmp_path: Path) -> None:
    ours, theirs = dhchap_key(), dhchap_key()
    files = {"ours": key_file(tmp_path, "ours", ours), "theirs": key_file(tmp_path, "theirs", theirs)}
    for name, path in files.items():
        await pair.far.call("keyring_file_add_key", {"name": name, "path": path})
    await pair.admit(host_identity.load(pair.state).nqn, dhchap_key="ours", dhchap_ctrlr_key="theirs")
    await pair.listen()
    assert "it demands authentication (DH-HMAC-CHAP): --dhchap-key" in await pair.refusal("127.0.0.1")
    wrong = key_file(tmp_path, "wrong", dhchap_key())
    reason = await pair.refusal("127.0.0.1", dhchap_key=wrong)
    assert "authentication failed: it and this host do not have the same keys" in reason
    assert "DHHC" not in reason
    reason = await pair.refusal("127.0.0.1", dhchap_key=files["ours"], dhchap_ctrlr_key=wrong)
    assert "authentication failed" in reason
    await pair.attach("127.0.0.1", dhchap_key=files["ours"], dhchap_ctrlr_key=files["theirs"])
    keys = (Key("controller", "x"), Key("volume", "disk"), Key("remote", "far"))
    assert (await pair.engine.change(Change(delete=keys))).problems == ()
    assert pair.engine.rpc
    assert await pair.engine.rpc.call("keyring_get_keys") == []


async def test_tls_by_a_pre_shared_key(pair: Pair, tmp_path: Path) -> None:
    path = key_file(tmp_path, "psk", tls_key())
    await pair.far.call("keyring_file_add_key", {"name": "psk", "path": path})
    await pair.admit(host_identity.load(pair.state).nqn, psk="psk")
    await pair.listen(secure_channel=True)
    assert "it may want TLS (--psk)" in await pair.refusal("127.0.0.1")
    other = key_file(tmp_path, "other", tls_key())
    assert "no TLS with it: it knows another key" in await pair.refusal("127.0.0.1", psk=other)
    await pair.attach("127.0.0.1", psk=path)


async def test_a_key_that_others_may_read_is_refused_before_anything_is_done(pair: Pair, tmp_path: Path) -> None:
    path = key_file(tmp_path, "open", dhchap_key())
    os.chmod(path, 0o644)
    with pytest.raises(UsageError, match=rf"dhchap_key {path}: others may read it: chmod 600"):
        await pair.attach("127.0.0.1", dhchap_key=path)
    for text, reason in (("secret", "does not hold one key of the form DHHC-1"), ("", "does not hold one key")):
        with pytest.raises(NvmuserError, match=reason):
            await pair.attach("127.0.0.1", dhchap_key=key_file(tmp_path, "malformed", text))
