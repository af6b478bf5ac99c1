"""The device directories by which a QEMU with libvfio finds our controllers: `run/vfio/<N>`.

Owns them: one for each controller that a command has named for such a QEMU, removed with the controller. They are not
made with every controller: on a slow disk that takes longer than all that SPDK does. N is the controller's id, which is
decided once; where two controllers were declared with the same one, the lowest free number above. What such a directory
is made of belongs to `nvmf_vfio.vfio_dir`.
"""

from __future__ import annotations

import os
from pathlib import Path

from nvmf_vfio import vfio_dir
from nvmuser.errors import ConflictError
from nvmuser.model.objects import Controller
from nvmuser.paths import StateDir


class Devices:
    """Those of one state directory, looked at once: for one act on many controllers."""

    def __init__(self, state: StateDir, *, direct: bool = False) -> None:
        self._state = state
        self._direct = direct
        self._known = vfio_dir.Devices(state.devices(direct=direct))

    def choose(self, controller: Controller) -> Path:
        """The directory that `provide` would give; nothing is made."""
        return self._known.choose(self._state.socket(controller.name, direct=self._direct), first=controller.cntlid)

    def provide(self, controller: Controller) -> Path:
        """The directory of a controller, made if it is not there.

        :raises ConflictError: it cannot be made.
        """
        socket = self._state.socket(controller.name, direct=self._direct)
        try:
            directory = self._known.assign(socket, first=controller.cntlid)
            self._give(directory)
            return directory
        except (OSError, ValueError) as error:
            raise ConflictError(f"controller {controller.name}: no directory for libvfio: {error}") from error

    def _give(self, directory: Path) -> None:
        """To the owner of the state directory: their supervisor removes it with the controller, and could not remove
        root's."""
        owner = self._state.run.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            for one in (directory.parent, directory):
                os.chown(one, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def remove(self, controller: Controller) -> None:
        """:raises ConflictError: something of somebody else is in it."""
        try:
            self._known.forget(self._state.socket(controller.name, direct=self._direct))
        except (OSError, ValueError) as error:
            raise ConflictError(f"controller {controller.name}: {error}") from error
