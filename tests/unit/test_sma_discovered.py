"""Which subsystem an SMA call means, of those that discovery services offer."""

from __future__ import annotations

from typing import Any

import pytest

from nvmuser.errors import NvmuserError, RpcConnectionError
from nvmuser.hostfs.host_identity import HostIdentity
from nvmuser.reconcile import discovery
from nvmuser.reconcile.discovery import Offer
from nvmuser.sma import discovered
from nvmuser.sma.messages import CLASSES

HOST = HostIdentity("nqn.2014-08.org.nvmexpress:uuid:me", "00000000-0000-4000-8000-000000000001")
A, B = "nqn.2026-11.org.example:a", "nqn.2026-11.org.example:b"


def offer(
    nqn: str, address: str = "10.0.0.1", *, transport: str = "TCP", kind: str = "NVM", tls: bool = False
) -> Offer:
    return Offer(nqn, transport, address, "4420", kind, tls)


def call(nqn: str, *ports: str, trtype: str = "tcp") -> Any:
    endpoints = [CLASSES["Address"](trtype=trtype, traddr="10.0.0.9", trsvcid=port) for port in ports]
    found = CLASSES["VolumeDiscoveryParameters"](discovery_endpoints=endpoints)
    return CLASSES["VolumeConnectionParameters"](subnqn=nqn, discovery=found)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Offer]]:
    """What each offers, by its port; at others nobody listens."""
    found: dict[int, list[Offer]] = {}

    async def discover(address: str, port: int, host: HostIdentity) -> list[Offer]:
        if port not in found:
            raise RpcConnectionError(f"{address} port {port}: Connection refused")
        return found[port]

    monkeypatch.setattr(discovery, "discover", discover)
    return found


async def test_each_address_is_a_path_once(services: dict[int, list[Offer]]) -> None:
    services[1] = [offer(A), offer(A, "fd00::1"), offer(A, transport="RDMA"), offer(B, "10.0.0.2")]
    services[2] = [offer(A), offer(A, "10.0.0.3"), offer(A, "10.0.0.4", kind="discovery")]
    remote = await discovered._offered(call(A, "1", "2", "3"), HOST)
    assert (remote.nqn, [str(path) for path in remote.paths]) == (
        A, ["10.0.0.1:4420", "[fd00::1]:4420", "10.0.0.3:4420"],
    )  # fmt: skip
    services[1] = [offer(B)]
    assert (await discovered._offered(call("", "1"), HOST)).nqn == B


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (call("nqn.2026-11.org.example:c", "1"), f"not offered to {HOST.nqn}"),
        (call("", "1"), f"several are offered: name one of {A}, {B}"),
        (call(B, "1"), f"{B} demands TLS"),
        (call(A), "needs a discovery endpoint"),
        (call(A, "1", trtype="rdma"), "the trtype tcp"),
        (call(A, "x"), "a port as trsvcid"),
        (call(A, "70000"), "port 70000"),
        (call(A, "2", "3"), "10.0.0.9 port 2: Connection refused"),
    ],
)
async def test_what_means_none(services: dict[int, list[Offer]], wanted: Any, reason: str) -> None:
    services[1] = [offer(A), offer(B, tls=True)]
    with pytest.raises(NvmuserError) as error:
        await discovered._offered(wanted, HOST)
    assert reason in str(error.value)
