"""Pools, and the volumes, snapshots and clones in them. Errors and units: see the package."""

from __future__ import annotations

from nvmuser.rpc.methods.request import Request, mib


def lvstore_create(name: str, base: str, cluster_size: int, *, write_zeroes: bool = False) -> Request:
    """Format a bdev as an lvstore; what it held is lost (module/bdev/lvol/vbdev_lvol_rpc.c).

    :param base: the bdev, which the lvstore claims.
    :param cluster_size: bytes.
    :param write_zeroes: write all of it, since unmapping would leave what it held to be read in new volumes.

    Errors: EPERM for a bdev that is claimed; -32602, with the reason as text, from the library below.
    """
    params = {"lvs_name": name, "bdev_name": base, "cluster_sz": cluster_size}
    return Request("bdev_lvol_create_lvstore", params | _clearing(write_zeroes))


def lvstore_delete(name: str) -> Request:
    """Delete an lvstore with every volume in it (module/bdev/lvol/vbdev_lvol_rpc.c)."""
    return Request("bdev_lvol_delete_lvstore", {"lvs_name": name})


def lvstore_grow(name: str) -> Request:
    """Extend an lvstore over all of its bdev, after that has grown (module/bdev/lvol/vbdev_lvol_rpc.c)."""
    return Request("bdev_lvol_grow_lvstore", {"lvs_name": name})


def _clearing(write_zeroes: bool) -> dict[str, str]:
    return {"clear_method": "write_zeroes"} if write_zeroes else {}


def lvol_create(name: str, pool: str, size: int, *, thin: bool, write_zeroes: bool = False) -> Request:
    """A volume in a pool (module/bdev/lvol/vbdev_lvol_rpc.c).

    Its parameter `uuid` is not the volume's: it names the pool, in place of `lvs_name`.

    :param size: bytes, rounded up to MiB; SPDK rounds up to whole clusters.
    :param thin: clusters are taken when they are written.
    :param write_zeroes: clusters are written when they are given back, also by its snapshots and clones, since
        unmapping would leave what they held to be read in other volumes.

    Errors: ENODEV without such a pool; -32602 from the library below, such as for want of space.
    """
    params = {"lvol_name": name, "lvs_name": pool, "size_in_mib": mib(size), "thin_provision": thin}
    return Request("bdev_lvol_create", params | _clearing(write_zeroes))


def lvol_snapshot(bdev: str, name: str) -> Request:
    """Make a read-only snapshot (module/bdev/lvol/vbdev_lvol_rpc.c).

    :param bdev: what it is of, as `pool/volume`.
    :param name: the snapshot's, without the pool.

    Errors: ENODEV without such a volume; -32602 from the library below.
    """
    return Request("bdev_lvol_snapshot", {"lvol_name": bdev, "snapshot_name": name})


def lvol_clone(snapshot: str, name: str) -> Request:
    """Make a volume that shares clusters with a snapshot (module/bdev/lvol/vbdev_lvol_rpc.c).

    :param snapshot: as `pool/snapshot`.
    :param name: the clone's, without the pool.

    Errors: ENODEV without such a snapshot; -32602 from the library below.
    """
    return Request("bdev_lvol_clone", {"snapshot_name": snapshot, "clone_name": name})


def lvol_delete(bdev: str) -> Request:
    """Delete a volume in a pool, with its data (module/bdev/lvol/vbdev_lvol_rpc.c).

    :param bdev: as `pool/volume`.

    Errors: ENODEV without such a volume; EPERM for a snapshot with several clones.
    """
    return Request("bdev_lvol_delete", {"name": bdev})


def lvol_rename(bdev: str, name: str) -> Request:
    """Give a volume in a pool another name (module/bdev/lvol/vbdev_lvol_rpc.c).

    :param bdev: as `pool/volume`.
    :param name: without the pool.

    Errors: ENODEV without such a volume; EEXIST for a name in use.
    """
    return Request("bdev_lvol_rename", {"old_name": bdev, "new_name": name})


def lvol_inflate(bdev: str) -> Request:
    """Copy what a clone shares with its snapshot, so that it stands alone (module/bdev/lvol/vbdev_lvol_rpc.c).

    Errors: ENODEV without such a volume; -32602 from the library below, such as for want of space.
    """
    return Request("bdev_lvol_inflate", {"name": bdev})


def lvol_resize(bdev: str, size: int) -> Request:
    """Grow a volume in a pool (module/bdev/lvol/vbdev_lvol_rpc.c).

    :param size: bytes, rounded up to MiB; SPDK rounds up to whole clusters.

    Errors: ENODEV without such a volume; -32602 from the library below, such as for want of space.
    """
    return Request("bdev_lvol_resize", {"name": bdev, "size_in_mib": mib(size)})
