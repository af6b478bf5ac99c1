"""The guest that SMA's devices are plugged into: a QEMU with a QMP socket, ours or anybody's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvmuser.errors import NotFoundError
from nvmuser.guest import hotplug, plug
from nvmuser.guest.hotplug import Transport
from nvmuser.guest.qmp import connected
from nvmuser.paths import StateDir


@dataclass(frozen=True)
class Guest:
    """:param qmp: of QEMU."""

    state: StateDir
    qmp: Path
    libvfio: bool = False

    async def plug(self, name: str) -> None:
        """Put a controller into it, at a free PCIe root port; nothing happens to one that is there.

        :raises GuestError: QEMU does not take it.
        """
        async with connected(self.qmp) as qmp:
            await hotplug.perform(self.state, qmp, [name], Transport(libvfio=self.libvfio))

    async def unplug(self, name: str) -> None:
        """Take it out, when the guest lets go of it.

        :raises GuestError: QEMU, or the guest, does not let go of it.
        """
        async with connected(self.qmp) as qmp:
            try:
                await plug.unplug(qmp, [self.state.socket(name)])
            except NotFoundError:
                return
