/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Regions: BARs, ROM and configuration space, as ranges of the device's file.
 *
 * What the server says of a region is asked once, when the device is opened.
 * Writes to memory BARs are *posted*, as on PCI: the library does not wait for
 * the server. Order is kept, because everything goes through one socket.
 */
#include "vfio.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "log.h"

/* Room for capabilities; SPDK's sparse list is 56 bytes. */
#define MAX_REGION_INFO 4096u

#define PCI_BAR0            0x10
#define PCI_ROM             0x30
#define PCI_CAPABILITIES    0x34
#define PCI_INTERRUPT_LINE  0x3c
#define PCI_INTERRUPT_PIN   0x3d
#define PCI_BAR_IO          0x1u
#define NR_BARS             6u

/* Are the capabilities of info, length bytes in all, well formed? */
static bool
capabilities_valid(const struct vfio_region_info *info, size_t length)
{
    size_t at = info->cap_offset, rounds = 0;

    while (at != 0) {
        const struct vfio_region_info_cap_sparse_mmap *sparse;

        if (at < sizeof(*info) || at % sizeof(uint32_t) != 0 || at > length ||
            length - at < sizeof(struct vfio_info_cap_header) ||
            ++rounds > 64) {
            return false;
        }
        sparse = (const void *)((const char *)info + at);
        if (sparse->header.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP &&
            (length - at < sizeof(*sparse) ||
             (length - at - sizeof(*sparse)) / sizeof(sparse->areas[0]) <
                 sparse->nr_areas)) {
            return false;
        }
        at = sparse->header.next;
    }
    return true;
}

/* Makes a server's answer one that QEMU can trust; region->fd is set. */
static void
sanitise(struct lv_region *region, uint32_t index, size_t length)
{
    struct vfio_region_info *info = region->info;

    region->server_offset = info->offset;
    info->index = index;
    info->offset = (uint64_t)index << LV_REGION_SHIFT;
    info->argsz = (uint32_t)length;
    if ((info->flags & VFIO_REGION_INFO_FLAG_CAPS) == 0 ||
        info->cap_offset == 0 || !capabilities_valid(info, length)) {
        info->flags &= ~VFIO_REGION_INFO_FLAG_CAPS;
        info->cap_offset = 0;
        info->argsz = sizeof(*info);
    }
    if (region->fd == -1 || info->size > LV_REGION_MASK) {
        info->flags &= ~VFIO_REGION_INFO_FLAG_MMAP;
    }
}

int
lv_region_query(struct lv_device *device, uint32_t index)
{
    struct lv_region *region = &device->regions[index];
    struct vfio_region_info request = { .argsz = MAX_REGION_INFO, .index = index };
    int fds[VU_MAX_FDS];
    struct lv_call call = {
        .command = VU_DEVICE_GET_REGION_INFO,
        .request = { { &request, sizeof(request) } },
        .reply_fds = fds,
    };

    region->fd = -1;
    region->info = calloc(1, MAX_REGION_INFO);
    if (region->info == NULL) {
        return -1;
    }
    call.reply[0] = (struct iovec){ region->info, MAX_REGION_INFO };
    if (lv_client_call(device->group->client, &call) != 0) {
        lv_region_release(region);
        return -1;
    }
    for (size_t i = 0; i < call.nr_reply_fds; i++) {
        if (region->fd == -1) {
            region->fd = fds[i];
        } else {
            close(fds[i]);
        }
    }
    if (call.reply_length < sizeof(*region->info)) {
        lv_region_release(region);
        errno = EPROTO;
        return -1;
    }
    sanitise(region, index, call.reply_length);
    return 0;
}

void
lv_region_release(struct lv_region *region)
{
    int saved = errno;

    if (region->fd != -1) {
        close(region->fd);
    }
    free(region->info);
    *region = (struct lv_region){ .fd = -1 };
    errno = saved;
}

void
lv_region_read_header(struct lv_device *device)
{
    uint64_t config = (uint64_t)VFIO_PCI_CONFIG_REGION_INDEX << LV_REGION_SHIFT;

    if ((device->info.flags & VFIO_DEVICE_FLAGS_PCI) == 0 ||
        lv_region_read(device, device->header, LV_CONFIG_HEADER, config) !=
            LV_CONFIG_HEADER) {
        return;
    }
    for (uint32_t i = 0; i < NR_BARS && i < device->nr_regions; i++) {
        device->regions[i].posted =
            (device->header[PCI_BAR0 + 4 * i] & PCI_BAR_IO) == 0;
    }
}

int
lv_region_info(struct lv_device *device, struct vfio_region_info *arg)
{
    const struct vfio_region_info *info;
    uint32_t argsz = arg->argsz;

    if (argsz < sizeof(*arg) || arg->index >= device->nr_regions) {
        errno = EINVAL;
        return -1;
    }
    info = device->regions[arg->index].info;
    if (argsz >= info->argsz) {
        memcpy(arg, info, info->argsz);
    } else {
        /* As the kernel: how much it takes, and no capabilities yet. */
        *arg = *info;
        arg->cap_offset = 0;
    }
    return 0;
}

/*
 * Finds the region of position and cuts *size to it. Returns NULL with the
 * kernel's errno: configuration space is all or nothing, the rest may be short.
 */
static struct lv_region *
locate(struct lv_device *device, uint64_t position, size_t *size, uint64_t *offset)
{
    uint64_t index = position >> LV_REGION_SHIFT;
    struct lv_region *region;

    *offset = position & LV_REGION_MASK;
    if (index >= device->nr_regions) {
        errno = EINVAL;
        return NULL;
    }
    region = &device->regions[index];
    if (*offset >= region->info->size) {
        errno = index == VFIO_PCI_CONFIG_REGION_INDEX ? EFAULT : EINVAL;
        return NULL;
    }
    if (*size > region->info->size - *offset) {
        if (index == VFIO_PCI_CONFIG_REGION_INDEX) {
            errno = EFAULT;
            return NULL;
        }
        *size = region->info->size - *offset;
    }
    return region;
}

/* Does the kernel answer for this byte of configuration space by itself? */
static bool
kept_by_kernel(uint64_t at)
{
    return (at >= PCI_BAR0 && at < PCI_BAR0 + 4 * NR_BARS) ||
           (at >= PCI_ROM && at < PCI_ROM + 4) || at == PCI_CAPABILITIES ||
           at == PCI_INTERRUPT_LINE || at == PCI_INTERRUPT_PIN;
}

/*
 * What hardware that was pulled out reads as. QEMU 7.2 ends itself when the
 * interrupt pin is not one of the four, so what the kernel keeps is kept here.
 */
static ssize_t
read_pulled_out(struct lv_device *device, uint32_t index, uint64_t offset,
                uint8_t *data, size_t size)
{
    memset(data, 0xff, size);
    if (index == VFIO_PCI_CONFIG_REGION_INDEX) {
        for (size_t i = 0; i < size && offset + i < LV_CONFIG_HEADER; i++) {
            if (kept_by_kernel(offset + i)) {
                data[i] = device->header[offset + i];
            }
        }
    }
    return (ssize_t)size;
}

static ssize_t
read_once(struct lv_device *device, uint32_t index, uint64_t offset, void *data,
          size_t size)
{
    struct vu_region_access request = { offset, index, (uint32_t)size }, reply;
    struct lv_call call = {
        .command = VU_REGION_READ,
        .request = { { &request, sizeof(request) } },
        .reply = { { &reply, sizeof(reply) }, { data, size } },
    };

    if (lv_client_call(device->group->client, &call) != 0) {
        if (lv_client_dead(device->group->client)) {
            return read_pulled_out(device, index, offset, data, size);
        }
        return -1;
    }
    if (call.reply_length < sizeof(reply) || reply.count > size ||
        call.reply_length - sizeof(reply) < reply.count) {
        errno = EIO;
        return -1;
    }
    return reply.count;
}

static ssize_t
write_once(struct lv_device *device, uint32_t index, uint64_t offset,
           const void *data, size_t size)
{
    struct vu_region_access request = { offset, index, (uint32_t)size }, reply;
    struct lv_call call = {
        .command = VU_REGION_WRITE,
        .no_reply = device->regions[index].posted,
        .request = { { &request, sizeof(request) }, { (void *)data, size } },
        .reply = { { &reply, sizeof(reply) } },
    };

    if (lv_client_call(device->group->client, &call) != 0) {
        return lv_client_dead(device->group->client) ? (ssize_t)size : -1;
    }
    if (call.no_reply) {
        return (ssize_t)size;
    }
    if (call.reply_length < sizeof(reply) || reply.count > size) {
        errno = EIO;
        return -1;
    }
    return reply.count;
}

/* Exactly one of in and out is given. */
static ssize_t
transfer(struct lv_device *device, void *in, const void *out, size_t size,
         uint64_t position)
{
    size_t most = lv_client_max_xfer(device->group->client), done = 0;
    uint64_t offset;
    struct lv_region *region = locate(device, position, &size, &offset);

    if (region == NULL) {
        return -1;
    }
    while (done < size) {
        size_t n = size - done < most ? size - done : most;
        uint32_t index = region->info->index;
        ssize_t ret = in != NULL
            ? read_once(device, index, offset + done, (char *)in + done, n)
            : write_once(device, index, offset + done,
                         (const char *)out + done, n);

        if (ret <= 0) {
            return done > 0 ? (ssize_t)done : ret;
        }
        done += (size_t)ret;
    }
    return (ssize_t)done;
}

ssize_t
lv_region_read(struct lv_device *device, void *data, size_t size,
               uint64_t position)
{
    return transfer(device, data, NULL, size, position);
}

ssize_t
lv_region_write(struct lv_device *device, const void *data, size_t size,
                uint64_t position)
{
    return transfer(device, NULL, data, size, position);
}

void *
lv_region_mmap(struct lv_device *device, void *address, size_t length,
               int protection, int flags, uint64_t position)
{
    uint64_t index = position >> LV_REGION_SHIFT;
    uint64_t offset = position & LV_REGION_MASK;
    const struct lv_region *region;

    if (index >= device->nr_regions || (flags & MAP_SHARED) == 0) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    region = &device->regions[index];
    if ((region->info->flags & VFIO_REGION_INFO_FLAG_MMAP) == 0 ||
        offset >= region->info->size || length > region->info->size - offset) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    return mmap(address, length, protection, flags, region->fd,
                (off_t)(region->server_offset + offset));
}
