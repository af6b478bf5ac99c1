"""Guests that move from host to host of a fleet, with real targets, a remote, a real Ceph, QEMU and Linux."""

from __future__ import annotations

import json

import pytest
from fleet_guest import NAME, a_guest, nvmuser
from fleet_storage import StorageWorld
from fleet_world import until

from nvmuser.supervisor import control


@pytest.mark.matrix
async def test_a_guest_moves_while_it_writes(storage: StorageWorld) -> None:
    """By name, and because its host is drained. Nothing of it is left where it was."""
    h1, h2 = storage.hosts["h1"], storage.hosts["h2"]
    async with a_guest(storage, "h1") as guest:
        await guest.load.prepare()
        boot = await guest.boot_id()
        await guest.load.begin()
        status, out, err = await nvmuser(h1, "guest", "migrate", NAME, "--to", "h2", "--json")
        assert status == 0, err
        went = json.loads(out)
        assert went["host"] == guest.here == "h2"
        assert 0 < went["downtime"] < went["total"]
        assert {(owner.host, owner.epoch) for owner in [await storage.owner(name) for name in "ri"]} == {("h2", 2)}
        await until(lambda: not control.load(h1.state).controllers(), 30)
        status, out, err = await nvmuser(h1, "host", "drain", "h2", "--json")
        assert status == 0, err
        assert json.loads(out) == {"host": "h2", "moved": {"controller/i": "h1", "controller/r": "h1"}, "stayed": {}}
        assert guest.here == "h1"
        seen = await guest.load.finish()
        assert (seen.io_errors, seen.bad_blocks, seen.memory_mismatches) == (0, 0, 0)
        assert await guest.boot_id() == boot
        await until(lambda: not control.load(h2.state).controllers(), 30)
        assert [len((await storage.owner(name)).fences) for name in "ri"] == [1, 1]
        print(f"longest I/O: {seen.stall:.2f} s")
