"""More controllers than SPDK has room for unless it is asked to make it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bare_target import BareTarget

from nvmuser.errors import TargetError
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.rpc import Client

MANY = 1100


async def test_more_than_1024_controllers_are_made_and_undone(spdk_target: BareTarget, tmp_path: Path) -> None:
    volumes = tuple(Volume(f"v{n}", "null", size=1 << 20, volatile=True) for n in range(MANY))
    controllers = tuple(Controller(f"c{n}", (Namespace(f"v{n}"),)) for n in range(MANY))
    async with await Client.connect(spdk_target.rpc_socket, window=128) as rpc:
        engine = Engine(StateDir(tmp_path / "st"), rpc)
        outcome = await engine.change(Change(create=(*volumes, *controllers)))
        assert outcome.problems == ()
        assert (await engine.reconcile()).calls == 0
        assert len((await engine.status()).in_sync) == 2 * MANY
        keys = tuple(one.key for one in (*controllers, *volumes))
        assert (await engine.change(Change(delete=keys, wipe=True))).problems == ()
        # one that cannot be: all of it is taken back
        params = {"nqn": "nqn.2026-11.org.nvmuser:c7", "serial_number": "OTHER"}
        await rpc.call("nvmf_create_subsystem", params)
        with pytest.raises(TargetError, match=r"controller c7: .* is not ours .*; nothing was changed"):
            await engine.change(Change(create=(*volumes, *controllers)))
        assert await rpc.call("bdev_get_bdevs") == []
        assert engine.desired().wanted() == []
        engine.close()
