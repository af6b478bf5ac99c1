"""Hugepages that others take between counting and starting: a target says what is short, or does without.

The mount of hugepages is one of the test's own, with room for none: others on the machine notice nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts hugepages")

START = """
import asyncio, os, sys
from pathlib import Path
from nvmuser.errors import TargetError
from nvmuser.hostfs import hugepages
from nvmuser.paths import StateDir
from nvmuser.supervisor.spdk import Options, Target
from nvmuser.toolchain import find_spdk

asked = {"asked": True, "counted": None}[sys.argv[2]]
state = StateDir(Path(sys.argv[1]))
for directory in (state.run, state.logs):
    directory.mkdir(parents=True)
count = hugepages.why_unusable

async def main():
    # They are counted once before the start, and once more when it has failed.
    counted = iter((None,))
    hugepages.why_unusable = lambda size: next(counted, count(size))
    try:
        target = await Target.start(state, find_spdk(), Options(asked, (min(os.sched_getaffinity(0)),)), 1)
    except TargetError as error:
        print(error)
    else:
        print("hugepages" if target.hugepages else "no hugepages", target.options.hugepages)
        await target.stop()

asyncio.run(main())
"""


def started(state: Path, how: str) -> str:
    """What becomes of a target for which there seemed to be hugepages."""
    mount = 'mount -t hugetlbfs -o size=4M nodev /dev/hugepages && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", START, str(state), how]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def test_a_target_that_took_what_there_seemed_to_be_does_without(tmp_path: Path) -> None:
    assert started(tmp_path / "state", "counted") == "no hugepages None"


def test_one_that_was_to_have_them_says_what_is_short(tmp_path: Path) -> None:
    said = started(tmp_path / "state", "asked")
    assert said == (
        "no hugepages: 512 MiB of hugepages are needed, and the mount on /dev/hugepages has 4 MiB left: "
        "umount /dev/hugepages, and mount it with a higher size="
    )
