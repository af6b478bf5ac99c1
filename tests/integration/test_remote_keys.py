"""Keys of a remote that change while it is attached: in their files."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from bare_target import TargetFactory
from remote_pair import NQN, Pair, dhchap_key, key_file, tls_key

from nvmuser import initiator
from nvmuser.errors import ConflictError
from nvmuser.hostfs import host_identity
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Remote
from nvmuser.reconcile.actual import query
from nvmuser.rpc import Client

PATIENCE_S = 60.0


async def refusal(pair: Pair, **fields: str) -> str:
    one = pair.engine.desired().get(Key("remote", "far"))
    assert isinstance(one, Remote)
    with pytest.raises(ConflictError) as caught:
        await pair.engine.change(Change(update=(replace(one, **fields),)))
    return str(caught.value)


async def connected(pair: Pair, wanted: bool) -> None:
    """Wait until SPDK has a connection, or none."""
    rpc = pair.engine.rpc
    assert rpc
    async with asyncio.timeout(PATIENCE_S):
        while any(remote.down for remote in (await query(rpc)).remotes.values()) == wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def is_readable(pair: Pair) -> None:
    def act() -> None:
        with initiator.connect(pair.state.target_dir("x")) as host, host.queue(4, timeout=PATIENCE_S) as queue:
            data, back = os.urandom(4096), bytearray(4096)
            queue.write(host.namespace(1), 0, data).wait()
            queue.read(host.namespace(1), 0, back).wait()
            assert back == data

    await connected(pair, True)
    await asyncio.to_thread(act)


async def demand(pair: Pair, **keys: str) -> None:
    """Let the remote admit this host with other keys, and end its connections."""
    host = host_identity.load(pair.state).nqn
    gone = {"nqn": NQN, "host": host, "keep_connections": False}
    await pair.far.call("nvmf_subsystem_remove_host", gone)
    await pair.admit(host, **keys)


async def test_a_key_is_replaced_in_its_file(pair: Pair, tmp_path: Path) -> None:
    files = {name: key_file(tmp_path, name, dhchap_key()) for name in ("one", "two", "wrong")}
    for name, path in files.items():
        await pair.far.call("keyring_file_add_key", {"name": name, "path": path})
    ours = key_file(tmp_path, "ours", Path(files["one"]).read_text())
    await pair.admit(host_identity.load(pair.state).nqn, dhchap_key="one")
    await pair.listen()
    await pair.attach("127.0.0.1", dhchap_key=ours)
    way_out = f"its dhchap_key cannot change while it is attached: write the new key into {ours}, which is read at each"
    assert way_out in await refusal(pair, dhchap_key=files["two"])
    assert "its dhchap_ctrlr_key cannot change" in await refusal(pair, dhchap_ctrlr_key=files["two"])
    assert "delete the remote and what is on it, and create it again" in await refusal(pair, psk=files["two"])
    await demand(pair, dhchap_key="two")
    Path(ours).write_text(Path(files["wrong"]).read_text())
    await connected(pair, False)
    Path(ours).write_text(Path(files["two"]).read_text())
    await is_readable(pair)


async def test_a_key_of_tls_is_replaced_in_its_file_for_the_next_target(
    pair: Pair, tmp_path: Path, target_factory: TargetFactory
) -> None:
    path, other = key_file(tmp_path, "psk", tls_key()), key_file(tmp_path, "other", tls_key())
    for name, file in (("psk", path), ("other", other)):
        await pair.far.call("keyring_file_add_key", {"name": name, "path": file})
    await pair.admit(host_identity.load(pair.state).nqn, psk="psk")
    await pair.listen(secure_channel=True)
    ours = key_file(tmp_path, "ours", Path(path).read_text())
    await pair.attach("127.0.0.1", psk=ours)
    way_out = (
        f"its psk cannot change while it is attached: write the new key into {ours}, then `nvmuser target restart`"
    )
    assert way_out in await refusal(pair, psk=other)
    await demand(pair, psk="other")
    Path(ours).write_text(Path(other).read_text())
    pair.near.kill()
    async with await Client.connect(target_factory.start("next", polled=True).rpc_socket) as rpc:
        pair.engine.rpc = rpc
        assert (await pair.engine.reconcile()).problems == ()
        await is_readable(pair)
