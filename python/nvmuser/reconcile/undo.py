"""What has to be taken back of a change that came to nothing, and recorded."""

from __future__ import annotations

from dataclasses import replace

from nvmuser.hostfs import files
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Volume
from nvmuser.reconcile import backends
from nvmuser.reconcile.actual import Actual
from nvmuser.store import Store


def take_back(store: Store, before: Desired, after: Desired, change: Change, actual: Actual) -> list[Volume]:
    """Record what was wanted before the change; what another process has changed since stays as that has left it.

    :param actual: what SPDK has; without a target, nothing.
    :return: volumes that have grown for good, with their size.
    :raises SetupError: it could not be recorded, or a file not be made smaller.
    """
    grown = take_back_growth(before, change, actual)
    with store.transaction():
        now = store.load()
        mine = [key for key in change.keys if _unchanged(key, now, after)]
        back = {key: before.entries.get(key) or replace(now.entries[key], deleting=True) for key in mine}
        back |= {v.key: replace(before.entries[v.key], object=v) for v in grown if v.key in back}
        store.put(back.values())
    return grown


def _unchanged(key: Key, now: Desired, after: Desired) -> bool:
    """Is it as the change has left it?"""
    entry, left = now.entries.get(key), after.entries[key]
    return entry is not None and (entry.object, entry.deleting) == (left.object, left.deleting)


def take_back_growth(before: Desired, change: Change, actual: Actual) -> list[Volume]:
    """Make files that the change has grown as small as they were.

    :param actual: what SPDK has; without a target, nothing.
    :return: volumes that have grown for good, with their size: SPDK has shown it, and an open bdev cannot shrink.
    :raises SetupError: a file could not be made smaller.
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
