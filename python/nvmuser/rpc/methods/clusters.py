"""Clusters of Ceph, and bdevs on images in them: module/bdev/rbd with our patches (spdk-glue/rbd). Errors and units:
see the package; here they are librados' and librbd's."""

from __future__ import annotations

from nvmuser.rpc.methods.request import Request

_OPTIONS = {
    # The cache acknowledges writes that no OSD has: those of a target that dies under a guest would be lost.
    "rbd_cache": "false",
    "rados_mon_op_timeout": "10",
    "client_mount_timeout": "10",
    # For so long librbd keeps out whose lock it breaks by itself. An hour, its default, is less than some sleep.
    "rbd_blocklist_expire_seconds": "2592000",
    # Of the configuration's, which other clients may have already.
    "admin_socket": "",
}
"""Time-outs in seconds, of what is asked of monitors. OSDs have none: I/O waits for them."""


def register_cluster(name: str, user: str, conf: str, keyring: str) -> Request:
    """Connect to a cluster. Returns the client's address there, by which it can be fenced.

    Errors: EEXIST for a name in use; ETIMEDOUT where no monitor answers; EACCES, EPERM for a user that it does not
    know, or another key; ENOENT without a key.
    """
    params = {"name": name, "user_id": user, "config_file": conf, "config_param": _OPTIONS}
    return Request("bdev_rbd_register_cluster", params | ({"key_file": keyring} if keyring else {}))


def unregister_cluster(name: str) -> Request:
    """End the connection to a cluster.

    Errors: EBUSY as long as there are bdevs on images in it; ENOENT when there is none of this name.
    """
    return Request("bdev_rbd_unregister_cluster", {"name": name})


def rbd_create(
    name: str, cluster: str, pool: str, image: str, block_size: int, uuid: str, *, snapshot: str = ""
) -> Request:
    """A bdev on an image, whose size it has and whose lock it holds until it is deleted; or on a snapshot, read only.

    :param block_size: bytes.
    :param snapshot: of the image.

    Errors: EEXIST for a name or UUID in use; ENOENT for an image or a cluster that there is not; EROFS for one that
    another client has locked.
    """
    params = {
        "name": name,
        "cluster_name": cluster,
        "pool_name": pool,
        "rbd_name": image,
        "block_size": block_size,
        "uuid": uuid,
    }
    more = {"read_only": True, "snapshot": snapshot} if snapshot else {"exclusive": True}
    return Request("bdev_rbd_create", params | more)


def rbd_rescan(name: str) -> Request:
    """Take over the present size of the image, after it has grown; SPDK is told by librbd too.

    Errors: ENODEV when there is no such bdev.
    """
    return Request("bdev_rbd_resize", {"name": name, "new_size": 0})
