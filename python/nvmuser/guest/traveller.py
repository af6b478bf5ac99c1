"""One side of a guest's move from host to host of a fleet: a process that a supervisor starts when it is needed.

Each step is recorded in etcd (`nvmuser.fleet.travel`), so that a traveller that is killed is followed by another one,
which goes on from there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from nvmuser.errors import NvmuserError
from nvmuser.fleet.session import session
from nvmuser.fleet.settings import FleetSettings
from nvmuser.fleet.travel import Log
from nvmuser.guest.arrival import Destination
from nvmuser.guest.departure import Source
from nvmuser.paths import StateDir

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """One process for each side: a supervisor that is started again starts another one."""
    with path.open("a") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


async def travel(state: StateDir, controller: str, side: str) -> None:
    """One side's part of a move.

    :param side: `source` or `destination`.
    :raises NvmuserError: it cannot go on.
    """
    settings = FleetSettings.required(state)
    kind = Source if side == "source" else Destination
    async with _alone(state.run / f"move.{controller}.{side}"), session(settings) as one:
        await kind(state, settings.host, one, Log(one, controller)).run()


def main() -> int:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m nvmuser.guest.traveller")
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("controller")
    parser.add_argument("side", choices=("source", "destination"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s traveller {options.side}: %(message)s")
    try:
        asyncio.run(travel(StateDir(options.state_dir), options.controller, options.side))
    except NvmuserError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
