"""Bdevs of most kinds, and what all of them have: limits, examination, deletion. Errors and units: see the package."""

from __future__ import annotations

from nvmuser.rpc.methods.request import Request, mib


def examine(bdev: str) -> Request:
    """Look for SPDK's own metadata (a pool, a mirror's superblock) in the bdev of this name, as soon as there is one.

    lib/bdev/bdev.c, `spdk_bdev_examine`: it refuses a name that it knows already.
    """
    return Request("bdev_examine", {"name": bdev})


def aio_create(name: str, path: str, block_size: int, uuid: str) -> Request:
    """A bdev on a file or a block device, whose size it has (module/bdev/aio/bdev_aio_rpc.c).

    `fallocate`: unmap and write-zeroes reach the file, so that a guest's discard gives space back.

    :param block_size: bytes.

    Errors: those of open(2) for the file; EEXIST for a name or UUID in use.
    """
    params = {"name": name, "filename": path, "block_size": block_size, "fallocate": True, "uuid": uuid}
    return Request("bdev_aio_create", params)


def aio_rescan(name: str) -> Request:
    """Take over the present size of the file, after it has grown (module/bdev/aio/bdev_aio_rpc.c).

    Errors: ENODEV when there is no such bdev.
    """
    return Request("bdev_aio_rescan", {"name": name})


def malloc_create(name: str, size: int, block_size: int, uuid: str) -> Request:
    """A bdev in the target's hugepages (module/bdev/malloc/bdev_malloc_rpc.c).

    :param size: bytes, a multiple of `block_size`.
    :param block_size: bytes.

    Errors: ENOMEM when there are not enough hugepages; EEXIST for a name or UUID in use.
    """
    params = {"name": name, "num_blocks": size // block_size, "block_size": block_size, "uuid": uuid}
    return Request("bdev_malloc_create", params)


def null_create(name: str, size: int, block_size: int, uuid: str) -> Request:
    """A bdev that keeps nothing (module/bdev/null/bdev_null_rpc.c).

    :param size: bytes, a multiple of `block_size`.
    :param block_size: bytes.

    Errors: EEXIST for a name or UUID in use.
    """
    params = {"name": name, "num_blocks": size // block_size, "block_size": block_size, "uuid": uuid}
    return Request("bdev_null_create", params)


def null_resize(name: str, size: int) -> Request:
    """Grow a null bdev (module/bdev/null/bdev_null_rpc.c).

    :param size: bytes, rounded up to MiB.
    """
    return Request("bdev_null_resize", {"name": name, "new_size": mib(size)})


def delay_create(name: str, base: str, latency_us: int, uuid: str) -> Request:
    """A bdev that answers later than its base (module/bdev/delay/vbdev_delay_rpc.c).

    :param latency_us: microseconds, for reads and writes alike, average and 99th percentile.

    Errors: EEXIST for a name in use. Without its base it comes when that does.
    """
    latencies = ("avg_read_latency", "p99_read_latency", "avg_write_latency", "p99_write_latency")
    params = {"name": name, "base_bdev_name": base, "uuid": uuid} | dict.fromkeys(latencies, latency_us)
    return Request("bdev_delay_create", params)


def error_create(base: str) -> Request:
    """A bdev `EE_<base>` that passes I/O on, or fails as `bdev_error_inject_error` asks.

    module/bdev/error/vbdev_error_rpc.c.

    Errors: EEXIST when the base has one. Without its base it comes when that does.
    """
    return Request("bdev_error_create", {"base_name": base})


def delete_bdev(module: str, name: str) -> Request:
    """Delete a bdev (`bdev_<module>_delete` in module/bdev/<module>); who uses it loses it.

    :param module: as in the method's name: aio, malloc, null, raid, delay, error, lvol.

    Errors: ENODEV when there is no such bdev, or it is another module's.
    """
    return Request(f"bdev_{module}_delete", {"name": name})


def set_limits(bdev: str, iops: int, mbps: int, read_mbps: int, write_mbps: int) -> Request:
    """Limit a bdev (lib/bdev/bdev_rpc.c); 0 is no limit.

    :param iops: operations per second, which SPDK rounds up to thousands.
    :param mbps: MiB/s of reads and writes together; `read_mbps` and `write_mbps` likewise of one of them.

    Errors: ENODEV when there is no such bdev.
    """
    params = {
        "name": bdev,
        "rw_ios_per_sec": iops,
        "rw_mbytes_per_sec": mbps,
        "r_mbytes_per_sec": read_mbps,
        "w_mbytes_per_sec": write_mbps,
    }
    return Request("bdev_set_qos_limit", params)
