/* SPDX-License-Identifier: BSD-3-Clause */
#include "vfio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "log.h"

/* As the kernel does at the last close(): no interrupt outlives its owner. */
static void
disable_interrupts(struct lv_device *device)
{
    for (uint32_t i = 0; i < device->nr_irqs; i++) {
        struct vfio_irq_set set = {
            .argsz = sizeof(set),
            .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
            .index = i,
        };

        if (device->irqs[i].count > 0) {
            (void)lv_irq_set(device, &set);
        }
    }
}

static void
device_release(struct lv_file *file)
{
    struct lv_device *device = (struct lv_device *)file;
    struct lv_group *group = device->group;

    disable_interrupts(device);
    pthread_mutex_lock(&lv_topology);
    if (group->device == device) {
        group->device = NULL;
    }
    pthread_mutex_unlock(&lv_topology);
    for (uint32_t i = 0; i < device->nr_regions; i++) {
        lv_region_release(&device->regions[i]);
    }
    if (device->request_fd != -1) {
        close(device->request_fd);
    }
    pthread_mutex_destroy(&device->request_lock);
    free(device);
    lv_file_put(&group->file);
}

static int
query_info(struct lv_device *device)
{
    struct vu_device_info request = { .argsz = sizeof(request) }, reply;
    struct lv_call call = {
        .command = VU_DEVICE_GET_INFO,
        .request = { { &request, sizeof(request) } },
        .reply = { { &reply, sizeof(reply) } },
    };

    if (lv_client_call(device->group->client, &call) != 0) {
        return -1;
    }
    if (call.reply_length < sizeof(reply) || reply.num_regions > LV_MAX_REGIONS ||
        reply.num_irqs > LV_MAX_IRQS) {
        errno = EPROTO;
        return -1;
    }
    /* Its capabilities, if any, do not come along in this protocol version. */
    device->info.flags = reply.flags & (VFIO_DEVICE_FLAGS_RESET |
                                        VFIO_DEVICE_FLAGS_PCI);
    device->info.num_regions = reply.num_regions;
    device->info.num_irqs = reply.num_irqs;
    return 0;
}

static int
query_all(struct lv_device *device)
{
    if (query_info(device) != 0) {
        return -1;
    }
    while (device->nr_regions < device->info.num_regions) {
        if (lv_region_query(device, device->nr_regions) != 0) {
            return -1;
        }
        device->nr_regions++;
    }
    while (device->nr_irqs < device->info.num_irqs) {
        if (lv_irq_query(device, device->nr_irqs) != 0) {
            return -1;
        }
        device->nr_irqs++;
    }
    lv_region_read_header(device);
    return 0;
}

/* Takes the group's only place for a device, and needs its container. */
static int
enter_group(struct lv_device *device)
{
    struct lv_group *group = device->group;

    errno = 0;
    pthread_mutex_lock(&lv_topology);
    if (group->container == NULL || !group->container->iommu_set) {
        errno = EINVAL;
    } else if (group->device != NULL) {
        errno = EBUSY;
    } else {
        group->device = device;
        group->container->running = true;
    }
    pthread_mutex_unlock(&lv_topology);
    return errno == 0 ? 0 : -1;
}

int
lv_device_open(struct lv_group *group)
{
    struct lv_device *device = calloc(1, sizeof(*device));
    int fd = -1, saved;

    if (device == NULL) {
        return -1;
    }
    lv_file_init(&device->file, LV_DEVICE, device_release);
    pthread_mutex_init(&device->request_lock, NULL);
    device->request_fd = -1;
    lv_file_hold(&group->file);
    device->group = group;
    if (enter_group(device) == 0) {
        if (query_all(device) == 0) {
            fd = lv_fdtable_install(&device->file);
        } else {
            lv_log("group %d: cannot use what the server says of its device: %m",
                   group->number);
        }
    }
    saved = errno;
    lv_file_put(&device->file);
    errno = saved;
    return fd;
}

void
lv_device_gone(struct lv_device *device)
{
    pthread_mutex_lock(&device->request_lock);
    if (device->request_fd != -1) {
        (void)eventfd_write(device->request_fd, 1);
    }
    pthread_mutex_unlock(&device->request_lock);
}

static int
get_info(struct lv_device *device, struct vfio_device_info *arg)
{
    if (arg->argsz < offsetof(struct vfio_device_info, cap_offset)) {
        errno = EINVAL;
        return -1;
    }
    arg->flags = device->info.flags;
    arg->num_regions = device->info.num_regions;
    arg->num_irqs = device->info.num_irqs;
    if (arg->argsz >= sizeof(*arg)) {
        arg->cap_offset = 0;
    }
    return 0;
}

static int
reset(struct lv_device *device)
{
    struct lv_call call = { .command = VU_DEVICE_RESET };

    if ((device->info.flags & VFIO_DEVICE_FLAGS_RESET) == 0) {
        errno = EINVAL;
        return -1;
    }
    if (lv_client_call(device->group->client, &call) != 0) {
        if (lv_client_dead(device->group->client)) {
            errno = EIO;
        }
        return -1;
    }
    return 0;
}

/* Nothing else shares this device's bus: it depends on itself alone. */
static int
get_hot_reset_info(struct lv_device *device, struct vfio_pci_hot_reset_info *arg)
{
    const size_t minimum = offsetof(struct vfio_pci_hot_reset_info, devices);

    if (arg->argsz < minimum) {
        errno = EINVAL;
        return -1;
    }
    arg->flags = 0;
    arg->count = 1;
    if (arg->argsz < minimum + sizeof(arg->devices[0])) {
        errno = ENOSPC;
        return -1;
    }
    memset(&arg->devices[0], 0, sizeof(arg->devices[0]));
    arg->devices[0].group_id = (uint32_t)device->group->number;
    return 0;
}

static int
hot_reset(struct lv_device *device, const struct vfio_pci_hot_reset *arg)
{
    const size_t minimum = offsetof(struct vfio_pci_hot_reset, group_fds);
    struct lv_file *file;
    bool ours;

    if (arg->argsz < minimum || arg->flags != 0 || arg->count != 1 ||
        arg->argsz - minimum < sizeof(arg->group_fds[0])) {
        errno = EINVAL;
        return -1;
    }
    file = lv_file_get_kind(arg->group_fds[0], LV_GROUP);
    ours = file == &device->group->file;
    if (file != NULL) {
        lv_file_put(file);
    }
    if (!ours) {
        errno = EINVAL;
        return -1;
    }
    return reset(device);
}

int
lv_device_ioctl(struct lv_device *device, unsigned long request, void *arg)
{
    switch (request) {
    case VFIO_DEVICE_GET_INFO:
        return get_info(device, arg);
    case VFIO_DEVICE_GET_REGION_INFO:
        return lv_region_info(device, arg);
    case VFIO_DEVICE_GET_IRQ_INFO:
        return lv_irq_info(device, arg);
    case VFIO_DEVICE_SET_IRQS:
        return lv_irq_set(device, arg);
    case VFIO_DEVICE_RESET:
        return reset(device);
    case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
        return get_hot_reset_info(device, arg);
    case VFIO_DEVICE_PCI_HOT_RESET:
        return hot_reset(device, arg);
    case VFIO_DEVICE_FEATURE:
        return lv_device_feature(device, arg);
    default:
        /* ioeventfds, display: not offered. */
        errno = ENOTTY;
        return -1;
    }
}
