/* SPDX-License-Identifier: BSD-3-Clause */
/* The device: regions, interrupts, resets, the end of its server. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vfio_fixture.h"

static void
test_device_info(void **state)
{
    struct vfio_device_info info = { .argsz = sizeof(info) };

    (void)state;
    open_device();
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_INFO, &info), 0);
    assert_int_equal(info.num_regions, 9);
    assert_int_equal(info.num_irqs, 5);
    assert_int_equal(info.flags, VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET);
    info.argsz = 4;
    assert_errno(ioctl_on(device, VFIO_DEVICE_GET_INFO, &info), EINVAL);
}

static void
test_region_info(void **state)
{
    struct {
        struct vfio_region_info info;
        char rest[128];
    } out = { .info = { .argsz = sizeof(out.info) } };
    struct vfio_region_info_cap_sparse_mmap *sparse;

    (void)state;
    open_device();
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, &out), 0);
    assert_true(out.info.argsz > sizeof(out.info));
    assert_int_equal(out.info.cap_offset, 0);
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, &out), 0);
    sparse = (void *)((char *)&out + out.info.cap_offset);
    assert_int_equal(sparse->header.id, VFIO_REGION_INFO_CAP_SPARSE_MMAP);
    assert_int_equal(sparse->nr_areas, 1);
    assert_int_equal(out.info.size, SERVER_BAR0_SIZE);
    out.info = (struct vfio_region_info){ .argsz = sizeof(out), .index = 7 };
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, &out), 0);
    assert_int_equal(out.info.offset, 7ull << 40);
    assert_int_equal(out.info.size, SERVER_CONFIG_SIZE);
    out.info.index = 9;
    assert_errno(ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, &out), EINVAL);
    out.info.argsz = 31;
    assert_errno(ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, &out), EINVAL);
}

static void
test_bad_capabilities(void **state)
{
    struct vfio_region_info info = { .argsz = sizeof(info) };

    (void)state;
    server->fault = FAULT_BAD_CAPS;
    server->fault_command = VU_DEVICE_GET_REGION_INFO;
    open_device();
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, &info), 0);
    assert_int_equal(info.flags & VFIO_REGION_INFO_FLAG_CAPS, 0);
    assert_int_equal(info.argsz, sizeof(info));
}

static void
test_region_access(void **state)
{
    uint64_t config = 7ull << 40;
    uint8_t data[16];

    (void)state;
    open_device();
    assert_int_equal(lv_region_read(the_device(), data, 4, config + 8), 4);
    assert_memory_equal(data, server->config + 8, 4);
    assert_int_equal(lv_region_write(the_device(), "abcd", 4, config + 0x40), 4);
    assert_memory_equal(server->config + 0x40, "abcd", 4);
    assert_int_equal(server->unanswered, 0);
    /* Memory BARs are posted, I/O BARs and configuration space are not. */
    assert_int_equal(lv_region_write(the_device(), "efgh", 4, 0x100), 4);
    assert_int_equal(lv_region_read(the_device(), data, 4, 0x100), 4);
    assert_memory_equal(data, "efgh", 4);
    assert_int_equal(server->unanswered, 1);
    assert_errno(lv_region_write(the_device(), "i", 1, 1ull << 40), EINVAL);

    assert_errno(lv_region_read(the_device(), data, 4, config + SERVER_CONFIG_SIZE - 2),
                 EFAULT);
    assert_errno(lv_region_read(the_device(), data, 4, config + SERVER_CONFIG_SIZE),
                 EFAULT);
    assert_int_equal(lv_region_read(the_device(), data, 16, SERVER_BAR0_SIZE - 8), 8);
    assert_errno(lv_region_read(the_device(), data, 1, SERVER_BAR0_SIZE), EINVAL);
    assert_errno(lv_region_read(the_device(), data, 1, 2ull << 40), EINVAL);
    assert_errno(lv_region_read(the_device(), data, 1, 9ull << 40), EINVAL);
    assert_errno(lv_region_read(the_device(), data, 1, ~0ull), EINVAL);
}

/* A server that takes little at once is asked several times. */
static void
test_small_transfers(void **state)
{
    uint8_t data[1000];

    (void)state;
    server->version_json = "{\"capabilities\":{\"max_data_xfer_size\":64}}";
    open_device();
    server->seen[VU_REGION_READ] = 0;
    assert_int_equal(lv_region_read(the_device(), data, sizeof(data), 7ull << 40), 1000);
    assert_memory_equal(data, server->config, sizeof(data));
    assert_int_equal(server->seen[VU_REGION_READ], 16);
}

static void
test_mmap(void **state)
{
    size_t half = SERVER_BAR0_SIZE / 2;
    char *at, byte;

    (void)state;
    open_device();
    at = lv_region_mmap(the_device(), NULL, half, PROT_READ | PROT_WRITE, MAP_SHARED,
                        half);
    assert_true(at != MAP_FAILED);
    at[5] = 0x66;
    assert_int_equal(pread(server->bar0_fd, &byte, 1, (off_t)(0x1000 + half + 5)), 1);
    assert_int_equal(byte, 0x66);
    munmap(at, half);
    errno = 0;
    assert_true(lv_region_mmap(the_device(), NULL, half + 0x1000, PROT_READ, MAP_SHARED,
                               half) == MAP_FAILED);
    assert_int_equal(errno, EINVAL);
    assert_true(lv_region_mmap(the_device(), NULL, 0x1000, PROT_READ, MAP_SHARED,
                               7ull << 40) == MAP_FAILED);
    assert_true(lv_region_mmap(the_device(), NULL, 0x1000, PROT_READ, MAP_PRIVATE,
                               half) == MAP_FAILED);
}

static int
set_irqs(uint32_t flags, uint32_t index, uint32_t start, uint32_t count,
         const void *data, size_t size)
{
    struct vfio_irq_set *set = calloc(1, sizeof(*set) + size);
    int ret, saved;

    *set = (struct vfio_irq_set){ (uint32_t)(sizeof(*set) + size), flags, index, start,
                                  count };
    if (size > 0) {
        memcpy(set->data, data, size);
    }
    ret = ioctl_on(device, VFIO_DEVICE_SET_IRQS, set);
    saved = errno;
    free(set);
    errno = saved;
    return ret;
}

#define EVENTFDS (VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER)
#define NOTHING  (VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER)

/* Descriptors and gaps, more than one message takes. */
static void
vectors(uint32_t index, const int *server_vectors)
{
    int32_t fds[SERVER_MSIX];
    eventfd_t value;

    open_device();
    for (int i = 0; i < (int)SERVER_MSIX; i++) {
        fds[i] = i == 2 || i == 3 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    server->seen[VU_DEVICE_SET_IRQS] = 0;
    assert_int_equal(set_irqs(EVENTFDS, index, 0, SERVER_MSIX, fds, sizeof(fds)), 0);
    /* 0-1, the gap 2-3, 4-11, 12-15 */
    assert_int_equal(server->seen[VU_DEVICE_SET_IRQS], 4);
    for (int i = 0; i < (int)SERVER_MSIX; i++) {
        assert_int_equal(server_vectors[i] == -1, fds[i] == -1);
        if (fds[i] != -1) {
            assert_int_equal(eventfd_write(server_vectors[i], (eventfd_t)i + 1), 0);
            assert_int_equal(eventfd_read(fds[i], &value), 0);
            assert_int_equal(value, i + 1);
            close(fds[i]);
        }
    }
    fds[0] = -1;
    assert_int_equal(set_irqs(EVENTFDS, index, 7, 1, fds, 4), 0);
    assert_int_equal(server_vectors[7], -1);
}

static void
test_msix(void **state)
{
    (void)state;
    vectors(VFIO_PCI_MSIX_IRQ_INDEX, server->vectors);
}

static void
test_msi(void **state)
{
    (void)state;
    vectors(VFIO_PCI_MSI_IRQ_INDEX, server->msi_vectors);
}

static void
test_irq_errno(void **state)
{
    struct vfio_irq_info info = { .argsz = sizeof(info), .index = 2 };
    int32_t none = -1;

    (void)state;
    open_device();
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_IRQ_INFO, &info), 0);
    assert_int_equal(info.count, SERVER_MSIX);
    info.index = 5;
    assert_errno(ioctl_on(device, VFIO_DEVICE_GET_IRQ_INFO, &info), EINVAL);
    assert_errno(set_irqs(EVENTFDS, 2, SERVER_MSIX, 1, &none, 4), EINVAL);
    assert_errno(set_irqs(EVENTFDS, 2, 10, 7, &none, 4), EINVAL);
    assert_errno(set_irqs(EVENTFDS, 2, 0, 2, &none, 4), EINVAL);
    assert_errno(set_irqs(EVENTFDS, 2, 1, UINT32_MAX, &none, 4), EINVAL);
    assert_errno(set_irqs(EVENTFDS, 5, 0, 1, &none, 4), EINVAL);
    assert_errno(set_irqs(EVENTFDS | 0x100, 2, 0, 1, &none, 4), EINVAL);
    assert_errno(set_irqs(VFIO_IRQ_SET_DATA_EVENTFD, 2, 0, 1, &none, 4), EINVAL);
    assert_errno(set_irqs(VFIO_IRQ_SET_ACTION_TRIGGER, 2, 0, 1, &none, 4), EINVAL);
    assert_errno(set_irqs(NOTHING, 3, 0, 0, NULL, 0), EINVAL);  /* no errors here */
    assert_int_equal(set_irqs(NOTHING, 2, 0, 0, NULL, 0), 0);
}

#define MASK    VFIO_IRQ_SET_ACTION_MASK
#define UNMASK  VFIO_IRQ_SET_ACTION_UNMASK

/* Masked by calls alone: a server may take an eventfd for it, and never look at it. */
static void
test_intx(void **state)
{
    int32_t fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), none = -1;
    unsigned int seen;

    (void)state;
    open_device();
    assert_errno(set_irqs(VFIO_IRQ_SET_DATA_NONE | MASK, 0, 0, 1, NULL, 0), EINVAL);
    assert_errno(set_irqs(VFIO_IRQ_SET_DATA_NONE | UNMASK, 0, 0, 1, NULL, 0), EINVAL);
    assert_int_equal(set_irqs(EVENTFDS, 0, 0, 1, &fd, 4), 0);
    assert_int_equal(set_irqs(VFIO_IRQ_SET_DATA_NONE | MASK, 0, 0, 1, NULL, 0), 0);
    assert_errno(set_irqs(VFIO_IRQ_SET_DATA_NONE | MASK, 0, 0, 0, NULL, 0), EINVAL);
    assert_int_equal(set_irqs(VFIO_IRQ_SET_DATA_BOOL | UNMASK, 0, 0, 1, "\1", 1), 0);
    seen = server->seen[VU_DEVICE_SET_IRQS];
    assert_errno(set_irqs(VFIO_IRQ_SET_DATA_EVENTFD | UNMASK, 0, 0, 1, &fd, 4), ENOTTY);
    assert_errno(set_irqs(VFIO_IRQ_SET_DATA_EVENTFD | MASK, 0, 0, 1, &fd, 4), ENOTTY);
    assert_int_equal(server->seen[VU_DEVICE_SET_IRQS], seen);
    assert_int_equal(set_irqs(VFIO_IRQ_SET_DATA_EVENTFD | UNMASK, 0, 0, 1, &none, 4), 0);
    assert_int_equal(set_irqs(NOTHING, 0, 0, 0, NULL, 0), 0);
    assert_errno(set_irqs(VFIO_IRQ_SET_DATA_NONE | UNMASK, 0, 0, 1, NULL, 0), EINVAL);
    close(fd);
}

/* The kernel masks nothing else. */
static void
test_only_intx_is_masked(void **state)
{
    (void)state;
    server->error_irqs = 1;
    open_device();
    for (uint32_t i = VFIO_PCI_MSI_IRQ_INDEX; i <= VFIO_PCI_REQ_IRQ_INDEX; i++) {
        assert_errno(set_irqs(VFIO_IRQ_SET_DATA_NONE | MASK, i, 0, 1, NULL, 0), ENOTTY);
        assert_errno(set_irqs(VFIO_IRQ_SET_DATA_BOOL | UNMASK, i, 0, 1, "\1", 1),
                     ENOTTY);
    }
}

static void
test_resets(void **state)
{
    struct {
        struct vfio_pci_hot_reset_info info;
        struct vfio_pci_dependent_device one;
    } out = { .info = { .argsz = sizeof(out.info) } };
    struct {
        struct vfio_pci_hot_reset reset;
        int32_t fd;
    } hot = { .reset = { .argsz = sizeof(hot), .count = 1 } };
    struct {
        struct vfio_pci_hot_reset reset;
        int32_t fds[2];
    } two = { .reset = { .argsz = sizeof(two), .count = 2 } };

    (void)state;
    open_device();
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_RESET, NULL), 0);
    assert_int_equal(server->resets, 1);
    assert_errno(ioctl_on(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &out), ENOSPC);
    assert_int_equal(out.info.count, 1);
    out.info.argsz = sizeof(out);
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &out), 0);
    assert_int_equal(out.one.group_id, 5);
    hot.fd = ram_fd;
    assert_errno(ioctl_on(device, VFIO_DEVICE_PCI_HOT_RESET, &hot), EINVAL);
    hot.fd = group;
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_PCI_HOT_RESET, &hot), 0);
    assert_int_equal(server->resets, 2);
    two.fds[0] = two.fds[1] = group;    /* there is one device */
    assert_errno(ioctl_on(device, VFIO_DEVICE_PCI_HOT_RESET, &two), EINVAL);
    hot.reset.count = 2;
    assert_errno(ioctl_on(device, VFIO_DEVICE_PCI_HOT_RESET, &hot), EINVAL);
}

/* Hardware that was pulled out: ones, silence, and a request to let go. */
static void
test_server_dies(void **state)
{
    int32_t request = eventfd(0, EFD_CLOEXEC), vector = eventfd(0, EFD_CLOEXEC);
    struct vfio_irq_info info = { .argsz = sizeof(info),
                                  .index = VFIO_PCI_REQ_IRQ_INDEX };
    struct pollfd pfd = { request, POLLIN, 0 };
    uint32_t data = 0;

    (void)state;
    open_device();
    assert_int_equal(map(0, 0x1000, ram), 0);
    assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_IRQ_INFO, &info), 0);
    assert_int_equal(info.count, 1);
    assert_int_equal(set_irqs(EVENTFDS, VFIO_PCI_REQ_IRQ_INDEX, 0, 1, &request, 4), 0);
    server_drop(server);
    assert_int_equal(poll(&pfd, 1, 5000), 1);
    assert_int_equal(lv_region_read(the_device(), &data, 4, 7ull << 40), 4);
    assert_int_equal(data, UINT32_MAX);
    /* QEMU 7.2 ends itself over an interrupt pin of 255. */
    assert_int_equal(lv_region_read(the_device(), &data, 4, (7ull << 40) + 0x3c), 4);
    assert_int_equal(data & 0xffff, server->config[0x3c] | server->config[0x3d] << 8);
    assert_int_equal(data >> 16, 0xffff);
    assert_int_equal(lv_region_write(the_device(), &data, 4, 0x14), 4);
    assert_int_equal(lv_region_write(the_device(), &data, 4, 7ull << 40), 4);
    assert_int_equal(map(0x1000, 0x1000, ram + 0x1000), 0);
    assert_int_equal(unmap(0, 0x2000), 0x2000);
    assert_int_equal(set_irqs(EVENTFDS, 2, 0, 1, &vector, 4), 0);
    assert_errno(ioctl_on(device, VFIO_DEVICE_RESET, NULL), EIO);
    close(request);
    close(vector);
}

/* The server is killed while QEMU still adds the device: it is told all the same. */
static void
test_server_dies_early(void **state)
{
    int32_t request = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct pollfd pfd = { request, POLLIN, 0 };

    (void)state;
    open_device();
    server_drop(server);
    while (!lv_client_dead(the_device()->group->client)) {
        usleep(1000);
    }
    usleep(50000);              /* for the service thread to say so, to nobody */
    assert_int_equal(set_irqs(EVENTFDS, VFIO_PCI_REQ_IRQ_INDEX, 0, 1, &request, 4), 0);
    assert_int_equal(poll(&pfd, 1, 5000), 1);
    close(request);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_device_info),
        TEST(test_region_info),
        TEST(test_bad_capabilities),
        TEST(test_region_access),
        TEST(test_small_transfers),
        TEST(test_mmap),
        TEST(test_msix),
        TEST(test_msi),
        TEST(test_irq_errno),
        TEST(test_intx),
        TEST(test_only_intx_is_masked),
        TEST(test_resets),
        TEST(test_server_dies),
        TWIN(test_server_dies),
        TEST(test_server_dies_early),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
