"""What deleted objects leave on this machine: backing files, directories of listeners and devices."""

from __future__ import annotations

from collections.abc import Sequence

from nvmuser.errors import NvmuserError
from nvmuser.hostfs import files, listeners, unix_diag
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.model.desired import Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Volume
from nvmuser.paths import StateDir


def tidy(state: StateDir, gone: Sequence[Entry]) -> dict[Key, NvmuserError]:
    """Remove it. SPDK has them no more; returns the errors by the objects' keys."""
    volumes = {entry.object: entry.provisioned for entry in gone if isinstance(entry.object, Volume)}

    def remove(volume: Volume) -> None:
        if volumes[volume]:
            files.remove(volume)
        else:
            files.remove_unmade(volume)

    errors = files.each(remove, list(volumes))
    controllers = [entry.object for entry in gone if isinstance(entry.object, Controller)]
    devices = [Devices(state, direct=direct) for direct in (False, True) if controllers]
    among = unix_diag.listeners() if controllers else None
    for controller in controllers:
        listeners.tidy(state.target_dir(controller.name), among)
        try:
            for each in devices:
                each.remove(controller)
        except NvmuserError as error:
            errors[controller.key] = error
    return errors
