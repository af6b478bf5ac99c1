"""The API as a process of its own, over a real target: TLS, the UNIX socket, figures that agree with SPDK, a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_process import NVMUSER, SLEEPING, certificate, serving, token
from prometheus_client.parser import text_string_to_metric_families

from nvmuser.bench.scenarios.scale_driver import READ, Driver
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.store import Store
from nvmuser.store.credentials import digest, of_certificate
from nvmuser.supervisor import daemon
from nvmuser.top.sample import take


@dataclass
class Served:
    state: StateDir
    client: httpx.AsyncClient
    api: subprocess.Popen[str]


@pytest.fixture
def state() -> Iterator[StateDir]:
    """Sockets have short paths."""
    with tempfile.TemporaryDirectory(prefix="nvmuser-") as directory:
        yield StateDir(Path(directory))


@pytest.fixture
async def served(state: StateDir) -> AsyncIterator[Served]:
    async with daemon.running(state, SLEEPING):
        with serving(state, "--listen", "127.0.0.1:0") as (api, (url,)):
            headers = {"Authorization": f"Bearer {token(state, 'admin')}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
                yield Served(state, client, api)


async def metrics(client: httpx.AsyncClient) -> dict[str, dict[str, float]]:
    """Samples by name, then by the values of their labels."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[" ".join(sample.labels.values())] = sample.value
    return found


async def test_from_a_volume_to_figures_that_agree(served: Served) -> None:
    """Declared, seen as it fares, written by SPDK's own client, and counted to the digit."""
    client = served.client
    made = await client.post("/v1/volumes", json={"name": "a", "size": "8M"})
    assert made.status_code == 201, made.text
    assert (await client.post("/v1/controllers", json={"name": "c", "namespaces": ["a"]})).status_code == 201
    assert (await client.get("/v1/controllers/c")).json()["status"]["state"] == "in-sync"
    async with await Client.connect(served.state.rpc_socket) as rpc:
        # What makes a controller reads the volume; at rest nothing does.
        stats = (await rpc.call("bdev_get_iostat", {"name": "a"}))["bdevs"][0]
        ticks = (await rpc.call("bdev_get_iostat"))["tick_rate"]
        shown = await metrics(client)
        assert shown["nvmuser_volume_reads_completed_total"]["a"] == stats["num_read_ops"]
        assert shown["nvmuser_volume_read_bytes_total"]["a"] == stats["bytes_read"]
        assert shown["nvmuser_volume_writes_completed_total"]["a"] == stats["num_write_ops"]
        assert shown["nvmuser_volume_read_time_seconds_total"]["a"] == stats["read_latency_ticks"] / ticks
        (counted,) = (await client.get("/v1/statistics")).json()["items"]
        assert counted["read"]["operations"] == stats["num_read_ops"]  # which the page shows
        seen = (await take(served.state)).volumes["a"]
        assert (seen.read.operations, seen.read.bytes) == (stats["num_read_ops"], stats["bytes_read"])
        assert seen.write.latency_s == stats["write_latency_ticks"] / ticks
        await rpc.call("bdev_aio_delete", {"name": "a"})
    drifted = await client.post("/v1/reconcile")
    assert drifted.json()["calls"] > 0
    assert shown["nvmuser_target_up"] == {"spdk": 1}
    assert shown["nvmuser_object_in_sync"]["volume a"] == 1


async def test_latencies_are_counted_when_that_is_wanted(served: Served) -> None:
    """From the first look on, also in the target's next process; and not without the option."""
    client = served.client
    await client.post("/v1/volumes", json={"name": "a", "size": "64M"})
    await client.post("/v1/pools", json={"name": "p", "base": "a"})
    with serving(served.state, "--listen", "127.0.0.1:0", "--latencies") as (_, (url,)):
        async with httpx.AsyncClient(base_url=url, headers=client.headers, timeout=60) as other:
            for name in ("v", "w"):
                before = (await metrics(other))["nvmuser_volume_writes_completed_total"]["a"]
                # What the pool records of it is written to the volume below.
                made = await client.post(
                    "/v1/volumes", json={"name": name, "backend": "lvol", "pool": "p", "size": "4M"}
                )
                assert made.status_code == 201, made.text
                shown = await metrics(other)
                counted = shown["nvmuser_volume_latency_seconds_count"]["a"]
                assert counted >= shown["nvmuser_volume_writes_completed_total"]["a"] - before > 0
                assert shown["nvmuser_volume_latency_seconds_bucket"]["a +Inf"] == counted
                assert shown["nvmuser_volume_latency_seconds_sum"]["a"] > 0
                begun = await client.post("/v1/targets/spdk/restart")
                await client.get(begun.headers["location"], params={"wait": 60})
    assert "nvmuser_volume_latency_seconds_count" not in await metrics(client)


async def test_a_restart_is_an_operation(served: Served) -> None:
    begun = await served.client.post("/v1/targets/spdk/restart")
    assert begun.status_code == 202
    while (ended := (await served.client.get(begun.headers["location"], params={"wait": 60})).json())["ended"] is None:
        pass
    assert (ended["state"], ended["problem"]) == ("done", None)


async def test_a_recovery_is_counted_with_how_long_its_client_waited(served: Served) -> None:
    """A target that is killed under a client is one recovery, and one stall of the histogram."""
    client = served.client
    await client.post("/v1/volumes", json={"name": "a", "size": "8M"})
    assert (await client.post("/v1/controllers", json={"name": "c", "namespaces": ["a"]})).status_code == 201
    driver = Driver(served.state.socket("c"))
    try:
        await driver.start()
        assert await driver.command(READ, 0) == 0
        before = await metrics(client)
        assert before["nvmuser_controller_recoveries_total"]["c"] == 0
        assert before["nvmuser_controller_stall_seconds_count"]["c"] == 0
        os.kill((await client.get("/v1/status")).json()["target"]["pid"], signal.SIGKILL)
        async with asyncio.timeout(60):
            while not driver.resets:  # noqa: ASYNC110 (the driver tells nobody)
                await asyncio.sleep(0.02)
            assert await driver.command(READ, 0) == 0
        shown = await metrics(client)
        (guest,) = (await client.get("/v1/status")).json()["guests"]
    finally:
        driver.close()
    assert shown["nvmuser_controller_recoveries_total"]["c"] == guest["recoveries"] == 1
    waited = guest["last_stall"]
    assert shown["nvmuser_controller_stall_seconds_sum"]["c"] == waited > 0
    buckets = {labels.removeprefix("c "): n for labels, n in shown["nvmuser_controller_stall_seconds_bucket"].items()}
    assert shown["nvmuser_controller_stall_seconds_count"]["c"] == buckets["+Inf"] == 1
    assert buckets == {bound: float(waited <= float(bound)) for bound in buckets}


async def test_what_spdk_refuses_is_undone_and_said(served: Served) -> None:
    await served.client.post("/v1/volumes", json={"name": "a", "size": "8M"})
    async with await Client.connect(served.state.rpc_socket) as rpc:
        await rpc.call("bdev_null_create", {"name": "b", "num_blocks": 8, "block_size": 512})
    refused = await served.client.post("/v1/volumes", json={"name": "b", "size": "8M"})
    assert refused.status_code == 409
    assert "nothing was changed" in refused.json()["detail"]
    assert [one["spec"]["name"] for one in (await served.client.get("/v1/volumes")).json()["items"]] == ["a"]


async def test_killed_while_many_change_no_half_change_is_left(served: Served) -> None:
    """What was answered is there; what was not is there whole, or not at all. Another API goes on at once."""
    made: list[str] = []

    async def make(number: int) -> None:
        body = {"volumes": [{"name": f"{kind}{number}", "size": "1M"} for kind in "ab"]}
        if (await served.client.post("/v1/spec", json=body)).status_code == 200:
            made.append(str(number))
        if len(made) == 5:
            served.api.send_signal(signal.SIGKILL)

    work = [make(number) for number in range(40)]
    await asyncio.gather(*work, return_exceptions=True)
    served.api.wait(30)
    with serving(served.state, "--listen", "127.0.0.1:0") as (_, (url,)):
        async with httpx.AsyncClient(base_url=url, headers=served.client.headers, timeout=60) as client:
            await client.post("/v1/reconcile")
            names = [one["spec"]["name"] for one in (await client.get("/v1/volumes?limit=1000")).json()["items"]]
            status = (await client.get("/v1/status")).json()
    assert {name[1:] for name in names} >= set(made)
    assert {name[1:] for name in names if name[0] == "a"} == {name[1:] for name in names if name[0] == "b"}
    assert not status["objects"]["missing"]
    assert not status["objects"]["drifted"]


async def test_two_at_once(served: Served) -> None:
    with serving(served.state) as (_, (place,)):
        transport = httpx.AsyncHTTPTransport(uds=place.removeprefix("unix:"))
        async with httpx.AsyncClient(transport=transport, base_url="http://api", timeout=60) as other:
            assert (await other.get("/v1/principal")).json()["source"] == "unix"
            clients = [served.client, other] * 8
            answers = await asyncio.gather(
                *(one.post("/v1/volumes", json={"name": f"v{n}", "size": "1M"}) for n, one in enumerate(clients)),
                *(one.post("/v1/volumes", json={"name": "same", "size": "1M"}) for one in clients[:2]),
            )
            assert sorted(answer.status_code for answer in answers) == [201] * 17 + [409]
            for one in clients[:2]:
                assert len((await one.get("/v1/volumes")).json()["items"]) == 17


def test_tls_and_client_certificates(state: StateDir, tmp_path: Path) -> None:
    """No target is needed to know who asks."""
    import ssl

    certificate(tmp_path, "ca")
    for name in ("known", "unknown"):
        certificate(tmp_path, name, ca="ca")
    certificate(tmp_path, "server", ca="ca")
    known = ssl.PEM_cert_to_DER_cert((tmp_path / "known.pem").read_text())
    with Store(state.store) as store:
        store.add_credential(of_certificate("known", "operator", known, 0))
    files = ("--tls-cert", f"{tmp_path}/server.pem", "--tls-key", f"{tmp_path}/server.key")
    with serving(state, "--listen", "0.0.0.0:0", *files, "--client-ca", f"{tmp_path}/ca.pem") as (_, (url,)):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert url.startswith("https://")
        found: dict[str, Any] = {}
        for name in ("", "known", "unknown"):
            context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
            if name:
                context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
            with httpx.Client(verify=context) as client:
                found[name] = client.get(f"{url}/v1/principal")
        assert [found[name].status_code for name in ("", "known", "unknown")] == [401, 200, 401]
        assert found["known"].json()["name"] == "certificate known"
        assert digest(known) not in found["known"].text


@pytest.mark.parametrize(
    "place", ["0.0.0.0:8460", "[::]:8460", "192.0.2.1:80", "nowhere", "1:2:3", "unix:" + "x" * 200]
)
def test_places_where_it_does_not_listen(state: StateDir, place: str) -> None:
    command = [*NVMUSER, "--state-dir", str(state.root), "api", "serve", "--listen", place]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1


def test_the_unit_runs_what_was_said(state: StateDir) -> None:
    command = [*NVMUSER, "--state-dir", str(state.root), "api", "unit", "--listen", "10.0.0.1:8460"]
    unit = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 'api serve "--listen" "10.0.0.1:8460"' in unit
    assert f'--state-dir "{state.root}"' in unit
