"""What a discovery service offers, asked of SPDK's."""

from __future__ import annotations

import json

import pytest
from remote_pair import NQN, Pair, free_port

from nvmuser.errors import RpcConnectionError
from nvmuser.hostfs import host_identity
from nvmuser.reconcile import discovery


async def test_subsystems_that_admit_this_host(pair: Pair) -> None:
    host = host_identity.load(pair.state)
    await pair.listen()
    assert NQN not in [offer.nqn for offer in await discovery.discover("127.0.0.1", pair.port, host)]
    await pair.admit(host.nqn)
    offers = await discovery.discover("127.0.0.1", pair.port, host)
    (mine,) = (offer for offer in offers if offer.nqn == NQN)
    assert mine.to_json() == {
        "nqn": NQN,
        "transport": "TCP",
        "address": "127.0.0.1",
        "port": str(pair.port),
        "kind": "NVM",
        "tls": False,
    }
    assert json.dumps([offer.to_json() for offer in offers])
    with pytest.raises(RpcConnectionError, match=r"[Rr]efused"):
        await discovery.discover("127.0.0.1", free_port(), host)
