"""What is wanted after a change, checked as far as can be without a target: by the model's rules and on this machine.

Changes nothing: `apply`, its `--dry-run` and `diff` judge alike, because all of them come here.
"""

from __future__ import annotations

import os

from nvmuser.errors import UsageError
from nvmuser.hostfs import access, files, key_files, limits, listeners, space
from nvmuser.model import capacity
from nvmuser.model.change import Change, next_desired
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Controller, Remote, TargetSettings
from nvmuser.paths import StateDir


def declared(before: Desired, change: Change, state: StateDir) -> Desired:
    """:raises NvmuserError: the change is not possible; the message has the reason."""
    after = next_desired(before, change, lambda volume: files.prepare(volume, state))
    capacity.check_pools(before, after, change)
    space.check(before, after, change)
    for wanted in (*change.create, *change.update):
        if isinstance(wanted, Controller):
            access.group_of(wanted)
        elif isinstance(wanted, TargetSettings):
            check_cores(wanted)
        elif isinstance(wanted, Remote):
            key_files.check(wanted)
    new = [wanted.name for wanted in change.create if isinstance(wanted, Controller)]
    if new:
        limits.check_descriptors(after)
        limits.check_memory(len(new))
    listeners.check_paths(state, max(new, key=len, default=""))
    return after


def check_cores(settings: TargetSettings) -> None:
    """Check cores before they are recorded: with others no target would start, not even after a crash.

    :raises UsageError: a core is not ours.
    """
    allowed = os.sched_getaffinity(0)
    if foreign := set(settings.cores) - allowed:
        usable = ", ".join(map(str, sorted(allowed)))
        raise UsageError(f"target: core {min(foreign)} may not be used here; choose among {usable}")
