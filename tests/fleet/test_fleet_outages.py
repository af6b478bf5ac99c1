"""Changes while etcd is killed and comes back: what a command says is what is so."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from pathlib import Path

import pytest
from bare_target import TargetFactory
from etcd_server import Etcd, cluster, running
from fleet_guest import nvmuser
from fleet_storage import RealHost, storage_world
from fleet_world import ADMIN, World, a_world, disk, pair, until

from nvmuser.bench.scenarios.fleet_outage import clients
from nvmuser.errors import ConflictError, FleetError, UnknownOutcome
from nvmuser.fleet import agent, audit, membership
from nvmuser.fleet.keys import prefix
from nvmuser.fleet.proposal import propose
from nvmuser.fleet.session import Session
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.reconcile.outcome import Outcome

_ADMINS = 4
_KILLS = 4


async def test_what_a_command_says_is_what_is_so(tmp_path: Path) -> None:
    with running(tmp_path / "etcd") as etcd:
        async with a_world(etcd.url, tmp_path, "outages") as world:
            await world.join("h1", run=False)
            stop, said = asyncio.Event(), dict[str, str]()
            admins = [asyncio.create_task(declare(world, f"a{number}", stop, said)) for number in range(_ADMINS)]
            for _ in range(_KILLS):
                await kill_when(etcd, said, len(said) + 6)
            stop.set()
            await asyncio.gather(*admins)
            async with world.session() as one:
                there = {key.name for key in (await one.view()).objects}
            created = [
                event["name"] for event in await audit.last(world.settings(), 10_000) if event["action"] == "create"
            ]
    done = {name for name, what in said.items() if what == "done"}
    refused = {name for name, what in said.items() if what == "refused"}
    assert done
    assert done <= there
    assert not refused & there
    assert sorted(created) == sorted(there), "each once, with its event"


async def kill_when(etcd: Etcd, said: dict[str, str], count: int) -> None:
    """Once so many changes have been answered."""
    while len(said) < count:  # noqa: ASYNC110 (others' doing)
        await asyncio.sleep(0.002)
    await asyncio.to_thread(etcd.kill)
    await asyncio.to_thread(etcd.start)


async def declare(world: World, admin: str, stop: asyncio.Event, said: dict[str, str]) -> None:
    """One volume after the other."""
    number = 0
    while not stop.is_set():
        name, number = f"{admin}-{number}", number + 1
        try:
            await world.apply(Change(create=(disk(name),)), "h1")
            said[name] = "done"
        except UnknownOutcome:
            said[name] = "unknown"
        except FleetError:
            said[name] = "refused"


async def test_a_member_of_three_is_killed(tmp_path: Path) -> None:
    """One after the other, so that it was the leader once: the others go on, and it comes back."""
    with cluster(tmp_path / "etcd") as members:
        async with a_world(",".join(member.url for member in members), tmp_path, "three") as world:
            h1 = await world.join("h1")
            for number, member in enumerate(members):
                member.kill()
                while (await declared(world, f"v{number}")) != "done":
                    pass
                await until(lambda: f"volume/v{number}" in h1.names)  # noqa: B023 (called at once)
                member.start()
            async with world.session() as one:
                assert {key.name for key in (await one.view()).objects} >= {"v0", "v1", "v2"}


async def declared(world: World, name: str) -> str:
    """What comes of declaring a volume; while members elect a leader, nothing."""
    try:
        await world.apply(Change(create=(disk(name),)), "h1")
    except FleetError:
        return "refused"
    except ConflictError as error:
        if "exists already" not in str(error):  # else by an earlier attempt whose outcome was unknown
            raise
    return "done"


async def test_an_idle_fleet_writes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """But leases, which are no revisions: hosts look whether something has changed, and say only what has."""
    monkeypatch.setattr(agent, "_LOOK_S", 0.02)
    looks = dict[str, int]()
    hosts = [await world.join(name) for name in ("h1", "h2")]
    await world.apply(pair("a"), "h1")
    async with world.session() as one:
        await until(lambda: has_arbiter(one))
        before = await one.client.listing(prefix(one.keys.root))
        for host in hosts:
            monkeypatch.setattr(host.executor, "problems", functools.partial(look, looks, host.settings.host))
        await until(lambda: len(looks) == len(hosts) and min(looks.values()) > 20)
        assert (await one.client.listing(prefix(one.keys.root))).items == before.items


def look(looks: dict[str, int], host: str) -> dict[Key, str]:
    looks[host] = looks.get(host, 0) + 1
    return {}


async def has_arbiter(one: Session) -> bool:
    return await one.client.get(one.keys.arbiter) is not None


async def test_what_failed_is_tried_again_although_others_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change that does not concern a host has it look up, which must not end its attempts."""
    monkeypatch.setattr(agent, "_AGAIN_S", 0.3)
    h1 = await world.join("h1")
    await world.join("h2")
    change, refused = h1.executor.change, asyncio.Event()

    async def refuse(one: Change) -> Outcome:
        refused.set()
        raise ConflictError("not now")

    monkeypatch.setattr(h1.executor, "change", refuse)
    async with world.session() as one:
        proposal = propose(await one.view(), Change(create=(disk("late"),)), {}, "h1")
        await one.writer(ADMIN).write(proposal)
    await refused.wait()
    await world.apply(Change(create=(disk("other"),)), "h2")
    monkeypatch.setattr(h1.executor, "change", change)
    await until(lambda: "volume/late" in h1.names)


async def test_labels_of_two_admins_are_not_lost(tmp_path: Path, world: World) -> None:
    await world.join("h1", run=False)

    async def label(name: str) -> None:
        async with world.session() as one:
            while True:
                try:
                    await membership.alter_host(one, "h1", ADMIN, labels={name: "x"})
                    return
                except ConflictError:
                    continue

    await asyncio.gather(*(label(f"l{number}") for number in range(8)))
    async with world.session() as one:
        assert len((await one.view()).hosts["h1"].labels) == 8


@pytest.mark.matrix
async def test_a_minute_without_etcd_under_load(
    tmp_path_factory: pytest.TempPathFactory, target_factory: TargetFactory
) -> None:
    """Every host goes on, a change is refused with the reason, and a target that is killed comes back all the same."""
    root = tmp_path_factory.mktemp("o")
    with running(root / "etcd") as etcd:
        async with storage_world(root, etcd, target_factory, None, ("h1", "h2", "h3")) as world, world.session() as one:
            async with clients(one, {name: host.state for name, host in world.hosts.items()}) as writers:
                with_ = await writers.longest(60)
                etcd.kill()
                writing = asyncio.create_task(writers.longest(60))
                began = time.monotonic()
                status, _, err = await nvmuser(world.hosts["h1"], "volume", "create", "late", "--size", "1M")
                refused = time.monotonic() - began
                assert (status != 0, "etcd" in err) == (True, True)
                without = await writing
            before = (await world.hosts["h3"].status())["target"]["pid"]
            os.kill(before, signal.SIGKILL)
            await until(lambda: is_another(world.hosts["h3"], before), 30)
            await asyncio.to_thread(etcd.start)
            await until(lambda: world.live(*world.hosts), 30)
    print(f"longest I/O with etcd {with_}, without {without}; refused after {refused:.1f} s")


async def is_another(host: RealHost, pid: int) -> bool:
    """Whether it is served by another process than it was."""
    target = (await host.status())["target"]
    return bool(target["ready"]) and target["pid"] != pid
