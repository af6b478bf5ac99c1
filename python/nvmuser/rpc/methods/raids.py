"""Mirrors and concatenations. Errors and units: see the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvmuser.rpc.methods.request import Request


def raid_create(name: str, level: str, members: Sequence[str], uuid: str) -> Request:
    """A mirror, or a concatenation with strips of 64 KiB (module/bdev/raid/bdev_raid_rpc.c).

    raid1 with a superblock: a member that missed writes is known as such after a restart, and not read.

    :param level: raid1 or concat.

    Errors: EEXIST for a name in use; EPERM for a member that is claimed.
    """
    params: dict[str, Any] = {"name": name, "raid_level": level, "base_bdevs": list(members), "uuid": uuid}
    params |= {"superblock": True} if level == "raid1" else {"strip_size_kb": 64}
    return Request("bdev_raid_create", params)


def raid_start_degraded(name: str) -> Request:
    """Serve a mirror without the members that are missing: a method of our patch (spdk-glue/patches).

    Errors: EBUSY when it does not wait for members; ENODEV without such a mirror, or with too few members.
    """
    return Request("bdev_raid_start_degraded", {"name": name})


def raid_remove_member(bdev: str) -> Request:
    """Let a member leave its mirror, which is then served without it (module/bdev/raid/bdev_raid_rpc.c).

    Errors: ENODEV for a bdev that is no member, or leaves already.
    """
    return Request("bdev_raid_remove_base_bdev", {"name": bdev})


def raid_add_member(name: str, bdev: str) -> Request:
    """Put a bdev into a free place of a mirror (module/bdev/raid/bdev_raid_rpc.c).

    What it holds is overwritten; answered when the rebuild has begun.

    Errors: ENODEV without such a mirror or bdev; EPERM while another member is being rebuilt.
    """
    return Request("bdev_raid_add_base_bdev", {"raid_bdev": name, "base_bdev": bdev})
