"""SPDK's methods that nvmuser uses, typed: each function returns the request to make. Everything else is for
`nvmuser rpc`.

Parameter names and units are SPDK's own (its `schema/schema.json`); sizes go in as bytes and are converted here. Each
docstring names the file of SPDK 26.01 that carries the method out. Nothing is sent here: a call that SPDK refuses
raises `RpcServerError` in `Client`, with a code that is a negative errno, or one of JSON-RPC's own where a docstring
has that.
"""

from nvmuser.rpc.methods.bdevs import (
    aio_create,
    aio_rescan,
    delay_create,
    delete_bdev,
    error_create,
    examine,
    malloc_create,
    null_create,
    null_resize,
    set_limits,
)
from nvmuser.rpc.methods.clusters import rbd_create, rbd_rescan, register_cluster, unregister_cluster
from nvmuser.rpc.methods.crypto import add_volume_key, crypto_create, remove_volume_key
from nvmuser.rpc.methods.lvols import (
    lvol_clone,
    lvol_create,
    lvol_delete,
    lvol_inflate,
    lvol_rename,
    lvol_resize,
    lvol_snapshot,
    lvstore_create,
    lvstore_delete,
    lvstore_grow,
)
from nvmuser.rpc.methods.nvmf import (
    add_listener,
    add_namespace,
    allow_any_host,
    create_subsystem,
    create_transport,
    delete_subsystem,
    remove_listener,
    remove_namespace,
)
from nvmuser.rpc.methods.raids import raid_add_member, raid_create, raid_remove_member, raid_start_degraded
from nvmuser.rpc.methods.remotes import add_key, attach_remote, detach_path, detach_remote, remove_key
from nvmuser.rpc.methods.request import Request

__all__ = [
    "Request",
    "add_key",
    "add_listener",
    "add_namespace",
    "add_volume_key",
    "aio_create",
    "aio_rescan",
    "allow_any_host",
    "attach_remote",
    "create_subsystem",
    "create_transport",
    "crypto_create",
    "delay_create",
    "delete_bdev",
    "delete_subsystem",
    "detach_path",
    "detach_remote",
    "error_create",
    "examine",
    "lvol_clone",
    "lvol_create",
    "lvol_delete",
    "lvol_inflate",
    "lvol_rename",
    "lvol_resize",
    "lvol_snapshot",
    "lvstore_create",
    "lvstore_delete",
    "lvstore_grow",
    "malloc_create",
    "null_create",
    "null_resize",
    "raid_add_member",
    "raid_create",
    "raid_remove_member",
    "raid_start_degraded",
    "rbd_create",
    "rbd_rescan",
    "register_cluster",
    "remove_key",
    "remove_listener",
    "remove_namespace",
    "remove_volume_key",
    "set_limits",
    "unregister_cluster",
]
