"""Where `nvmuser guest migrate` is to send a guest: a host of the fleet, or a state directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_run import Run

from nvmuser.fleet.settings import FleetSettings
from nvmuser.paths import StateDir

ASIDE = "--state-dir"


@pytest.fixture
def member(tmp_path: Path) -> str:
    """The state directory of a host of a fleet whose etcd is away."""
    state = StateDir(tmp_path / "h1")
    state.root.mkdir()
    FleetSettings("main", "h1", ("http://127.0.0.1:1",)).save(state)
    return str(state.root)


def test_outside_of_a_fleet_it_is_a_directory(run: Run, tmp_path: Path) -> None:
    status, _, err = run(ASIDE, str(tmp_path), "guest", "migrate", "box", "--to", "h2")
    assert status == 1
    assert "h2: no such state directory, and this host belongs to no fleet" in err


def test_in_a_fleet_a_slash_makes_it_one(run: Run, member: str) -> None:
    status, _, err = run(ASIDE, member, "guest", "migrate", "box", "--to", "./h2")
    assert (status, err) == (1, "nvmuser: ./h2: no such state directory\n")
    status, _, err = run(ASIDE, member, "guest", "migrate", "box", "--to", member)
    assert (status, "the guest is there already" in err) == (2, True)


def test_to_a_host_qemu_chooses_where_it_waits(run: Run, member: str) -> None:
    status, _, err = run(ASIDE, member, "guest", "migrate", "box", "--to", "h2", "--uri", "tcp:x:1")
    assert (status, "--uri: is for another state directory" in err) == (2, True)
    status, _, err = run(ASIDE, member, "guest", "migrate", "box", "--to", "h2")
    assert (status, "there is no guest 'box'" in err) == (1, True)
