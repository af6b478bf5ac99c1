/* SPDX-License-Identifier: BSD-3-Clause */
#include "dma.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_MASK 4095u

/* Is [iova, iova + size) whole pages that end within the address space? */
static bool
valid_range(uint64_t iova, uint64_t size)
{
    return size != 0 && ((iova | size) & PAGE_MASK) == 0 &&
           iova + (size - 1) >= iova;
}

/* The first mapping that ends above iova. */
static size_t
lower_bound(const struct lv_dma_table *table, uint64_t iova)
{
    size_t low = 0, high = table->nr;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct lv_mapping *m = &table->mappings[middle];

        if (m->iova + (m->size - 1) < iova) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void
lv_dma_fini(struct lv_dma_table *table)
{
    free(table->mappings);
    *table = (struct lv_dma_table){ 0 };
}

int
lv_dma_add(struct lv_dma_table *table, const struct lv_mapping *mapping)
{
    size_t at;

    if (!valid_range(mapping->iova, mapping->size) ||
        ((uintptr_t)mapping->vaddr & PAGE_MASK) != 0 || mapping->flags == 0 ||
        (mapping->flags & ~(LV_DMA_READ | LV_DMA_WRITE)) != 0) {
        errno = EINVAL;
        return -1;
    }
    at = lower_bound(table, mapping->iova);
    if (at < table->nr &&
        table->mappings[at].iova <= mapping->iova + (mapping->size - 1)) {
        errno = EEXIST;
        return -1;
    }
    if (table->nr == table->room) {
        size_t room = table->room == 0 ? 32 : table->room * 2;
        struct lv_mapping *grown =
            realloc(table->mappings, room * sizeof(*grown));

        if (grown == NULL) {
            return -1;
        }
        table->mappings = grown;
        table->room = room;
    }
    memmove(&table->mappings[at + 1], &table->mappings[at],
            (table->nr - at) * sizeof(*mapping));
    table->mappings[at] = *mapping;
    table->nr++;
    return 0;
}

int
lv_dma_find(const struct lv_dma_table *table, uint64_t iova, uint64_t size,
            size_t *first, size_t *nr)
{
    uint64_t last = iova + (size - 1);
    size_t end;

    *first = *nr = 0;
    if (!valid_range(iova, size)) {
        errno = EINVAL;
        return -1;
    }
    *first = end = lower_bound(table, iova);
    while (end < table->nr && table->mappings[end].iova <= last) {
        const struct lv_mapping *m = &table->mappings[end];

        if (m->iova < iova || m->iova + (m->size - 1) > last) {
            errno = EINVAL;
            return -1;
        }
        end++;
    }
    *nr = end - *first;
    return 0;
}

void
lv_dma_remove(struct lv_dma_table *table, size_t first, size_t nr)
{
    if (nr == 0) {
        return;
    }
    memmove(&table->mappings[first], &table->mappings[first + nr],
            (table->nr - first - nr) * sizeof(*table->mappings));
    table->nr -= nr;
}

/* Is all of [iova, iova + size) mapped with flag? */
static int
check_access(const struct lv_dma_table *table, uint64_t iova, size_t size,
             uint32_t flag)
{
    size_t at = lower_bound(table, iova);

    if (iova + size < iova) {
        errno = EFAULT;
        return -1;
    }
    while (size > 0) {
        const struct lv_mapping *m = &table->mappings[at];
        uint64_t n;

        if (at >= table->nr || m->iova > iova) {
            errno = EFAULT;
            return -1;
        }
        if ((m->flags & flag) == 0) {
            errno = EPERM;
            return -1;
        }
        n = m->size - (iova - m->iova);
        if (n >= size) {
            break;
        }
        iova += n;
        size -= n;
        at++;
    }
    return 0;
}

int
lv_dma_read(const struct lv_dma_table *table, uint64_t iova, void *data,
            size_t size)
{
    char *out = data;
    size_t at = lower_bound(table, iova);

    if (check_access(table, iova, size, LV_DMA_READ) != 0) {
        return -1;
    }
    for (; size > 0; at++) {
        const struct lv_mapping *m = &table->mappings[at];
        uint64_t offset = iova - m->iova;
        size_t n = m->size - offset < size ? m->size - offset : size;

        memcpy(out, m->vaddr + offset, n);
        out += n;
        iova += n;
        size -= n;
    }
    return 0;
}

int
lv_dma_write(const struct lv_dma_table *table, uint64_t iova, const void *data,
             size_t size)
{
    const char *in = data;
    size_t at = lower_bound(table, iova);

    if (check_access(table, iova, size, LV_DMA_WRITE) != 0) {
        return -1;
    }
    for (; size > 0; at++) {
        const struct lv_mapping *m = &table->mappings[at];
        uint64_t offset = iova - m->iova;
        size_t n = m->size - offset < size ? m->size - offset : size;

        memcpy(m->vaddr + offset, in, n);
        in += n;
        iova += n;
        size -= n;
    }
    return 0;
}
