/* From libvfio-user's callbacks to the functions in Python. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "glue.h"

/* The largest naturally aligned power of two, eight at most, with which an access of `count` bytes can begin. */
static uint32_t
piece_size(uint64_t offset, size_t count)
{
    uint32_t size = 8;

    while (size > count || offset % size != 0) {
        size /= 2;
    }
    return size;
}

/* Guests access 1, 2, 4 or 8 bytes; other clients any number: those are cut into such pieces. */
static ssize_t
access_region(vfu_ctx_t *ctx, int region, char *buf, size_t count, uint64_t offset, bool is_write)
{
    void *device = vfu_get_private(ctx);
    size_t done = 0;

    while (done < count) {
        uint32_t size = count;
        uint64_t value = 0;
        int ret;

        if (done != 0 || (count != 1 && count != 2 && count != 4 && count != 8)) {
            size = piece_size(offset + done, count - done);
        }
        if (is_write) {
            memcpy(&value, buf + done, size);
            ret = nvmuser_py_write(device, region, offset + done, size, value);
        } else {
            ret = nvmuser_py_read(device, region, offset + done, size, &value);
            memcpy(buf + done, &value, size);
        }
        if (ret < 0) {
            return -1;
        }
        done += size;
    }
    return count;
}

/* libvfio-user does not tell a callback which region it is about. */
#define REGION(n)                                                                                       \
    static ssize_t access_region_##n(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write) \
    {                                                                                                   \
        return access_region(ctx, n, buf, count, offset, is_write);                                     \
    }
REGION(0) REGION(1) REGION(2) REGION(3) REGION(4) REGION(5) REGION(6) REGION(7)

static vfu_region_access_cb_t *const region_callbacks[] = {
    access_region_0, access_region_1, access_region_2, access_region_3,
    access_region_4, access_region_5, access_region_6, access_region_7,
};

int
nvmuser_vfu_setup_region(vfu_ctx_t *ctx, int region, size_t size, int flags, struct iovec *areas,
                         uint32_t area_count, int fd)
{
    if (region < 0 || region > VFU_PCI_DEV_ROM_REGION_IDX) {
        errno = EINVAL;
        return -1;
    }
    return vfu_setup_region(ctx, region, size, region_callbacks[region], flags, areas, area_count, fd, 0);
}

int
nvmuser_vfu_setup_config(vfu_ctx_t *ctx, size_t size)
{
    return vfu_setup_region(ctx, VFU_PCI_DEV_CFG_REGION_IDX, size, region_callbacks[VFU_PCI_DEV_CFG_REGION_IDX],
                            VFU_REGION_FLAG_RW, NULL, 0, -1, 0);
}

uint8_t *
nvmuser_vfu_config_space(vfu_ctx_t *ctx)
{
    return (uint8_t *)vfu_pci_get_config_space(ctx);
}

static void
on_log(vfu_ctx_t *ctx, int level, const char *text)
{
    nvmuser_py_log(vfu_get_private(ctx), level, text);
}

static int
on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    return nvmuser_py_reset(vfu_get_private(ctx), type);
}

static int
on_quiesce(vfu_ctx_t *ctx)
{
    return nvmuser_py_quiesce(vfu_get_private(ctx));
}

static void
on_dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    nvmuser_py_dma(vfu_get_private(ctx), (uintptr_t)info->iova.iov_base, info->iova.iov_len, info->vaddr != NULL, true);
}

static void
on_dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    nvmuser_py_dma(vfu_get_private(ctx), (uintptr_t)info->iova.iov_base, info->iova.iov_len, info->vaddr != NULL, false);
}

static void
on_intx_state(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    nvmuser_py_irq_state(vfu_get_private(ctx), VFU_DEV_INTX_IRQ, start, count, mask);
}

static void
on_msi_state(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    nvmuser_py_irq_state(vfu_get_private(ctx), VFU_DEV_MSI_IRQ, start, count, mask);
}

static void
on_msix_state(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    nvmuser_py_irq_state(vfu_get_private(ctx), VFU_DEV_MSIX_IRQ, start, count, mask);
}

int
nvmuser_vfu_setup_callbacks(vfu_ctx_t *ctx, int log_level)
{
    vfu_setup_device_quiesce_cb(ctx, on_quiesce);
    if (vfu_setup_log(ctx, on_log, log_level) < 0 ||
        vfu_setup_device_reset_cb(ctx, on_reset) < 0 ||
        vfu_setup_device_dma(ctx, on_dma_register, on_dma_unregister) < 0 ||
        vfu_setup_irq_state_callback(ctx, VFU_DEV_INTX_IRQ, on_intx_state) < 0 ||
        vfu_setup_irq_state_callback(ctx, VFU_DEV_MSI_IRQ, on_msi_state) < 0) {
        return -1;
    }
    return vfu_setup_irq_state_callback(ctx, VFU_DEV_MSIX_IRQ, on_msix_state);
}

static int
on_transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    return nvmuser_py_enter(vfu_get_private(ctx), state);
}

static ssize_t
on_state_read(vfu_ctx_t *ctx, void *data, uint64_t size)
{
    return nvmuser_py_state_read(vfu_get_private(ctx), data, size);
}

static ssize_t
on_state_write(vfu_ctx_t *ctx, void *data, uint64_t size)
{
    return nvmuser_py_state_write(vfu_get_private(ctx), data, size);
}

int
nvmuser_vfu_setup_migration(vfu_ctx_t *ctx)
{
    const vfu_migration_callbacks_t callbacks = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = on_transition,
        .read_data = on_state_read,
        .write_data = on_state_write,
    };

    return vfu_setup_device_migration_callbacks(ctx, &callbacks);
}

/*
 * A write to configuration space that is not within one doubleword, as every cycle on a bus is: libvfio-user's
 * cap_write_msi() and cap_write_msix() copy what goes beyond the capability over their stack.
 */
static bool
is_overlong_config_write(const struct vfio_user_header *header, const struct vfio_user_region_access *access)
{
    return header->cmd == VFIO_USER_REGION_WRITE && access->region == VFU_PCI_DEV_CFG_REGION_IDX &&
           (access->offset & 3) + access->count > 4;
}

/* A part of a message is there: whether that is all there will be. */
static int
nothing_follows(int fd)
{
    struct pollfd end = { .fd = fd, .events = POLLRDHUP };

    if (poll(&end, 1, 0) > 0) {
        return 1;
    }
    errno = EINPROGRESS;
    return 0;
}

int
nvmuser_vfu_message_waits(int fd)
{
    struct {
        struct vfio_user_header header;
        struct vfio_user_region_access access;
    } __attribute__((packed)) start;
    ssize_t got = recv(fd, &start, sizeof(start), MSG_PEEK | MSG_DONTWAIT);
    int there;

    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
        errno = EAGAIN;
        return 0;
    }
    /* The end of the connection, or an error of it: vfu_run_ctx() will see the same. */
    if (got <= 0) {
        return 1;
    }
    if (got < (ssize_t)sizeof(start.header)) {
        if (!nothing_follows(fd)) {
            return 0;
        }
        /* The library would keep the descriptors that came beside half a header; without a control buffer they go. */
        while (recv(fd, &start, sizeof(start), MSG_DONTWAIT) > 0) {
        }
        return 1;
    }
    /* A size that the library will refuse without reading on need not be waited for. */
    if (start.header.msg_size <= sizeof(start.header) || start.header.msg_size > (2 << 20)) {
        return 1;
    }
    if (ioctl(fd, FIONREAD, &there) < 0) {
        return -1;
    }
    if ((uint32_t)there < start.header.msg_size) {
        return nothing_follows(fd);
    }
    if (got == sizeof(start) && is_overlong_config_write(&start.header, &start.access)) {
        errno = EPROTO;
        return -1;
    }
    return 1;
}
