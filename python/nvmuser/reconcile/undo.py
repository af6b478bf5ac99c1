"""What has to be taken back of a change that came to nothing, besides what the store says."""

from __future__ import annotations

from dataclasses import replace

from nvmuser.hostfs import files
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.objects import Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual


def take_back_growth(before: Desired, change: Change, actual: Actual) -> list[Volume]:
    """Make files that the change has grown as small as they were.

    :param actual: what SPDK has; without a target, nothing.
    :return: volumes that have grown for good, with their size: SPDK has shown it, and an open bdev cannot shrink.
    :raise SetupError: a file could not be made smaller.
    """
    grown: list[Volume] = []
    for volume in change.update:
        entry = before.entries.get(volume.key)
        was = entry.object if entry else None
        if not isinstance(volume, Volume) or not isinstance(was, Volume) or volume.size <= was.size:
            continue
        bdev = backends.find(was, before, actual)
        if bdev and bdev.size > was.size:
            grown.append(replace(was, size=bdev.size))
        elif was.backend == "file":
            files.shrink_back(was)
    return grown
