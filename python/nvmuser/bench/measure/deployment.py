"""A deployment of our own for a measurement: a state directory, a supervisor with target and endpoint,
volumes.

Owns that supervisor: when the block ends, it and all it started are gone. Everything goes through the same
control plane that `nvmuser target` and `nvmuser volume` use, so that what is measured is what people get.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Self

from nvmuser.errors import TargetError
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.model.change import Change
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control, daemon
from nvmuser.supervisor.spdk import Options

_PATIENCE_S = 600.0
_LOOK_S = 0.02


class Deployment:
    """A running supervisor that we started."""

    def __init__(self, state: StateDir, control: Client) -> None:
        self.state = state
        self.control = control
        self._disks: set[str] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        root: Path,
        options: Options | None = None,
        *,
        standby: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Self]:
        """:param root: a short path, for UNIX sockets are in it; made if it is not there.
        :param environment: of its processes, in addition to ours.

        :raises TargetError: the target does not start.
        """
        state = StateDir(root.absolute())
        async with daemon.running(state, options, standby=standby, environment=environment) as control:
            yield cls(state, control)

    async def disk(self, name: str, backing: Path, *, direct: bool = False, thin: bool = False) -> Path:
        """A controller with one file volume on `backing`, which exists; made at the first call.

        :param thin: the file system need not have room for all of it.
        :returns: the vfio-user socket for a guest.
        """
        if name not in self._disks:
            volume = Volume(name=name, path=str(backing.absolute()), thin=thin)
            controller = Controller(name=name, namespaces=(Namespace(volume=name),))
            await self.control.call("change", {"change": Change(create=(volume, controller)).to_json()})
            self._disks.add(name)
        return self.state.socket(name, direct=direct)

    def device(self, name: str, *, direct: bool = False) -> Path:
        """What stands for the disk on the command line of a QEMU with libvfio."""
        return Devices(self.state, direct=direct).provide(control.load(self.state).controller(name))

    async def forget(self, name: str) -> None:
        """Delete what `disk` made; the backing stays."""
        await self.control.call(
            "change", {"change": Change(delete=(Key("controller", name), Key("volume", name))).to_json()}
        )
        self._disks.remove(name)

    async def until(self, what: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the supervisor's status, which is returned, fulfils a condition.

        :param what: the condition in words.
        :raises TargetError: it does not within ten minutes.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    status: dict[str, Any] = await self.control.call("status")
                    if condition(status):
                        return status
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise TargetError(f"{what}: not within {_PATIENCE_S:g} s; see {self.state.logs}") from None

    async def standby(self) -> int:
        """Wait for a standby; returns the pid of the target that it stands by for."""
        status = await self.until(
            "a standby", lambda status: bool(status["target"]["ready"] and status["target"]["standby"])
        )
        return int(status["target"]["pid"])

    async def processes(self, *, direct: bool = False) -> dict[str, list[int]]:
        """Whom to charge for I/O: the target, and the endpoint unless guests pass it by.

        :raises TargetError: there is no target at this moment.
        """
        return await processes(self.control, direct=direct)


async def processes(control: Client, *, direct: bool = False) -> dict[str, list[int]]:
    """The same, of any supervisor."""
    status = await control.call("status")
    target, endpoint = status["target"]["pid"], status["endpoint"]["pid"]
    if target is None:
        raise TargetError("the target is not running at this moment; see `nvmuser status`")
    return {"target": [target]} if direct else {"target": [target], "endpoint": [endpoint]}
