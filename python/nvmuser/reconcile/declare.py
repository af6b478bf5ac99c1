"""What is wanted after a change, checked as far as can be without a target: by the model's rules and on this machine.

Changes nothing: `apply`, its `--dry-run` and `diff` judge alike, because all of them come here.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import replace

from nvmuser.errors import ConflictError, UsageError
from nvmuser.hostfs import access, backing, files, key_files, limits, listeners, space, volume_keys
from nvmuser.hostfs.sockets import check_socket_path
from nvmuser.model import capacity
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired, closed
from nvmuser.model.objects import Controller, Remote, TargetSettings, Volume
from nvmuser.paths import StateDir

_MANY_PROCESSES = 10**6
"""Whose number is in the path of a target's socket, one after the other."""


def declared(before: Desired, change: Change, state: StateDir) -> Desired:
    """:raises NvmuserError: the change is not possible; the message has the reason."""
    after = next_desired(before, change, _preparer(before, change, state))
    capacity.check_pools(before, after, change)
    space.check(before, after, change)
    for wanted in (*change.create, *change.update):
        if isinstance(wanted, Controller):
            access.group_of(wanted)
        elif isinstance(wanted, TargetSettings):
            check_cores(wanted)
            limits.check_target(wanted)
            check_socket_path(state.process_socket(wanted.name, _MANY_PROCESSES))
        elif isinstance(wanted, Remote):
            key_files.check(wanted)
    for wanted in change.update:
        one = after.get(wanted.key)
        if isinstance(one, Volume) and one.backend == "crypt" and one != before.get(wanted.key):
            volume_keys.load(one, state)  # with another key it could not be opened any more
    new = [wanted.name for wanted in change.create if isinstance(wanted, Controller)]
    if new:
        limits.check_descriptors(after)
        limits.check_memory(len(new))
    listeners.check_paths(state, max(new, key=len, default=""))
    return after


def _preparer(before: Desired, change: Change, state: StateDir) -> Callable[[Volume], Volume]:
    incoming = closed(change.create)

    @functools.cache
    def owners() -> backing.Owners:
        """Of what there is. It looks at every file, for which a change that makes none need not wait."""
        found = backing.Owners()
        for volume in before.volumes():
            if volume.backend == "file" and volume.key not in change.delete:
                with contextlib.suppress(ConflictError):  # shared since before this was checked; the engine reports it
                    found.claim(volume)
        return found

    def prepare(volume: Volume) -> Volume:
        if volume.backend == "file":
            # Before its lock is looked at, which would name our own target.
            try:
                owners().claim(replace(volume, path=files.path_of(volume, state)))
            except ConflictError as error:
                raise ConflictError(f"{volume.key.words}: {error}") from None
        if volume.backend == "crypt":
            return volume_keys.prepare(volume)
        expected = volume.key in incoming and volume.backend == "file"
        return files.expected(volume) if expected else files.prepare(volume, state)

    return prepare


def check_cores(settings: TargetSettings) -> None:
    """Check cores before they are recorded: with others no target would start, not even after a crash.

    :raises UsageError: a core is not ours.
    """
    allowed = os.sched_getaffinity(0)
    if foreign := set(settings.cores) - allowed:
        usable = ", ".join(map(str, sorted(allowed)))
        raise UsageError(f"{settings.subject}: core {min(foreign)} may not be used here; choose among {usable}")
