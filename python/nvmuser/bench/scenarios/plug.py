"""How long a guest waits for a disk: a controller plugged in, a namespace attached, beside a bare QMP script.

Owns one deployment and one guest for the measurement. What it times is `nvmuser.guest.hotplug` and the control
plane as people use them, up to the moment at which the guest's kernel has made the block device.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvmuser.bench.measure.deployment import Deployment
from nvmuser.bench.measure.progress import Progress
from nvmuser.bench.rounds.alternate import alternate
from nvmuser.errors import GuestError
from nvmuser.guest import Guest, GuestSpec, hotplug, launch
from nvmuser.guest.hotplug import Transport
from nvmuser.guest.qemu import controller as device
from nvmuser.guest.qmp import connected
from nvmuser.guest.spec import MIB
from nvmuser.model import change as changes
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.supervisor import control

MOST_ROUNDS = 15
"""Two controllers a round, and a guest has 32 root ports."""

_VOLUME = 16 * MIB
_DEADLINE = 60.0
_BASE = "base"

# Fine enough for what is measured, and leaves the guest's CPUs to its driver.
_WATCH = "echo ready; until [ -b /dev/{name} ]; do usleep 2000; done; echo there"


@dataclass(frozen=True)
class Plugging:
    """Seconds, one for each round."""

    plug: list[float]
    attach: list[float]
    bare_qmp: list[float]

    def to_json(self) -> dict[str, Any]:
        """Median and maximum of each."""
        series = {"plug_s": self.plug, "attach_s": self.attach, "bare_qmp_s": self.bare_qmp}
        return {name: {"median": statistics.median(each), "max": max(each)} for name, each in series.items()}


async def plugging(root: Path, rounds: int, progress: Progress | None = None) -> Plugging:
    """Measure ours and the bare script in alternating rounds.

    :param root: a directory with a short path, for sockets are in it.
    """
    monitor = root / "qmp2"
    async with Deployment.start(root / "s") as deployment:
        state = deployment.state
        await control.submit(state, _declaration(rounds))
        async with launch(_guest(state, monitor, rounds), root / "g") as guest:
            found = await alternate(_measurements(guest, state, monitor), rounds, progress)
    return Plugging(found["plug"], found["attach"], found["bare QMP"])


def _declaration(rounds: int) -> Change:
    """Controllers to plug, with a volume each; volumes to attach to a controller that the guest has from the
    start.
    """
    names = [_BASE, *(f"p{number}" for number in range(2 * rounds))]
    volumes = [Volume(name=name, size=_VOLUME) for name in (*names, *(f"a{number}" for number in range(rounds)))]
    controllers = [Controller(name=name, namespaces=(Namespace(volume=name),)) for name in names]
    return Change(create=(*volumes, *controllers))


def _guest(state: StateDir, monitor: Path, rounds: int) -> GuestSpec:
    # A monitor serves one session, and the guest's own is taken by `launch`.
    second = ("-chardev", f"socket,id=qmp2,path={monitor},server=on,wait=off", "-qmp", "chardev:qmp2")
    return GuestSpec(cpus=2, memory=512 * MIB, sockets=(state.socket(_BASE),), spare_ports=2 * rounds, qemu_args=second)


def _measurements(guest: Guest, state: StateDir, monitor: Path) -> dict[str, Callable[[int], Awaitable[float]]]:
    """What to time in each round, by name. Each plug takes the next controller, the next port and the next device."""
    numbers = itertools.count()

    async def plug(_round: int) -> float:
        number = next(numbers)

        async def ours() -> None:
            async with connected(monitor) as qmp:
                await hotplug.perform(state, qmp, [f"p{number}"], Transport())

        return await _timed(guest, f"nvme{number + 1}n1", ours)

    async def bare(_round: int) -> float:
        number = next(numbers)

        async def script() -> None:
            port = f"port{number + 1}"  # port0 is taken by the base, and all before by earlier plugs
            await asyncio.to_thread(_bare_device_add, monitor, device(state.socket(f"p{number}"), port))

        return await _timed(guest, f"nvme{number + 1}n1", script)

    async def attach(number: int) -> float:
        async def ours() -> None:
            base = control.load(state).get(Key("controller", _BASE))
            assert isinstance(base, Controller)
            await control.submit(state, Change(update=(changes.attach(base, f"a{number}"),)))

        return await _timed(guest, f"nvme0n{number + 2}", ours)

    return {"plug": plug, "bare QMP": bare, "attach": attach}


async def _timed(guest: Guest, name: str, act: Callable[[], Awaitable[None]]) -> float:
    """Seconds from the start of an act until the guest has the block device.

    :raises GuestError: the device did not appear in time.
    """
    try:
        async with asyncio.timeout(_DEADLINE), guest.stream(_WATCH.format(name=name)) as watch:
            lines = aiter(watch)
            await anext(lines)
            began = time.monotonic()
            await act()
            await anext(lines)
            return time.monotonic() - began
    except TimeoutError:
        raise GuestError(f"the guest did not see {name} within {_DEADLINE:g} s") from None


def _bare_device_add(monitor: Path, arguments: dict[str, Any]) -> None:
    """Do what a script without nvmuser needs at least: connect, negotiate, send one command."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(monitor))
        lines = line.makefile("rw")
        lines.readline()
        for command in ({"execute": "qmp_capabilities"}, {"execute": "device_add", "arguments": arguments}):
            lines.write(json.dumps(command) + "\n")
            lines.flush()
            while "return" not in (reply := json.loads(lines.readline())):
                if "error" in reply:
                    raise GuestError(f"QMP: {reply['error']['desc']}")
