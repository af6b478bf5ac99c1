"""What becomes of a remote's reservation: taken for a volume that is open here, left when it is closed or deleted."""

from __future__ import annotations

import base64
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nvmuser.hostfs import reservation_keys
from nvmuser.hostfs.reservation_keys import key_in
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.objects import Controller, Namespace, Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.reconcile.actual import Actual, Bdev, RemoteController
from nvmuser.reconcile.reservations import Reservations
from nvmuser.rpc.methods.request import Request

FAR = Remote("far", nqn="nqn.2026-11.org.example:far", paths=(RemotePath("192.0.2.1", 4420),))
DISK = Volume("disk", backend="remote", remote="far", remote_nsid=1)
PATH = ("192.0.2.1", 4420)


@dataclass
class Store:
    """A namespace that offers reservations, as one host reaches it."""

    host_id: str
    keys: dict[str, int] = field(default_factory=dict)
    """Host → the key with which it is registered."""
    holder: str = ""

    async def call(self, method: str, params: Mapping[str, Any], **_: float) -> dict[str, str]:
        assert method == "bdev_nvme_send_cmd"
        opcode, nsid, cdw10 = struct.unpack_from("<B3xI32xI", base64.urlsafe_b64decode(params["cmdbuf"]))
        assert nsid == 1
        data = base64.urlsafe_b64decode(params.get("data", ""))
        one, other = struct.unpack("<QQ", data) if data else (0, 0)
        answer = {0x06: self._identify, 0x0E: self._report}.get(opcode, bytes)()
        if opcode == 0x0D:
            self._register(cdw10 & 7, one, other)
        elif opcode == 0x11:
            assert self.keys[self.host_id] == one
            self.keys = {host: key for host, key in self.keys.items() if key != other}
            self.holder = self.host_id
        cpl = base64.urlsafe_b64encode(bytes(16)).decode()
        return {"cpl": cpl, "data": base64.urlsafe_b64encode(answer).decode()}

    def _register(self, action: int, old: int, new: int) -> None:
        if action == 0:
            self.keys[self.host_id] = new
            return
        assert self.keys.pop(self.host_id) == old
        self.holder = "" if self.holder == self.host_id else self.holder

    def _identify(self) -> bytes:
        data = bytearray(4096)
        data[31] = 0x2
        return bytes(data)

    def _report(self) -> bytes:
        data = struct.pack("<IBH57x", 0, 1 if self.holder else 0, len(self.keys))
        for host, key in self.keys.items():
            data += struct.pack("<HB5xQ16s32x", 1, host == self.holder, key, uuid.UUID(host).bytes)
        return data.ljust(4096, b"\0")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(reservation_keys.load(StateDir(tmp_path)).session("10574fff-2e01-43e0-8000-000000000001"))


def desired(*, away: bool = False, deleting: bool = False) -> Desired:
    shows = Controller("c", (Namespace("disk"),), away=away)
    return Desired({FAR.key: Entry(FAR), DISK.key: Entry(DISK, deleting=deleting), shows.key: Entry(shows)})


def actual(store: Store) -> Actual:
    bdev = Bdev(f"{FAR.in_spdk}n1", DISK.uuid, 1 << 20, 512)
    remote = RemoteController(FAR.in_spdk, FAR.nqn, (PATH,), host_id=store.host_id)
    return Actual(bdevs={bdev.name: bdev}, remotes={FAR.in_spdk: remote})


async def send(store: Store, request: Request) -> None:
    await store.call(request.method, request.params)


@pytest.mark.parametrize("left", [{"away": True}, {"deleting": True}])
async def test_what_is_closed_here_is_released_for_the_next(
    store: Store, tmp_path: Path, left: dict[str, bool]
) -> None:
    """Because its guest has left, or because it was deleted: by one call, which goes after the volume."""
    of_target = Reservations(StateDir(tmp_path))
    await of_target.settle(store, desired(), actual(store), [DISK.key])  # type: ignore[arg-type]
    assert (store.holder, store.keys) == (store.host_id, {store.host_id: key_in(store.host_id)})
    claims = await of_target.settle(store, desired(**left), actual(store), ())  # type: ignore[arg-type]
    assert claims.refused == {}
    await send(store, claims.release[DISK.key])
    assert (store.holder, store.keys) == ("", {})
    again = await of_target.settle(store, desired(**left), actual(store), ())  # type: ignore[arg-type]
    assert again.release == {}, "once"
    assert await of_target.changed() == [], "who has it from then on is not looked after"


async def test_what_another_host_has_is_not_taken(store: Store, tmp_path: Path) -> None:
    other = "20574fff-2e01-43e0-8000-000000000002"
    store.keys, store.holder = {other: 7}, other
    of_target = Reservations(StateDir(tmp_path))
    claims = await of_target.settle(store, desired(), actual(store), [DISK.key])  # type: ignore[arg-type]
    assert "another host writes to it" in claims.refused[DISK.key]
    assert (store.holder, store.keys) == (other, {other: 7})
