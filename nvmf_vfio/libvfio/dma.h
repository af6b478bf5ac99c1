/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The mapping table of a container: which device addresses (IOVA) stand for which
 * of QEMU's memory. It follows the kernel's type 1 (v2) IOMMU to the errno:
 * mappings never overlap, and an unmapping removes whole mappings or nothing.
 *
 * Pure book-keeping, kept sorted by IOVA; no locks, no messages. The caller's
 * lock also decides how long a translated address stays good.
 */
#ifndef LV_DMA_H
#define LV_DMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LV_DMA_READ     0x1u    /* as in VFIO_DMA_MAP_FLAG_READ */
#define LV_DMA_WRITE    0x2u

struct lv_mapping {
    uint64_t iova;
    uint64_t size;
    char *vaddr;
    uint32_t flags;
};

struct lv_dma_table {
    struct lv_mapping *mappings;
    size_t nr;
    size_t room;
};

void
lv_dma_fini(struct lv_dma_table *table);

/*
 * Adds a mapping. Returns 0, or -1 with errno: EINVAL (empty, unaligned,
 * wrapping, no flag or an unknown one), EEXIST (overlaps), ENOMEM.
 */
int
lv_dma_add(struct lv_dma_table *table, const struct lv_mapping *mapping);

/*
 * Finds the mappings that lie in [iova, iova + size): *first and *nr index
 * table->mappings. Returns 0 (also for none), or -1 with EINVAL: empty,
 * unaligned, wrapping, or a mapping would be cut.
 */
int
lv_dma_find(const struct lv_dma_table *table, uint64_t iova, uint64_t size,
            size_t *first, size_t *nr);

/* Removes nr mappings from first on. */
void
lv_dma_remove(struct lv_dma_table *table, size_t first, size_t nr);

/*
 * Copies between data and the memory behind [iova, iova + size), which may
 * cross adjacent mappings. Returns 0, or -1 with errno and nothing copied:
 * EFAULT (not mapped), EPERM (mapped without that direction).
 */
int
lv_dma_read(const struct lv_dma_table *table, uint64_t iova, void *data,
            size_t size);
int
lv_dma_write(const struct lv_dma_table *table, uint64_t iova, const void *data,
             size_t size);

#endif /* LV_DMA_H */
