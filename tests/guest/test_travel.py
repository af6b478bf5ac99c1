"""A guest that moves between two deployments: real SPDK, QEMU and Linux, over libvfio."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from remote_pair import free_port
from travel import DISKS, NAME, Travel, nvmuser, only_here, openers, until_copying

from nvmuser.bench.measure.progress import Silent
from nvmuser.bench.scenarios.migrate import MigratePlan, measure
from nvmuser.guest.registry import registry
from nvmuser.hostfs import hugepages

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESETS = "dmesg | grep -c 'resetting controller' || true"


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.matrix)])
async def test_there_and_back_while_it_writes(travel: Travel, rounds: int) -> None:
    """Its drivers do not notice; the controllers can be reset as before."""
    boot, resets = await travel.boot_id(), await travel.run(RESETS)
    for _ in range(rounds):
        await travel.load.begin()
        for _ in range(2):
            status, out, err = await travel.cli("--json")
            assert status == 0, err
            result = json.loads(out)
            assert result["bytes"] > 0
            assert 0 < result["downtime"] < result["total"]
            await only_here(travel)
        assert await travel.run(RESETS) == resets
        await travel.run("for one in /sys/class/nvme/nvme[0-9]; do echo 1 > $one/reset_controller; done")
        await travel.check()
    assert await travel.boot_id() == boot


async def test_given_up_while_memory_is_copied(travel: Travel) -> None:
    boot = await travel.boot_id()
    await travel.load.begin()
    moving = await travel.begin("--bandwidth", "20M")
    await until_copying(travel)
    moving.send_signal(signal.SIGINT)
    out, err = await moving.communicate()
    assert moving.returncode == 130, (out, err)
    assert b"Traceback" not in err
    await only_here(travel)
    await travel.check()
    assert await travel.boot_id() == boot


async def test_another_volume_there(travel: Travel) -> None:
    """Refused before the guest's QEMU hears of it."""
    there = travel.elsewhere
    with_size = travel.a.state.root.parent / "other"
    with_size.write_bytes(bytes(8 << 20))
    declared = json.loads((await nvmuser(there, "controller", "list", "--json"))[1])
    for one in declared:  # expected there, if the guest has been there before
        assert (await nvmuser(there, "controller", "release", one["name"]))[0] == 0
    await there.disk("one", with_size)
    status, _out, err = await travel.cli()
    assert status == 1
    assert "another one here" in err
    await there.forget("one")
    await only_here(travel)
    assert (await travel.run("cat /sys/class/nvme/nvme0/state")).strip() == "live"


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("serial", "NU00000000000000"),
        ("nqn", "nqn.2026-11.org.nvmuser:another"),
        ("size", 8 << 20),
        ("block_size", 4096),
        ("uuid", "00000000-0000-4000-8000-000000000001"),
    ],
)
async def test_a_destination_that_expects_another_controller(
    travel: Travel, tmp_path: Path, field: str, value: object
) -> None:
    """Refused before the guest's QEMU hears of it: its I/O goes on."""
    there = travel.elsewhere
    for name in json.loads((await nvmuser(there, "controller", "list", "--json"))[1]):
        assert (await nvmuser(there, "controller", "release", name["name"]))[0] == 0
    described = json.loads((await nvmuser(travel.here, "controller", "show", "one", "--json"))[1])
    (described if field in described else described["namespaces"][0])[field] = value
    if field == "size":
        (tmp_path / "other").write_bytes(bytes(8 << 20))
        described["namespaces"][0]["path"] = str(tmp_path / "other")
    (tmp_path / "one.json").write_text(json.dumps(described))
    status, _, err = await nvmuser(there, "controller", "prepare-incoming", "one", "--from", str(tmp_path / "one.json"))
    assert status == 0, err
    await travel.load.begin()
    status, _, err = await travel.cli()
    assert (status, field in err, "another one here" in err) == (1, True, True), err
    assert (await nvmuser(there, "controller", "release", "one"))[0] == 0
    await only_here(travel)
    await travel.check()


async def test_to_a_file_and_back(travel: Travel) -> None:
    """Its volumes are open nowhere in between."""
    boot, root = await travel.boot_id(), travel.a.state.root.parent
    await travel.load.begin()
    status, _, err = await nvmuser(travel.here, "guest", "suspend", NAME, str(root / "saved"))
    assert status == 0, err
    assert [openers(root / name) for name in DISKS] == [set()] * len(DISKS)
    assert registry(travel.here.state).list() == []
    status, _, err = await nvmuser(travel.here, "guest", "resume", NAME, str(root / "saved"))
    assert status == 0, err
    assert not (root / "saved").exists()
    await travel.check()
    await only_here(travel)
    assert await travel.boot_id() == boot


@pytest.mark.matrix
async def test_over_tcp(travel: Travel) -> None:
    boot = await travel.boot_id()
    await travel.load.begin()
    status, _, err = await travel.cli("--uri", f"tcp:127.0.0.1:{free_port()}")
    assert status == 0, err
    await travel.check()
    await only_here(travel)
    assert await travel.boot_id() == boot


@pytest.mark.matrix
async def test_another_qemu_with_the_memory_where_it_is(travel: Travel) -> None:
    """It goes on in a QEMU of its own, and none of its memory was written anywhere."""
    root, memory = travel.a.state.root.parent, Path("/dev/shm") / f"nvmuser-test-{os.getpid()}"
    await travel.end()
    await travel.boot("--memory-file", str(memory))
    boot = await travel.boot_id()
    await travel.load.prepare()
    await travel.load.begin()
    status, _, err = await travel.cli()
    assert status == 1
    assert "suspend and resume it" in err
    status, out, err = await nvmuser(travel.here, "guest", "suspend", NAME, str(root / "saved"), "--json")
    assert status == 0, err
    assert json.loads(out)["bytes"] < 64 << 20
    assert memory.exists()
    status, _, err = await nvmuser(travel.here, "guest", "resume", NAME, str(root / "saved"))
    assert status == 0, err
    await travel.check()
    await only_here(travel)
    assert await travel.boot_id() == boot
    await travel.end()
    assert not memory.exists()
    await travel.boot()
    await travel.load.prepare()


def _in_hugepages(travel: Travel) -> bool:
    """Whether its QEMU has memory in hugepages where it is."""
    [guest] = registry(travel.here.state).list()
    return "HugetlbPages:\t       0 kB" not in Path(f"/proc/{guest.pid}/status").read_text()


@pytest.mark.matrix
async def test_from_hugepages_to_small_pages_and_back(travel: Travel) -> None:
    """A destination that has no hugepages for it takes the guest all the same."""
    if hugepages.free_bytes() < 512 << 20:
        pytest.skip("too few hugepages are free")
    await travel.end()
    await travel.boot(hugepages=True)
    boot = await travel.boot_id()
    await travel.load.prepare()
    assert _in_hugepages(travel)
    await travel.load.begin()
    spare = hugepages.free_bytes()
    with hugepages.reserved(spare) if spare else contextlib.nullcontext():
        status, _, err = await travel.cli()
        assert status == 0, err
        assert not _in_hugepages(travel)
    status, _, err = await travel.cli()
    assert status == 0, err
    assert _in_hugepages(travel)
    await travel.check()
    assert await travel.boot_id() == boot
    await travel.end()
    await travel.boot()
    await travel.load.prepare()


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # QEMU outlives who starts it
async def test_memory_that_nobody_logs_is_found_to_be_wrong() -> None:
    """What finds nothing in the other tests would find it."""
    outcome = await measure(MigratePlan(2, mode="unlogged"), Silent())
    assert sum(one.memory_mismatches for one in outcome.ours.seen) > 100
