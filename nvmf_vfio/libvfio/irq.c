/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Interrupts: INTx, MSI, MSI-X, error and request.
 *
 * A server signals eventfds itself, so no interrupt passes through the library.
 * A message holds descriptors or none, and a limited number; QEMU's arrays mix
 * descriptors and -1 ("none"): they are sent as runs of one kind.
 *
 * The *request* interrupt means "give the device back". The kernel raises it when
 * the device is to be unbound, and QEMU then unplugs it. Here it is raised when
 * the server is gone, so that the guest need not wait for its time-outs; if the
 * server has that interrupt itself, it knows of the descriptor as well.
 *
 * With KVM's interrupt controller, QEMU would have INTx unmasked by an eventfd.
 * Servers take that without a word and never look at it (libvfio-user), and the
 * first interrupt would be the last. It is refused, and QEMU then unmasks by
 * ioctl (vfio_intx_enable_kvm() in hw/vfio/pci.c: a warning, and the slow path).
 */
#include "vfio.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define ACTIONS VFIO_IRQ_SET_ACTION_TYPE_MASK
#define DATA    VFIO_IRQ_SET_DATA_TYPE_MASK

static bool
is_pci(const struct lv_device *device)
{
    return (device->info.flags & VFIO_DEVICE_FLAGS_PCI) != 0;
}

int
lv_irq_query(struct lv_device *device, uint32_t index)
{
    struct vfio_irq_info request = { .argsz = sizeof(request), .index = index };
    struct vfio_irq_info *info = &device->irqs[index];
    struct lv_call call = {
        .command = VU_DEVICE_GET_IRQ_INFO,
        .request = { { &request, sizeof(request) } },
        .reply = { { info, sizeof(*info) } },
    };

    if (lv_client_call(device->group->client, &call) != 0) {
        return -1;
    }
    if (call.reply_length < sizeof(*info)) {
        errno = EPROTO;
        return -1;
    }
    info->index = index;
    if (index == VFIO_PCI_REQ_IRQ_INDEX && info->count == 0 && is_pci(device)) {
        device->request_local = true;
        info->flags = VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_NORESIZE;
        info->count = 1;
    }
    return 0;
}

int
lv_irq_info(struct lv_device *device, struct vfio_irq_info *arg)
{
    if (arg->argsz < sizeof(*arg) || arg->index >= device->nr_irqs) {
        errno = EINVAL;
        return -1;
    }
    arg->flags = device->irqs[arg->index].flags;
    arg->count = device->irqs[arg->index].count;
    return 0;
}

/* The kernel's vfio_set_irqs_validate_and_prepare(), in its order. */
static int
validate(const struct lv_device *device, const struct vfio_irq_set *arg)
{
    size_t minimum = offsetof(struct vfio_irq_set, data), unit;
    uint32_t count;

    errno = EINVAL;
    if (arg->argsz < minimum || arg->index >= device->nr_irqs ||
        arg->count >= UINT32_MAX - arg->start ||
        (arg->flags & ~(uint32_t)(ACTIONS | DATA)) != 0) {
        return -1;
    }
    count = device->irqs[arg->index].count;
    if (arg->start >= count || arg->start + arg->count > count) {
        return -1;
    }
    switch (arg->flags & DATA) {
    case VFIO_IRQ_SET_DATA_NONE:
        unit = 0;
        break;
    case VFIO_IRQ_SET_DATA_BOOL:
        unit = sizeof(uint8_t);
        break;
    case VFIO_IRQ_SET_DATA_EVENTFD:
        unit = sizeof(int32_t);
        break;
    default:
        return -1;
    }
    if (unit != 0 && arg->argsz - minimum < arg->count * unit) {
        return -1;
    }
    switch (arg->flags & ACTIONS) {
    case VFIO_IRQ_SET_ACTION_MASK:
    case VFIO_IRQ_SET_ACTION_UNMASK:
    case VFIO_IRQ_SET_ACTION_TRIGGER:
        return 0;
    default:
        return -1;
    }
}

/* What the kernel masks of a PCI device: INTx, while it is on. */
static int
check_masking(const struct lv_device *device, const struct vfio_irq_set *arg)
{
    if (!is_pci(device) || arg->index > VFIO_PCI_REQ_IRQ_INDEX ||
        (arg->flags & ACTIONS) == VFIO_IRQ_SET_ACTION_TRIGGER) {
        return 0;
    }
    if (arg->index != VFIO_PCI_INTX_IRQ_INDEX) {
        errno = ENOTTY;
        return -1;
    }
    if (!device->intx_enabled || arg->count != 1) {
        errno = EINVAL;
        return -1;
    }
    return 0;
}

/* Is an eventfd to mask or unmask? Taking one back is well. */
static bool
masks_by_eventfd(const struct vfio_irq_set *arg)
{
    const int32_t *fds = (const int32_t *)(const void *)arg->data;
    bool found = false;

    if ((arg->flags & VFIO_IRQ_SET_DATA_EVENTFD) != 0 &&
        (arg->flags & ACTIONS) != VFIO_IRQ_SET_ACTION_TRIGGER) {
        for (uint32_t i = 0; i < arg->count; i++) {
            found = found || fds[i] >= 0;
        }
    }
    return found;
}

static int
send_set(struct lv_device *device, const struct vfio_irq_set *arg, uint32_t start,
         uint32_t count, const int *fds, size_t nr_fds)
{
    size_t data = (arg->flags & VFIO_IRQ_SET_DATA_BOOL) != 0 ? count : 0;
    struct vu_irq_set request = {
        .argsz = (uint32_t)(sizeof(request) + data),
        .flags = arg->flags,
        .index = arg->index,
        .start = start,
        .count = count,
    };
    struct lv_call call = {
        .command = VU_DEVICE_SET_IRQS,
        .request = { { &request, sizeof(request) }, { (void *)arg->data, data } },
        .fds = fds,
        .nr_fds = nr_fds,
    };

    if (lv_client_call(device->group->client, &call) != 0) {
        return lv_client_dead(device->group->client) ? 0 : -1;
    }
    return 0;
}

/* How many from at on are descriptors, or are not, like the first. */
static uint32_t
run_length(const int32_t *fds, uint32_t at, uint32_t count, uint32_t most)
{
    bool valid = fds[at] >= 0;
    uint32_t n = 1;

    while (at + n < count && (fds[at + n] >= 0) == valid && (!valid || n < most)) {
        n++;
    }
    return n;
}

static int
send_eventfds(struct lv_device *device, const struct vfio_irq_set *arg)
{
    const int32_t *fds = (const int32_t *)(const void *)arg->data;
    uint32_t most = lv_client_max_fds(device->group->client), n;

    if (most == 0) {
        errno = ENOTSUP;
        return -1;
    }
    for (uint32_t at = 0; at < arg->count; at += n) {
        n = run_length(fds, at, arg->count, most);
        if (send_set(device, arg, arg->start + at, n, &fds[at],
                     fds[at] >= 0 ? n : 0) != 0) {
            return -1;
        }
    }
    return 0;
}

/* Keeps, drops or raises QEMU's eventfd for requests. */
static int
set_request(struct lv_device *device, const struct vfio_irq_set *arg)
{
    int32_t given = -1;
    int fd = -1, old;

    if (arg->count > 0 && (arg->flags & VFIO_IRQ_SET_DATA_EVENTFD) == 0) {
        if ((arg->flags & VFIO_IRQ_SET_DATA_NONE) != 0 || arg->data[0] != 0) {
            lv_device_gone(device);
        }
        return 0;
    }
    if (arg->count > 0) {
        given = *(const int32_t *)(const void *)arg->data;
    }
    if (given >= 0) {
        fd = fcntl(given, F_DUPFD_CLOEXEC, 0);
        if (fd == -1) {
            return -1;
        }
    }
    pthread_mutex_lock(&device->request_lock);
    old = device->request_fd;
    device->request_fd = fd;
    pthread_mutex_unlock(&device->request_lock);
    if (old != -1) {
        close(old);
    }
    if (lv_client_dead(device->group->client)) {
        lv_device_gone(device); /* it may have died before there was anyone to tell */
    }
    return 0;
}

/* Hands it to the server, but for what is only ours. */
static int
apply(struct lv_device *device, struct vfio_irq_set *arg)
{
    if (arg->index == VFIO_PCI_REQ_IRQ_INDEX && is_pci(device)) {
        if (set_request(device, arg) != 0) {
            return -1;
        }
        if (device->request_local) {
            return 0;
        }
    }
    if ((arg->flags & VFIO_IRQ_SET_DATA_EVENTFD) != 0 && arg->count > 0) {
        return send_eventfds(device, arg);
    }
    return send_set(device, arg, arg->start, arg->count, NULL, 0);
}

int
lv_irq_set(struct lv_device *device, struct vfio_irq_set *arg)
{
    if (validate(device, arg) != 0 || check_masking(device, arg) != 0) {
        return -1;
    }
    if (masks_by_eventfd(arg)) {
        errno = ENOTTY;
        return -1;
    }
    if (apply(device, arg) != 0) {
        return -1;
    }
    if (arg->index == VFIO_PCI_INTX_IRQ_INDEX &&
        (arg->flags & ACTIONS) == VFIO_IRQ_SET_ACTION_TRIGGER) {
        if (arg->count == 0) {
            device->intx_enabled = false;
        } else if ((arg->flags & VFIO_IRQ_SET_DATA_EVENTFD) != 0) {
            device->intx_enabled = true;
        }
    }
    return 0;
}
