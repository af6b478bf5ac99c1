"""What this machine has to have for what is wanted: files, directories, locks. It waits for the disk.

Owns no record: its callers mark what was made.
"""

from __future__ import annotations

from nvmuser.errors import NvmuserError
from nvmuser.hostfs import access, backing, files, locks, volume_keys
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.paths import StateDir
from nvmuser.reconcile.calls import Problem


def provision(desired: Desired, state: StateDir) -> tuple[list[Key], dict[Key, Problem]]:
    """Backing files and keys: made for new volumes, looked at for the others. Returns what is new, and what failed.

    Of volumes that share a file, one is served: the first by name, of those that were served before if there is one.
    """
    volumes, errors = _exclusive(desired)
    new = [volume for volume in volumes if not desired.entries[volume.key].provisioned]
    old = [volume for volume in volumes if desired.entries[volume.key].provisioned]
    crypt = [volume for volume in desired.volumes() if volume.backend == "crypt"]
    unmade = [volume for volume in crypt if not desired.entries[volume.key].provisioned]
    errors |= files.each(lambda volume: volume_keys.make(volume, state), unmade)
    errors |= files.each(files.provision, new) | files.each(files.check_or_grow, old)
    problems = {key: Problem(key, str(error)) for key, error in errors.items()}
    return [volume.key for volume in (*new, *unmade) if volume.key not in errors], problems


def _exclusive(desired: Desired) -> tuple[list[Volume], dict[Key, NvmuserError]]:
    closed = desired.closed
    volumes = [volume for volume in desired.volumes() if volume.backend == "file" and volume.key not in closed]
    volumes.sort(key=lambda volume: not desired.entries[volume.key].provisioned)
    errors = dict[Key, NvmuserError](backing.shared(volumes))
    return [volume for volume in volumes if volume.key not in errors], errors


def grant(desired: Desired, state: StateDir) -> dict[Key, Problem]:
    """Let those who may connect reach the sockets."""
    problems: dict[Key, Problem] = {}
    for controller in desired.controllers():
        try:
            access.grant(state, controller)
        except NvmuserError as error:
            problems[controller.key] = Problem(controller.key, str(error))
    return problems


def lock(desired: Desired, pid: int) -> dict[Key, Problem]:
    """Lock the files that process `pid`, the target, has open for it alone.

    :raises SetupError: this machine does not let us.
    """
    volumes = {volume.path: volume.key for volume in _exclusive(desired)[0]}
    return {volumes[path]: Problem(volumes[path], str(error)) for path, error in locks.lock_for(pid, volumes)}
