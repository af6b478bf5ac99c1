"""SPDK's own client of its Storage Management Agent drives `nvmuser sma serve`, over a real target: the steps of SPDK's
test of vfio-user devices (`test/sma/vfiouser_qemu.sh`) that need no guest, and what its own agent does not promise.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
import ssl
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_process import SLEEPING, certificate, token
from bare_target import TargetFactory
from remote_pair import free_port
from sma_client import Calls, SpdkClient, agent, identity

from nvmuser.hostfs import host_identity
from nvmuser.model.change import Change
from nvmuser.model.objects import Remote, Volume
from nvmuser.model.remote_path import RemotePath
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.sma.messages import CALLS, CLASSES, SERVICE, UNCHANGED
from nvmuser.store import Store
from nvmuser.store.credentials import of_certificate
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor.spdk import Options

NQN = "nqn.2016-06.io.spdk:vfiouser-"
LOCAL = ("--listen", "127.0.0.1:0", "--trust-loopback")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> SpdkClient:
    return SpdkClient.build(tmp_path_factory.mktemp("sma"))


@dataclass
class World:
    state: StateDir
    rpc: Client
    calls: Calls
    volumes: list[str]
    """UUIDs."""

    async def shown(self) -> dict[str, list[str]]:
        """Device → UUIDs of its namespaces, as SPDK has them."""
        found = await self.rpc.call("nvmf_get_subsystems")
        devices = {one["nqn"]: one.get("namespaces", []) for one in found if one["nqn"].startswith(NQN)}
        return {nqn.removeprefix(NQN): [space["uuid"] for space in spaces] for nqn, spaces in devices.items()}


@pytest.fixture
def state() -> Iterator[StateDir]:
    with tempfile.TemporaryDirectory(prefix="nvmuser-") as directory:
        yield StateDir(Path(directory))


@contextlib.asynccontextmanager
async def a_world(state: StateDir, client: SpdkClient, options: Options) -> AsyncIterator[World]:
    async with daemon.running(state, options), await Client.connect(state.rpc_socket) as rpc:
        await control.submit(state, Change(create=(Volume("null0", size=1 << 20), Volume("null1", size=1 << 20))))
        uuids = [volume.uuid for volume in control.load(state).volumes()]
        with agent(state, *LOCAL) as (_, place), client.many(place) as calls:
            yield World(state, rpc, calls, uuids)


@pytest.fixture
async def world(state: StateDir, client: SpdkClient) -> AsyncIterator[World]:
    async with a_world(state, client, SLEEPING) as world:
        yield world


async def test_devices(world: World) -> None:
    """Made, made again, deleted, deleted again."""
    calls = world.calls
    assert await world.shown() == {}
    devices = [calls.create(0), calls.create(1)]
    assert devices == [f"nvme:{NQN}0", f"nvme:{NQN}1"]
    assert await world.shown() == {"0": [], "1": []}
    assert [calls.create(0), calls.create(1)] == devices
    assert await world.shown() == {"0": [], "1": []}
    assert calls.delete(devices[0]) == {}
    assert await world.shown() == {"1": []}
    assert [calls.delete(devices[1]), calls.delete(devices[0]), calls.delete(devices[1])] == [{}, {}, {}]
    assert await world.shown() == {}
    assert calls.create(42) == f"nvme:{NQN}42"
    assert await world.shown() == {"42": []}


async def test_volumes(world: World) -> None:
    """Attached, attached again, taken off devices that have them not, detached, detached again."""
    calls, (first, second) = world.calls, world.volumes
    devices = [calls.create(0), calls.create(1)]
    both = {"0": [first], "1": [second]}
    assert calls.attach(devices[0], first) == {}
    assert await world.shown() == {"0": [first], "1": []}
    assert calls.attach(devices[1], second) == {}
    assert await world.shown() == both
    assert [calls.attach(devices[0], first), calls.attach(devices[1], second)] == [{}, {}]
    assert [calls.detach(devices[0], second), calls.detach(devices[1], first)] == [{}, {}]
    assert await world.shown() == both
    assert calls.attach(devices[1], first)["error"] == "ALREADY_EXISTS"
    assert calls.delete(devices[0])["error"] == "FAILED_PRECONDITION"
    assert await world.shown() == both
    for _ in range(2):
        assert [calls.detach(devices[0], first), calls.detach(devices[1], second)] == [{}, {}]
        assert await world.shown() == {"0": [], "1": []}
    assert [calls.delete(devices[0]), calls.delete(devices[1])] == [{}, {}]
    made = calls("CreateDevice", nvme={"physical_id": 3}, volume={"volume_id": identity(first)})
    assert made == {"handle": f"nvme:{NQN}3"}
    assert await world.shown() == {"3": [first]}


async def test_limits(world: World) -> None:
    calls, (first, second) = world.calls, world.volumes
    able = {"rw_iops": True, "rd_bandwidth": True, "wr_bandwidth": True, "rw_bandwidth": True}
    assert calls("GetQosCapabilities", device_type="DEVICE_TYPE_NVME") == {"max_volume_caps": able}
    assert calls("GetQosCapabilities", device_type="DEVICE_TYPE_NVMF_TCP")["error"] == "INVALID_ARGUMENT"
    device = calls.create(0)
    calls.attach(device, first)

    async def limit(volume: str, **maximum: int) -> Any:
        answer = calls("SetQos", device_handle=device, volume_id=identity(volume), maximum=maximum)
        (bdev,) = await world.rpc.call("bdev_get_bdevs", {"name": "null0"})
        return answer or list(bdev["assigned_rate_limits"].values())

    assert await limit(first, rd_iops=0, rw_iops=3, rd_bandwidth=4, wr_bandwidth=5, rw_bandwidth=6) == [3000, 6, 4, 5]
    assert await limit(first, rw_iops=UNCHANGED, rd_bandwidth=UNCHANGED, rw_bandwidth=7) == [3000, 7, 4, 0]
    assert (await limit(first, rd_iops=1))["error"] == "INVALID_ARGUMENT"
    assert (await limit(second, rw_iops=1))["error"] == "INVALID_ARGUMENT"
    assert calls("SetQos", device_handle=device, maximum={"rw_iops": 1})["error"] == "INVALID_ARGUMENT"
    assert await limit(first) == [0, 0, 0, 0]


async def test_with_a_key(state: StateDir, client: SpdkClient) -> None:
    """What is attached is decrypted; with the same key again, and not with another; also after the target's restart."""
    async with a_world(state, client, Options(profile="balanced")) as world:  # which encrypted volumes need
        await check_key(world)


async def check_key(world: World) -> None:
    calls, (first, _) = world.calls, world.volumes
    device = calls.create(0)

    def attach(key: str, key2: str = "2" * 64, cipher: str = "AES_XTS") -> Any:
        crypto = {"cipher": cipher} | {name: base64.b64encode(text.encode()).decode()
                                       for name, text in (("key", key), ("key2", key2))}  # fmt: skip
        return calls("AttachVolume", device_handle=device, volume={"volume_id": identity(first), "crypto": crypto})

    assert attach("1" * 64, cipher="AES_CBC")["error"] == "INVALID_ARGUMENT"
    short = attach("1" * 32)
    assert short["error"] == "INVALID_ARGUMENT"
    assert "1111" not in short["details"]
    assert [attach("1" * 64), attach("1" * 64)] == [{}, {}]
    assert attach("3" * 64)["error"] == "INVALID_ARGUMENT"
    await control.ask(world.state, "restart", {"target": "spdk", "rolling": False})
    async with await Client.connect(world.state.rpc_socket) as rpc:
        found = await rpc.call("bdev_get_bdevs")
        (crypt,) = (bdev for bdev in found if bdev["product_name"] == "crypto")
        (device_,) = (one for one in await rpc.call("nvmf_get_subsystems") if one["nqn"] == f"{NQN}0")
        assert [space["bdev_name"] for space in device_["namespaces"]] == [crypt["name"]]
        limits = calls("SetQos", device_handle=device, volume_id=identity(first), maximum={"rw_iops": 1})
        assert limits == {}
        assert [calls.detach(device, first), calls.detach(device, first)] == [{}, {}]
        assert not [bdev for bdev in await rpc.call("bdev_get_bdevs") if bdev["product_name"] == "crypto"]
    assert not list((world.state.root / "keys").iterdir())
    assert calls.delete(device) == {}


FAR = "nqn.2026-11.org.example:far"


@dataclass
class Far:
    """A target elsewhere, whose namespaces are found by its discovery service."""

    rpc: Client
    port: int
    uuids: tuple[str, str]

    async def start(self) -> None:
        await self.rpc.call("nvmf_create_transport", {"trtype": "TCP"})
        await self.rpc.call("nvmf_create_subsystem", {"nqn": FAR, "allow_any_host": False, "serial_number": "FAR"})
        for number, one in enumerate(self.uuids):
            bdev = {"name": f"m{number}", "num_blocks": 2048, "block_size": 512, "uuid": one}
            await self.rpc.call("bdev_malloc_create", bdev)
            await self.rpc.call("nvmf_subsystem_add_ns", {"nqn": FAR, "namespace": {"bdev_name": f"m{number}"}})
        where = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(self.port)}
        await self.rpc.call("nvmf_subsystem_add_listener", {"nqn": FAR, "listen_address": where})

    def attach(
        self, calls: Calls, handle: str, volume: str, subnqn: str = FAR, hostnqn: str = "", port: int = 0
    ) -> Any:
        service = {"trtype": "tcp", "traddr": "127.0.0.1", "trsvcid": str(port or self.port)}
        nvmf = {"subnqn": subnqn, "hostnqn": hostnqn, "discovery": {"discovery_endpoints": [service]}}
        return calls("AttachVolume", device_handle=handle, volume={"volume_id": identity(volume), "nvmf": nvmf})


async def test_volumes_by_discovery(state: StateDir, client: SpdkClient, target_factory: TargetFactory) -> None:
    """Found, attached, there after the target's restart, and gone with the last that is detached."""
    async with await Client.connect(target_factory.start("far").rpc_socket) as rpc:
        far = Far(rpc, free_port(), (str(uuid.uuid4()), str(uuid.uuid4())))
        await far.start()
        async with a_world(state, client, Options(profile="balanced")) as world:  # which remotes need
            await check_refusals(world, far)
            await check_discovery(world, far)


async def check_refusals(world: World, far: Far) -> None:
    """Each leaves nothing behind."""
    device, first, host = world.calls.create(0), far.uuids[0], host_identity.load(world.state).nqn

    async def refusal(volume: str = first, **fields: Any) -> str:
        answer = await asyncio.to_thread(far.attach, world.calls, device, volume, **fields)
        desired = control.load(world.state)
        assert (desired.remotes(), len(desired.volumes())) == ([], 2)
        return str(answer["error"])

    assert await refusal() == "NOT_FOUND"  # this host is not admitted
    await far.rpc.call("nvmf_subsystem_add_host", {"nqn": FAR, "host": host})
    assert await refusal(subnqn="nqn.2026-11.org.example:none") == "NOT_FOUND"
    assert await refusal(str(uuid.uuid4())) == "NOT_FOUND"
    assert await refusal(hostnqn="nqn.2026-11.org.example:me") == "INVALID_ARGUMENT"
    assert await refusal(port=free_port()) == "UNAVAILABLE"


async def check_discovery(world: World, far: Far) -> None:
    calls, device, (first, second) = world.calls, world.calls.create(0), far.uuids
    host = host_identity.load(world.state).nqn

    def attach(volume: str, **fields: Any) -> Any:
        return far.attach(calls, device, volume, **fields)

    assert [attach(first, hostnqn=host), attach(first, hostnqn=host), attach(second)] == [{}, {}, {}]
    assert await world.shown() == {"0": [first, second]}
    assert attach(first, subnqn="nqn.2026-11.org.example:none")["error"] == "INVALID_ARGUMENT"
    await control.ask(world.state, "restart", {"target": "spdk", "rolling": False})
    async with await Client.connect(world.state.rpc_socket) as world.rpc:
        assert await world.shown() == {"0": [first, second]}
        assert attach(first) == {}
        assert [calls.detach(device, first), calls.detach(device, first)] == [{}, {}]
        assert await world.shown() == {"0": [second]}
        (remote,) = control.load(world.state).remotes()
        assert (remote.nqn, [str(path) for path in remote.paths]) == (FAR, [f"127.0.0.1:{far.port}"])
        assert [calls.detach(device, second), calls.detach(device, second)] == [{}, {}]
        assert await world.shown() == {"0": []}
        assert await world.rpc.call("bdev_nvme_get_controllers") == []
        desired = control.load(world.state)
        assert (desired.remotes(), len(desired.volumes())) == ([], 2)
        # What a person has declared for the subsystem is taken, and stays.
        mine = Remote("far", nqn=FAR, paths=(RemotePath("127.0.0.1", far.port),))
        await control.submit(world.state, Change(create=(mine,)))
        assert attach(first, subnqn="") == {}
        assert await world.shown() == {"0": [first]}
        assert calls.detach(device, first) == {}
        assert [one.name for one in control.load(world.state).remotes()] == ["far"]


async def test_what_is_not_there(world: World) -> None:
    calls, (first, _) = world.calls, world.volumes
    device = calls.create(0)
    assert calls.attach("nvme:nowhere", first)["error"] == "NOT_FOUND"
    assert calls.delete("virtio_blk:sma-0")["error"] == "NOT_FOUND"
    assert calls.attach(device, "00000000-0000-4000-8000-000000000000")["error"] == "NOT_FOUND"
    assert calls("AttachVolume", device_handle=device, volume={"volume_id": "AAAA"})["error"] == "INVALID_ARGUMENT"
    assert calls.detach(device, "00000000-0000-4000-8000-000000000000") == {}
    assert calls("AttachVolume", device_handle=device)["error"] == "INVALID_ARGUMENT"
    assert calls("CreateDevice", nvme={"physical_id": 1, "virtual_id": 1})["error"] == "INVALID_ARGUMENT"
    assert calls("CreateDevice", virtio_blk={"physical_id": 1})["error"] == "INVALID_ARGUMENT"
    assert await world.shown() == {"0": []}


async def test_it_outlives_agent_and_target(world: World, client: SpdkClient) -> None:
    """Killed, both of them: what was answered is there, and another agent goes on. Two at once agree."""
    device, (first, second) = world.calls.create(7), world.volumes
    world.calls.attach(device, first)
    await control.ask(world.state, "restart", {"target": "spdk", "rolling": False})
    with agent(world.state, *LOCAL) as (process, place), client.many(place) as other:
        assert other.create(7) == device
        assert [other.attach(device, second), world.calls.attach(device, second)] == [{}, {}]
        process.send_signal(signal.SIGKILL)
    assert world.calls.detach(device, first) == {}
    async with await Client.connect(world.state.rpc_socket) as rpc:
        world.rpc = rpc
        assert await world.shown() == {"7": [second]}


async def test_the_program_as_it_is_over_a_unix_socket(world: World, client: SpdkClient) -> None:
    """Root, and who the agent runs as, need no token there; nobody else gets to it."""
    path = world.state.run / "sma.sock:1"
    with agent(world.state, "--listen", f"unix:{path}"):
        request = {"method": "CreateDevice", "params": {"nvme": {"physical_id": "5", "virtual_id": "0"}}}
        address = f"unix:{path}".removesuffix(":1")
        found = await asyncio.to_thread(client.run, address, "1", request)
        assert path.stat().st_mode & 0o777 == 0o600
    assert found == {"handle": f"nvme:{NQN}5"}
    assert await world.shown() == {"5": []}


async def test_rights(state: StateDir) -> None:
    """Of each call: without a token nobody, with one who may."""
    with agent(state, "--listen", "127.0.0.1:0") as (_, place):
        async with grpc.aio.insecure_channel(place) as channel:
            viewer, operator = token(state, "viewer"), token(state, "operator")
            found = {
                call: [await refused(channel, call, secret) for secret in ("", "wrong", viewer, operator)]
                for call in CALLS
            }
    nobody = ["UNAUTHENTICATED", "UNAUTHENTICATED"]
    assert found.pop("GetQosCapabilities") == [*nobody, "INVALID_ARGUMENT", "INVALID_ARGUMENT"]
    assert found.keys() == {call for call in CALLS if call != "GetQosCapabilities"}
    assert all(codes[:3] == [*nobody, "PERMISSION_DENIED"] for codes in found.values()), found
    assert {codes[3] for codes in found.values()} <= {"INVALID_ARGUMENT", "NOT_FOUND"}


async def refused(channel: Any, call: str, secret: str) -> str:
    method = channel.unary_unary(
        f"/{SERVICE}/{call}", CLASSES[f"{call}Request"].SerializeToString, CLASSES[f"{call}Response"].FromString
    )
    metadata = [("authorization", f"Bearer {secret}")] if secret else []
    with pytest.raises(grpc.RpcError) as error:
        await method(CLASSES[f"{call}Request"](), metadata=metadata)
    assert "\n" not in (error.value.details() or "")
    return str(error.value.code().name)


async def test_tls_and_client_certificates(state: StateDir, tmp_path: Path) -> None:
    """With a CA, nobody without a certificate of its; one that is not known needs a token. No target is needed."""
    certificate(tmp_path, "ca")
    for name in ("server", "known", "unknown"):
        certificate(tmp_path, name, ca="ca")
    certificate(tmp_path, "foreign")
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "known.pem").read_text())
    with Store(state.store) as store:
        store.add_credential(of_certificate("known", "viewer", der, 0))
    secret = token(state, "viewer")
    served = ("--listen", "0.0.0.0:0", "--tls-cert", f"{tmp_path}/server.pem", "--tls-key", f"{tmp_path}/server.key")

    async def ask(place: str, name: str, secret: str = "") -> str:
        pair = [(tmp_path / f"{name}.{end}").read_bytes() for end in ("key", "pem")] if name else [None, None]
        credentials = grpc.ssl_channel_credentials((tmp_path / "ca.pem").read_bytes(), *pair)
        async with grpc.aio.secure_channel(place.replace("0.0.0.0", "127.0.0.1"), credentials) as channel:
            return await refused(channel, "GetQosCapabilities", secret)

    let_in = "INVALID_ARGUMENT"  # of what is asked
    with agent(state, *served) as (_, place):
        assert [await ask(place, *shown) for shown in (("",), ("", secret), ("known",))] == [
            "UNAUTHENTICATED", let_in, "UNAUTHENTICATED",
        ]  # fmt: skip
    with agent(state, *served, "--client-ca", f"{tmp_path}/ca.pem") as (_, place):
        found = {name: await ask(place, name) for name in ("known", "unknown")}
        assert found == {"known": let_in, "unknown": "UNAUTHENTICATED"}
        assert await ask(place, "unknown", secret) == let_in
        # TLS ends before anything is asked.
        for shown in ("", "foreign"):
            assert await ask(place, shown, secret) == "UNAVAILABLE"
