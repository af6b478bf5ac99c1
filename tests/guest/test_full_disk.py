"""A guest on its disks while nothing can be written under the state directory, and the processes there die."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from smalldisk import kept_full, small_disk
from world import World, kill, sparse, started

from nvmuser.errors import SetupError
from nvmuser.model.change import Change
from nvmuser.model.objects import Volume

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANY = 10


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["tmpfs", pytest.param("ext4", marks=pytest.mark.matrix)]
)
async def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    root = tmp_path_factory.mktemp("f")
    with small_disk(root / "s", "16m", request.param):
        async with started(root) as world:
            yield world


@pytest.mark.parametrize("kills", [1, pytest.param(MANY, marks=pytest.mark.matrix)])
@pytest.mark.parametrize("victim", ["target", "endpoint", "supervisor"])
async def test_killed_on_a_full_disk(world: World, victim: str, kills: int) -> None:
    """Each time all of it comes back, with not a byte free at any moment."""

    async def strike() -> None:
        before = await world.status()
        if victim == "supervisor":
            await world.replace_supervisor()
            # What it took over, it can bring back.
            before = await world.status()
            kill(before, "target")
        else:
            kill(before, victim)
        await world.recovered(before)

    with kept_full(world.deployment.state.root / "filler"):
        for _ in range(kills):
            await world.survives(strike)


async def test_status_says_so_and_changes_are_refused_whole(world: World, tmp_path: Path) -> None:
    state = world.deployment.state
    with kept_full(state.root / "filler"):
        errors = (await world.status())["errors"]
        assert [error for error in errors if f" {state.root}: its file system is full" in error]
        many = tuple(Volume(f"v{number}", path=str(sparse(tmp_path / f"v{number}"))) for number in range(200))
        with pytest.raises(SetupError, match="no room to record it: database or disk is full"):
            await world.deployment.control.call("change", {"change": Change(create=many).to_json()})
        objects = await world.deployment.control.call("drift")
        assert not [name for name in objects["in_sync"] if name.startswith("volume/v")]
    await world.deployment.disk("later", sparse(tmp_path / "later"))
    await world.deployment.forget("later")
