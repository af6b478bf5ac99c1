"""I/O statistics of volumes, snapshots and clones, from the real target's counters."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bare_target import BareTarget

from nvmuser import initiator
from nvmuser.model.change import Change
from nvmuser.model.objects import Controller, Namespace, Pool, Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.engine import Engine
from nvmuser.reconcile.statistics import collect
from nvmuser.rpc import Client

MIB = 1 << 20


async def test_what_was_read_and_written_is_counted(spdk_target: BareTarget, tmp_path: Path) -> None:
    state = StateDir(tmp_path / "st")

    def act() -> None:
        with initiator.connect(state.target_dir("x")) as host, host.queue(4, timeout=20) as queue:
            for number in range(3):
                queue.write(host.namespace(1), number * 8, bytes(4096)).wait()
            queue.read(host.namespace(1), 0, bytearray(MIB)).wait()

    async with await Client.connect(spdk_target.rpc_socket) as rpc:
        engine = Engine(state, rpc)
        lvol = Volume("a", "lvol", size=32 * MIB, pool="p", thin=True)
        create = (Volume("disk", size=256 * MIB), Pool("p", base="disk", cluster_size=MIB), lvol)
        await engine.change(Change(create=create))
        await engine.change(Change(create=(Volume("snap", "lvol", pool="p", snapshot_of="a"),)))
        clone = Volume("copy", "lvol", pool="p", clone_of="snap")
        await engine.change(Change(create=(clone, Controller("x", (Namespace("copy"),)))))
        before = await collect(rpc, engine.desired())
        await asyncio.to_thread(act)
        counted = {name: after - before[name] for name, after in (await collect(rpc, engine.desired())).items()}
        assert set(counted) == {"disk", "a", "snap", "copy"}
        assert (counted["copy"].write.operations, counted["copy"].write.bytes) == (3, 3 * 4096)
        assert counted["copy"].read.bytes == MIB
        assert (counted["copy"].write.mean_us or 0) > 0
        assert counted["copy"].unmap.mean_us is None
        assert counted["a"].write.operations == 0
        assert counted["disk"].write.bytes >= 3 * 4096
        engine.close()
