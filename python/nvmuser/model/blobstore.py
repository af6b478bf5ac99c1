"""How much of a volume a pool's own metadata takes, at its front (lib/blob/blobstore.c, `spdk_bs_init`).

Pure arithmetic. A pool has one page of metadata for each cluster (lib/lvol/lvol.c, `num_md_pages_per_cluster_ratio`).
"""

from __future__ import annotations

from nvmuser.model.sizes import PAGE, round_up

_MASK_HEADER = 16
"""Bytes, not less than `struct spdk_bs_md_mask` without its bits."""


def head_size(size: int, cluster_size: int) -> int:
    """Bytes in front that are written each time a pool is opened after a crash: the super block and three masks.

    :param size: of the volume, in bytes.
    :param cluster_size: in bytes.
    """
    clusters = size // cluster_size
    mask = round_up(_MASK_HEADER + round_up(clusters, 8) // 8, PAGE)
    return PAGE + 3 * mask


def least_size(cluster_size: int) -> int:
    """Bytes of the smallest volume that a pool can be made on, and a volume in it.

    Three pages of metadata are for the pool, a volume, and where that one's clusters are.

    :param cluster_size: in bytes.
    """
    clusters = 3
    while round_up(head_size(clusters * cluster_size, cluster_size) + clusters * PAGE, cluster_size) >= (
        clusters * cluster_size
    ):
        clusters += 1
    return clusters * cluster_size
