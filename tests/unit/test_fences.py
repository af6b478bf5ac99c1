"""The journal of fences: whose address is a dead process's, and what a damaged journal leads to."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from nvmuser.ceph.worker import same_client
from nvmuser.errors import SetupError
from nvmuser.hostfs.fences import Fence, Journal


def test_an_address_is_alive_as_long_as_its_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "fences.json")
    assert journal.addresses("c", alive=False) == []
    child = subprocess.Popen(["sleep", "60"])
    journal.add(Fence.of("c", "10.0.0.1:0/1", os.getpid()))
    journal.add(Fence.of("c", "10.0.0.1:0/2", child.pid))
    journal.add(Fence.of("other", "10.0.0.1:0/3", os.getpid()))
    assert journal.addresses("c", alive=True) == ["10.0.0.1:0/2", "10.0.0.1:0/1"]
    child.kill()
    child.wait()
    assert Journal(tmp_path / "fences.json").addresses("c", alive=False) == ["10.0.0.1:0/2"]
    assert journal.addresses("c", alive=True) == ["10.0.0.1:0/1"]


def test_what_was_before_a_reboot_is_dead_whoever_has_its_number(tmp_path: Path) -> None:
    mine = Fence.of("c", "10.0.0.1:0/1", os.getpid())
    assert mine.alive
    assert not replace(mine, boot="another").alive
    assert not replace(mine, started=mine.started + 1).alive


def test_those_that_have_ended_are_not_kept_for_ever_and_those_that_live_are(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "fences.json")
    journal.add(Fence.of("c", "10.0.0.1:0/0", os.getpid()))
    for number in range(1, 100):
        journal.add(replace(Fence.of("c", f"10.0.0.1:0/{number}", os.getpid()), boot="another"))
    dead = journal.addresses("c", alive=False)
    assert dead[0] == "10.0.0.1:0/99"
    assert 60 < len(dead) < 70
    assert journal.addresses("c", alive=True) == ["10.0.0.1:0/0"]


@pytest.mark.parametrize("text", ["{", "[{}]", "[1]"])
def test_a_damaged_journal_stops_everything_that_relies_on_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "fences.json").write_text(text)
    with pytest.raises(SetupError, match="the journal of fences cannot be read"):
        Journal(tmp_path / "fences.json").addresses("c", alive=False)


def test_one_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="the journal of fences cannot be written"):
        Journal(tmp_path / "none" / "fences.json").add(Fence.of("c", "10.0.0.1:0/1", os.getpid()))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1:0/12", "127.0.0.1:0/12", True),
        ("[v2:127.0.0.1:0/12,v1:127.0.0.1:0/12]", "127.0.0.1:0/12", True),
        ("v1:127.0.0.1:0/12", "[v2:127.0.0.1:0/12]", True),
        ("127.0.0.1:0/12", "127.0.0.1:0/123", False),
        ("127.0.0.1:0/12", "127.0.0.2:0/12", False),
        ("", "", False),
    ],
)
def test_addresses_are_compared_as_clients(one: str, other: str, same: bool) -> None:
    assert same_client(one, other) is same
