/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Migration: VFIO_DEVICE_FEATURE, as DEVICE_FEATURE, and the data descriptor, as
 * MIG_DATA_READ and MIG_DATA_WRITE. A server that does not speak them is one
 * whose driver in the kernel cannot migrate: ENOTTY, and QEMU blocks migration.
 *
 * The data descriptor of a device that is saved (STOP_COPY) is a memfd with all
 * of its state, which QEMU reads to the end. That of one that is restored
 * (RESUMING) is ours: each write() goes to the server at once, so that a server
 * which refuses the state is heard while QEMU can still go on at the source.
 *
 * libvfio-user, as SPDK has it, lacks two things that QEMU needs, and has one that
 * needs more than we translate:
 * - RUNNING_P2P, in which a device leaves other devices alone and the guest's CPUs
 *   stand still (QEMU's vm_state_notify(), before and after them): it stops then;
 * - the size of the state: QEMU would take it for 100 GiB, and never stop the guest;
 * - PRE_COPY, which has an ioctl on the data descriptor.
 *
 * Once the server is gone, a device can enter any state that has no data: QEMU
 * resets a device that cannot, and ends itself when that fails too.
 */
#include "vfio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef VFIO_DEVICE_FEATURE_MIG_DATA_SIZE
#define VFIO_DEVICE_FEATURE_MIG_DATA_SIZE 9     /* Linux 6.2 */
struct vfio_device_feature_mig_data_size {
    __aligned_u64 stop_copy_length;
};
#endif

#define MAX_RANGES      64u
#define MAX_DATA        0x8000u         /* of one message */
#define PAGE            UINT64_C(4096)
#define USUAL_STATE     0x10000u        /* of a device whose server does not say it */
#define REPORT_SPAN     (MAX_DATA * 8 * PAGE)   /* memory in one message's bits */

struct lv_incoming {
    struct lv_file file;
    struct lv_device *device;           /* referenced */
};

/* One DEVICE_FEATURE; data and what comes back are behind its header. */
static int
call_feature(struct lv_device *device, uint32_t flags, const void *data,
             size_t size, void *reply, size_t reply_size)
{
    struct vu_device_feature request = {
        .argsz = (uint32_t)(sizeof(request) + (size > reply_size ? size : reply_size)),
        .flags = flags,
    }, header;
    struct lv_call call = {
        .command = VU_DEVICE_FEATURE,
        .request = { { &request, sizeof(request) }, { (void *)data, size } },
        .reply = { { &header, sizeof(header) }, { reply, reply_size } },
    };

    if (lv_client_call(device->group->client, &call) != 0) {
        return -1;
    }
    if (call.reply_length < sizeof(header) + reply_size) {
        errno = EPROTO;
        return -1;
    }
    return 0;
}

/* What the server has or not: whatever it says against it, it is "not". */
static int
ask_feature(struct lv_device *device, uint32_t flags, void *reply, size_t size)
{
    if (call_feature(device, flags, NULL, 0, reply, size) != 0) {
        errno = ENOTTY;
        return -1;
    }
    return 0;
}

/* What of migration QEMU is offered: all that it needs, if the server has any. */
static int
get_migration(struct lv_device *device, struct vfio_device_feature_migration *arg)
{
    if (ask_feature(device, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION,
                    arg, sizeof(*arg)) != 0) {
        return -1;
    }
    device->no_p2p = (arg->flags & VFIO_MIGRATION_P2P) == 0;
    arg->flags &= VFIO_MIGRATION_STOP_COPY;
    arg->flags |= arg->flags != 0 ? VFIO_MIGRATION_P2P : 0;
    return 0;
}

static int
get_data_size(struct lv_device *device,
              struct vfio_device_feature_mig_data_size *arg)
{
    if (ask_feature(device, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE,
                    arg, sizeof(*arg)) != 0) {
        if (!device->no_p2p) {
            return -1;
        }
        arg->stop_copy_length = USUAL_STATE;
    }
    return 0;
}

static int
send_state(struct lv_device *device, uint32_t state)
{
    bool stops = state == VFIO_DEVICE_STATE_RUNNING_P2P && device->no_p2p;
    struct vu_mig_state wanted = { stops ? VFIO_DEVICE_STATE_STOP : state, -1 }, reply;

    return call_feature(device, VFIO_DEVICE_FEATURE_SET |
                                    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
                        &wanted, sizeof(wanted), &reply, sizeof(reply));
}

/* The next piece of the state into data. Returns its size, or -1. */
static ssize_t
read_piece(struct lv_device *device, void *data)
{
    struct vu_mig_data request = { sizeof(request) + MAX_DATA, MAX_DATA }, reply;
    struct lv_call call = {
        .command = VU_MIG_DATA_READ,
        .request = { { &request, sizeof(request) } },
        .reply = { { &reply, sizeof(reply) }, { data, MAX_DATA } },
    };

    if (lv_client_call(device->group->client, &call) != 0) {
        return -1;
    }
    if (call.reply_length < sizeof(reply) ||
        call.reply_length - sizeof(reply) < reply.size) {
        errno = EPROTO;
        return -1;
    }
    return (ssize_t)reply.size;
}

/* Returns a memfd with all of the device's state, or -1. */
static int
save(struct lv_device *device)
{
    char *data = malloc(MAX_DATA);
    int fd = memfd_create("libvfio-state", MFD_CLOEXEC), saved;
    ssize_t size = fd == -1 || data == NULL ? -1 : 1;

    while (size > 0) {
        size = read_piece(device, data);
        if (size > 0 && write(fd, data, (size_t)size) != size) {
            size = -1;
        }
    }
    if (size == 0 && lseek(fd, 0, SEEK_SET) != 0) {
        size = -1;
    }
    saved = errno;
    free(data);
    if (size != 0 && fd != -1) {
        close(fd);
        fd = -1;
    }
    errno = saved;
    return fd;
}

static void
incoming_release(struct lv_file *file)
{
    struct lv_incoming *incoming = (struct lv_incoming *)file;

    lv_file_put(&incoming->device->file);
    free(incoming);
}

/* Returns a descriptor that takes a device's state, or -1. */
static int
restore(struct lv_device *device)
{
    struct lv_incoming *incoming = calloc(1, sizeof(*incoming));
    int fd, saved;

    if (incoming == NULL) {
        return -1;
    }
    lv_file_init(&incoming->file, LV_INCOMING, incoming_release);
    lv_file_hold(&device->file);
    incoming->device = device;
    fd = lv_fdtable_install(&incoming->file);
    saved = errno;
    lv_file_put(&incoming->file);
    errno = saved;
    return fd;
}

ssize_t
lv_incoming_write(struct lv_incoming *incoming, const void *data, size_t size)
{
    struct lv_client *client = incoming->device->group->client;
    uint32_t n = size < MAX_DATA ? (uint32_t)size : MAX_DATA;
    struct vu_mig_data request = { (uint32_t)sizeof(request) + n, n };
    struct lv_call call = {
        .command = VU_MIG_DATA_WRITE,
        .request = { { &request, sizeof(request) }, { (void *)data, n } },
    };

    if (lv_client_call(client, &call) != 0) {
        if (lv_client_dead(client)) {
            errno = EIO;
        }
        return -1;
    }
    return (ssize_t)n;
}

static int
set_state(struct lv_device *device, struct vfio_device_feature_mig_state *arg)
{
    uint32_t wanted = arg->device_state;
    bool has_data = wanted == VFIO_DEVICE_STATE_STOP_COPY ||
                    wanted == VFIO_DEVICE_STATE_RESUMING;
    int saved;

    arg->data_fd = -1;
    if (send_state(device, wanted) != 0) {
        return !has_data && lv_client_dead(device->group->client) ? 0 : -1;
    }
    if (has_data) {
        arg->data_fd = wanted == VFIO_DEVICE_STATE_STOP_COPY ? save(device)
                                                             : restore(device);
        if (arg->data_fd == -1) {
            /* QEMU believes that it is where it was. */
            saved = errno;
            (void)send_state(device, VFIO_DEVICE_STATE_STOP);
            errno = saved;
            return -1;
        }
    }
    return 0;
}

static int
get_state(struct lv_device *device, struct vfio_device_feature_mig_state *arg)
{
    struct vu_mig_state state;

    if (call_feature(device, VFIO_DEVICE_FEATURE_GET |
                                 VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
                     NULL, 0, &state, sizeof(state)) != 0) {
        return -1;
    }
    arg->device_state = state.state;
    arg->data_fd = -1;
    return 0;
}

static int
start_logging(struct lv_device *device,
              const struct vfio_device_feature_dma_logging_control *arg)
{
    struct {
        struct vu_dma_logging_control head;
        struct vfio_device_feature_dma_logging_range ranges[MAX_RANGES];
    } request = { .head = { arg->page_size, arg->num_ranges, 0 } };
    size_t size = arg->num_ranges * sizeof(request.ranges[0]);

    if (arg->num_ranges > MAX_RANGES) {
        errno = E2BIG;
        return -1;
    }
    memcpy(request.ranges, (const void *)(uintptr_t)arg->ranges, size);
    return call_feature(device, VFIO_DEVICE_FEATURE_SET |
                                    VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
                        &request, sizeof(request.head) + size, NULL, 0);
}

static int
stop_logging(struct lv_device *device)
{
    int ret = call_feature(device, VFIO_DEVICE_FEATURE_SET |
                                       VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
                           NULL, 0, NULL, 0);

    return ret != 0 && lv_client_dead(device->group->client) ? 0 : ret;
}

/* Sets the bits of [address, address + length) in bitmap, which begins there. */
static int
report_span(struct lv_device *device, uint64_t address, uint64_t length,
            uint64_t *bitmap, uint64_t *bits)
{
    struct {
        struct vu_dma_logging_report head;
        uint64_t bits[MAX_DATA / sizeof(uint64_t)];
    } *reply = (void *)bits;
    struct vu_dma_logging_report request = { address, length, PAGE };
    size_t words = (size_t)((length / PAGE + 63) / 64);

    if (call_feature(device, VFIO_DEVICE_FEATURE_GET |
                                 VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
                     &request, sizeof(request), reply,
                     sizeof(request) + words * sizeof(uint64_t)) != 0) {
        return -1;
    }
    for (size_t i = 0; i < words; i++) {
        bitmap[i] |= reply->bits[i];
    }
    return 0;
}

static int
report(struct lv_device *device,
       const struct vfio_device_feature_dma_logging_report *arg)
{
    uint64_t *bitmap = (uint64_t *)(uintptr_t)arg->bitmap, *bits;
    int ret = 0, saved;

    if (arg->page_size != PAGE || arg->iova % PAGE != 0 || arg->length % PAGE != 0) {
        errno = EINVAL;
        return -1;
    }
    bits = malloc(sizeof(struct vu_dma_logging_report) + MAX_DATA);
    if (bits == NULL) {
        return -1;
    }
    for (uint64_t done = 0; done < arg->length && ret == 0; done += REPORT_SPAN) {
        uint64_t left = arg->length - done;

        ret = report_span(device, arg->iova + done,
                          left < REPORT_SPAN ? left : REPORT_SPAN,
                          bitmap + done / PAGE / 64, bits);
    }
    saved = errno;
    free(bits);
    errno = saved;
    return ret;
}

/* How much data comes with a feature; SIZE_MAX: not one of ours. */
static size_t
data_size(uint32_t feature)
{
    switch (feature) {
    case VFIO_DEVICE_FEATURE_MIGRATION:
        return sizeof(struct vfio_device_feature_migration);
    case VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        return sizeof(struct vfio_device_feature_mig_state);
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
        return sizeof(struct vfio_device_feature_dma_logging_control);
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
        return 0;
    case VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        return sizeof(struct vfio_device_feature_dma_logging_report);
    case VFIO_DEVICE_FEATURE_MIG_DATA_SIZE:
        return sizeof(struct vfio_device_feature_mig_data_size);
    default:
        return SIZE_MAX;
    }
}

int
lv_device_feature(struct lv_device *device, struct vfio_device_feature *arg)
{
    uint32_t feature = arg->flags & VFIO_DEVICE_FEATURE_MASK;
    size_t size = data_size(feature);

    if (size == SIZE_MAX) {
        errno = ENOTTY;
        return -1;
    }
    if (arg->flags & VFIO_DEVICE_FEATURE_PROBE) {
        return ask_feature(device, arg->flags, NULL, 0);
    }
    if (arg->argsz < sizeof(*arg) + size) {
        errno = EINVAL;
        return -1;
    }
    switch (arg->flags) {
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION:
        return get_migration(device, (void *)arg->data);
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DATA_SIZE:
        return get_data_size(device, (void *)arg->data);
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        return get_state(device, (void *)arg->data);
    case VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        return set_state(device, (void *)arg->data);
    case VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
        return start_logging(device, (const void *)arg->data);
    case VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
        return stop_logging(device);
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        return report(device, (const void *)arg->data);
    default:
        errno = EINVAL;
        return -1;
    }
}
