"""What deleted objects leave behind: backing files, images in Ceph, directories of listeners and devices."""

from __future__ import annotations

from collections.abc import Sequence

from nvmuser.ceph import images
from nvmuser.errors import NvmuserError
from nvmuser.hostfs import files, listeners, unix_diag, volume_keys
from nvmuser.hostfs.device_dirs import Devices
from nvmuser.model.desired import Desired, Entry
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Volume
from nvmuser.paths import StateDir


def tidy(state: StateDir, gone: Sequence[Entry], desired: Desired) -> dict[Key, NvmuserError]:
    """Remove it. SPDK has them no more; returns the errors by the objects' keys.

    :param desired: everything recorded, these included.
    """
    volumes = {entry.object: entry.provisioned for entry in gone if isinstance(entry.object, Volume)}

    def remove(volume: Volume) -> None:
        if volume.backend == "crypt":
            volume_keys.remove(volume, state)
        elif volumes[volume]:
            files.remove(volume)
        else:
            files.remove_unmade(volume)

    errors = files.each(remove, [volume for volume in volumes if volume.backend != "rbd"])
    errors |= _images([volume for volume, made in volumes.items() if volume.cluster and made], desired)
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


def _images(volumes: Sequence[Volume], desired: Desired) -> dict[Key, NvmuserError]:
    """Remove those that we made: clones before the snapshots that they are of, and those before their images."""
    errors: dict[Key, NvmuserError] = {}
    for volume in sorted(volumes, key=lambda one: 0 if one.clone_of else 1 if one.snapshot_of else 2):
        if not volume.owned:
            continue
        try:
            images.remove(desired.cluster_of(volume), volume)
        except NvmuserError as error:
            errors[volume.key] = error
    return errors
