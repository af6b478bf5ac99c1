"""`nvmuser guest migrate` to another host of the fleet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from nvmuser.cli import progress as progresses
from nvmuser.cli.present import run, say
from nvmuser.errors import GuestError
from nvmuser.extras import require_extra
from nvmuser.fleet.journey import ARRIVED, ASKED, DONE, LEFT, READY, REFUSED, RELEASED, WAITING, Journey
from nvmuser.fleet.settings import FleetSettings
from nvmuser.guest.registry import registry
from nvmuser.model.sizes import approximate
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

_STEPS = {
    ASKED: "looking whether it can move",
    READY: "preparing the destination",
    WAITING: "moving",
    LEFT: "starting it there",
    ARRIVED: "forgetting it here",
    REFUSED: "giving up",
    RELEASED: "going on here",
}


def migrate(
    state: StateDir, settings: FleetSettings, name: str, to: str, bandwidth: int, downtime: float, as_json: bool
) -> None:
    """Have it moved, by both hosts' supervisors, and print how it went.

    :raises NvmuserError: it goes on here.
    """
    require_extra("fleet", "a guest's move in a fleet")
    record = registry(state).get(name)
    if not record.sockets:
        raise GuestError(f"guest {name!r} has no controllers: a fleet has nothing of it")
    controllers = (Path(record.sockets[0]).parent.name,)
    journey = Journey(settings.host, to, controllers, bandwidth=bandwidth, downtime=downtime)
    with progresses.Progress() as progress:
        shown: list[str] = []

        def show(now: Journey) -> None:
            if [now.state] != shown[-1:] and now.state in _STEPS:
                shown.append(now.state)
                progress.step(_STEPS[now.state])

        ended = run(_sent(settings, journey, show))
    if ended.state != DONE:
        raise GuestError(f"guest {name} stays on host {settings.host}: {ended.reason}")
    if ended.reason:
        raise GuestError(f"guest {name}: {ended.reason}; its disks are host {to}'s")
    if as_json:
        say({"name": name, "host": to, "total": ended.seconds, "downtime": ended.stopped, "bytes": ended.sent})
    else:
        click.echo(
            f"guest {name} runs on host {to}: {ended.seconds:.1f} s, {approximate(ended.sent)}, stopped for "
            f"{ended.stopped:.2f} s"
        )


async def _sent(settings: FleetSettings, journey: Journey, on_step: Callable[[Journey], None]) -> Journey:
    from nvmuser.fleet.session import session
    from nvmuser.fleet.travel import send

    async with session(settings) as one:
        return await send(one, journey, control.local_actor(), on_step)
