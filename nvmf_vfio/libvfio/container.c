/* SPDX-License-Identifier: BSD-3-Clause */
#include "vfio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

pthread_mutex_t lv_topology = PTHREAD_MUTEX_INITIALIZER;

static void
container_release(struct lv_file *file)
{
    struct lv_container *container = (struct lv_container *)file;

    lv_dma_fini(&container->table);
    pthread_mutex_destroy(&container->map_lock);
    pthread_mutex_destroy(&container->table_lock);
    free(container);
}

int
lv_container_open(void)
{
    struct lv_container *container = calloc(1, sizeof(*container));
    int fd;

    if (container == NULL) {
        return -1;
    }
    lv_file_init(&container->file, LV_CONTAINER, container_release);
    pthread_mutex_init(&container->map_lock, NULL);
    pthread_mutex_init(&container->table_lock, NULL);
    fd = lv_fdtable_install(&container->file);
    lv_file_put(&container->file);
    return fd;
}

int
lv_container_attach(struct lv_container *container, struct lv_group *group)
{
    int ret;

    pthread_mutex_lock(&container->map_lock);
    pthread_mutex_lock(&lv_topology);
    if (group->container != NULL) {
        pthread_mutex_unlock(&lv_topology);
        pthread_mutex_unlock(&container->map_lock);
        errno = EINVAL;
        return -1;
    }
    lv_file_hold(&container->file);
    group->container = container;
    group->next = container->groups;
    container->groups = group;
    pthread_mutex_unlock(&lv_topology);

    ret = lv_mapping_replay(container, group);
    pthread_mutex_unlock(&container->map_lock);
    if (ret != 0) {
        int saved = errno;

        (void)lv_container_detach(container, group);
        errno = saved;
    }
    return ret;
}

int
lv_container_detach(struct lv_container *container, struct lv_group *group)
{
    struct lv_group **link;

    pthread_mutex_lock(&container->map_lock);
    pthread_mutex_lock(&lv_topology);
    if (group->container != container || group->device != NULL) {
        errno = group->container != container ? EINVAL : EBUSY;
        pthread_mutex_unlock(&lv_topology);
        pthread_mutex_unlock(&container->map_lock);
        return -1;
    }
    link = &container->groups;
    while (*link != group) {
        link = &(*link)->next;
    }
    *link = group->next;
    group->next = NULL;
    group->container = NULL;
    pthread_mutex_unlock(&lv_topology);
    lv_mapping_withdraw(container, group);
    if (container->groups == NULL) {
        /* As in the kernel: the IOMMU and its mappings go with the last group. */
        container->iommu_set = false;
        container->running = false;
        pthread_mutex_lock(&container->table_lock);
        lv_dma_fini(&container->table);
        pthread_mutex_unlock(&container->table_lock);
    }
    pthread_mutex_unlock(&container->map_lock);
    lv_file_put(&container->file);
    return 0;
}

static int
check_extension(unsigned long extension)
{
    switch (extension) {
    case VFIO_TYPE1_IOMMU:
    case VFIO_TYPE1v2_IOMMU:
    case VFIO_DMA_CC_IOMMU:
#ifdef VFIO_UNMAP_ALL
    case VFIO_UNMAP_ALL:
#endif
        return 1;
    default:
        return 0;
    }
}

static int
set_iommu(struct lv_container *container, unsigned long type)
{
    if (container->groups == NULL || container->iommu_set) {
        errno = EINVAL;
        return -1;
    }
    if (type != VFIO_TYPE1_IOMMU && type != VFIO_TYPE1v2_IOMMU) {
        errno = ENODEV;
        return -1;
    }
    container->iommu_set = true;
    return 0;
}

/* The mappings that the least able server of this container still takes. */
static uint64_t
mappings_left(struct lv_container *container)
{
    uint64_t most = UINT32_MAX;

    pthread_mutex_lock(&lv_topology);
    for (struct lv_group *g = container->groups; g != NULL; g = g->next) {
        if (lv_client_max_dma_maps(g->client) < most) {
            most = lv_client_max_dma_maps(g->client);
        }
    }
    pthread_mutex_unlock(&lv_topology);
    return most > container->table.nr ? most - container->table.nr : 0;
}

static int
get_info(struct lv_container *container, struct vfio_iommu_type1_info *arg)
{
    struct {
        struct vfio_iommu_type1_info info;
        struct vfio_iommu_type1_info_dma_avail available;
    } reply = {
        .info = {
            .argsz = sizeof(reply),
            .flags = VFIO_IOMMU_INFO_PGSIZES,
            .iova_pgsizes = 0x1000 | 0x200000 | 0x40000000,
        },
        .available = {
            .header = { .id = VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, .version = 1 },
            .avail = (uint32_t)mappings_left(container),
        },
    };
    size_t minimum = offsetof(struct vfio_iommu_type1_info, cap_offset);
    size_t size = arg->argsz;

    if (size < minimum) {
        errno = EINVAL;
        return -1;
    }
    if (size >= sizeof(reply)) {
        reply.info.flags |= VFIO_IOMMU_INFO_CAPS;
        reply.info.cap_offset = sizeof(reply.info);
        size = sizeof(reply);
    } else if (size > sizeof(reply.info)) {
        size = sizeof(reply.info);
    }
    memcpy(arg, &reply, size);
    return 0;
}

static int
type1_ioctl(struct lv_container *container, unsigned long request, void *arg)
{
    switch (request) {
    case VFIO_IOMMU_GET_INFO:
        return get_info(container, arg);
    case VFIO_IOMMU_MAP_DMA:
        return lv_mapping_map(container, arg);
    case VFIO_IOMMU_UNMAP_DMA:
        return lv_mapping_unmap(container, arg);
    default:
        /* VFIO_IOMMU_DIRTY_PAGES too: no server of ours tracks writes so. */
        errno = ENOTTY;
        return -1;
    }
}

int
lv_container_ioctl(struct lv_container *container, unsigned long request,
                   void *arg)
{
    int ret;

    switch (request) {
    case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
    case VFIO_CHECK_EXTENSION:
        return check_extension((unsigned long)arg);
    default:
        break;
    }
    pthread_mutex_lock(&container->map_lock);
    if (request == VFIO_SET_IOMMU) {
        ret = set_iommu(container, (unsigned long)arg);
    } else if (!container->iommu_set) {
        errno = EINVAL;
        ret = -1;
    } else {
        ret = type1_ioctl(container, request, arg);
    }
    pthread_mutex_unlock(&container->map_lock);
    return ret;
}
