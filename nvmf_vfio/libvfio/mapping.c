/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DMA mappings: from an address of QEMU's to what a server is sent.
 *
 * Memory with a file behind it (memfd, hugetlbfs, file; shared) is sent as
 * descriptor and offset, and the server maps it. Memory without one (the video
 * memory, firmware and option ROMs, BARs of other devices) is announced without
 * a descriptor: a server may still reach it by DMA messages. The guest's own
 * memory must not be of that kind: servers such as SPDK cannot use it, so it is
 * refused while the device is being added, when QEMU can still say so.
 */
#include "vfio.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backing.h"
#include "log.h"

/* Private memory from this size on is taken for the guest's, not for a ROM. */
#define GUEST_MEMORY_SIZE (UINT64_C(128) << 20)

/* A server that is gone has no use for mappings: that is success. */
static int
forgive_dead(struct lv_group *group, int ret)
{
    return ret != 0 && lv_client_dead(group->client) ? 0 : ret;
}

static int
send_map(struct lv_group *group, const struct lv_mapping *mapping, int fd,
         uint64_t offset)
{
    struct vu_dma_map request = {
        .argsz = sizeof(request),
        .flags = ((mapping->flags & LV_DMA_READ) ? VU_DMA_READABLE : 0) |
                 ((mapping->flags & LV_DMA_WRITE) ? VU_DMA_WRITABLE : 0),
        .offset = fd == -1 ? 0 : offset,
        .address = mapping->iova,
        .size = mapping->size,
    };
    struct lv_call call = {
        .command = VU_DMA_MAP,
        .request = { { &request, sizeof(request) } },
        .fds = &fd,
        .nr_fds = fd == -1 ? 0 : 1,
    };

    return forgive_dead(group, lv_client_call(group->client, &call));
}

static int
send_unmap(struct lv_group *group, const struct lv_mapping *mapping)
{
    struct vu_dma_unmap request = {
        .argsz = sizeof(request),
        .address = mapping->iova,
        .size = mapping->size,
    };
    struct vu_dma_unmap reply;
    struct lv_call call = {
        .command = VU_DMA_UNMAP,
        .request = { { &request, sizeof(request) } },
        .reply = { { &reply, sizeof(reply) } },
    };

    return forgive_dead(group, lv_client_call(group->client, &call));
}

/*
 * The groups of a container cannot change while map_lock is held, so the list
 * may be walked without lv_topology.
 */
static void
unmap_everywhere(struct lv_container *container, const struct lv_mapping *mapping,
                 const struct lv_group *until)
{
    for (struct lv_group *g = container->groups; g != until; g = g->next) {
        if (send_unmap(g, mapping) != 0) {
            lv_log("group %d: the server did not unmap 0x%" PRIx64 "+0x%" PRIx64
                   ": %m", g->number, mapping->iova, mapping->size);
        }
    }
}

static int
map_everywhere(struct lv_container *container, const struct lv_mapping *mapping,
               int fd, uint64_t offset)
{
    for (struct lv_group *g = container->groups; g != NULL; g = g->next) {
        if (send_map(g, mapping, fd, offset) != 0) {
            int saved = errno;

            lv_log("group %d: the server refused to map 0x%" PRIx64 "+0x%" PRIx64
                   ": %m", g->number, mapping->iova, mapping->size);
            unmap_everywhere(container, mapping, g);
            errno = saved;
            return -1;
        }
    }
    return 0;
}

/*
 * Finds what to send for a mapping; *fd is -1 for memory that has no file.
 * Returns -1 if it must have one.
 */
static int
find_backing(const struct lv_container *container,
             const struct lv_mapping *mapping, int *fd, uint64_t *offset)
{
    bool writable = (mapping->flags & LV_DMA_WRITE) != 0;

    *offset = 0;
    if (lv_backing_find(mapping->vaddr, mapping->size, writable, fd,
                        offset) == 0) {
        return 0;
    }
    *fd = -1;
    if (!writable || (mapping->iova != 0 && mapping->size < GUEST_MEMORY_SIZE)) {
        return 0;
    }
    lv_log("guest memory at 0x%" PRIx64 " (%" PRIu64 " MiB) is QEMU's own and no "
           "other process can map it: share it, for instance with -object "
           "memory-backend-memfd,id=mem,size=…,share=on -machine "
           "memory-backend=mem", mapping->iova, mapping->size >> 20);
    if (container->running) {
        return 0;               /* refusing now would make QEMU abort */
    }
    errno = EFAULT;             /* what the kernel says of unpinnable memory */
    return -1;
}

int
lv_mapping_map(struct lv_container *container,
               struct vfio_iommu_type1_dma_map *arg)
{
    const uint32_t known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    struct lv_mapping mapping;
    uint64_t offset;
    size_t first, nr;
    int fd, ret, saved;

    if (arg->argsz < sizeof(*arg) || (arg->flags & ~known) != 0) {
        errno = EINVAL;
        return -1;
    }
    mapping = (struct lv_mapping){
        .iova = arg->iova,
        .size = arg->size,
        .vaddr = (char *)(uintptr_t)arg->vaddr,
        .flags = arg->flags,
    };
    /* In the table first: it checks, and the server may use it at once. */
    pthread_mutex_lock(&container->table_lock);
    ret = lv_dma_add(&container->table, &mapping);
    pthread_mutex_unlock(&container->table_lock);
    if (ret != 0) {
        return -1;
    }
    ret = find_backing(container, &mapping, &fd, &offset);
    if (ret == 0) {
        ret = map_everywhere(container, &mapping, fd, offset);
        saved = errno;
        if (fd != -1) {
            close(fd);
        }
        errno = saved;
    }
    if (ret != 0) {
        saved = errno;
        pthread_mutex_lock(&container->table_lock);
        (void)lv_dma_find(&container->table, mapping.iova, mapping.size, &first,
                          &nr);
        lv_dma_remove(&container->table, first, nr);
        pthread_mutex_unlock(&container->table_lock);
        errno = saved;
    }
    return ret;
}

/* What an unmapping asks for: a range of the table. */
static int
find_range(struct lv_container *container,
           const struct vfio_iommu_type1_dma_unmap *arg, size_t *first,
           size_t *nr)
{
#ifdef VFIO_DMA_UNMAP_FLAG_ALL
    if (arg->flags == VFIO_DMA_UNMAP_FLAG_ALL) {
        if (arg->iova != 0 || arg->size != 0) {
            errno = EINVAL;
            return -1;
        }
        *first = 0;
        *nr = container->table.nr;
        return 0;
    }
#endif
    if (arg->flags != 0) {
        errno = EINVAL;
        return -1;
    }
    return lv_dma_find(&container->table, arg->iova, arg->size, first, nr);
}

int
lv_mapping_unmap(struct lv_container *container,
                 struct vfio_iommu_type1_dma_unmap *arg)
{
    uint64_t unmapped = 0;
    size_t first, nr;

    if (arg->argsz < sizeof(*arg)) {
        errno = EINVAL;
        return -1;
    }
    if (find_range(container, arg, &first, &nr) != 0) {
        return -1;
    }
    for (size_t i = first; i < first + nr; i++) {
        unmap_everywhere(container, &container->table.mappings[i], NULL);
        unmapped += container->table.mappings[i].size;
    }
    /* Until here the server's DMA messages are still answered. */
    pthread_mutex_lock(&container->table_lock);
    lv_dma_remove(&container->table, first, nr);
    pthread_mutex_unlock(&container->table_lock);
    arg->size = unmapped;
    return 0;
}

void
lv_mapping_withdraw(struct lv_container *container, struct lv_group *group)
{
    for (size_t i = 0; i < container->table.nr; i++) {
        /* It may not have them all, if it refused one. */
        (void)send_unmap(group, &container->table.mappings[i]);
    }
}

int
lv_mapping_replay(struct lv_container *container, struct lv_group *group)
{
    for (size_t i = 0; i < container->table.nr; i++) {
        const struct lv_mapping *mapping = &container->table.mappings[i];
        uint64_t offset;
        int fd, ret, saved;

        if (find_backing(container, mapping, &fd, &offset) != 0) {
            return -1;
        }
        ret = send_map(group, mapping, fd, offset);
        saved = errno;
        if (fd != -1) {
            close(fd);
        }
        if (ret != 0) {
            errno = saved;
            return -1;
        }
    }
    return 0;
}
