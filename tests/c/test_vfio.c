/* SPDX-License-Identifier: BSD-3-Clause */
/* Groups, containers and mappings, against a test server. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vfio_fixture.h"

/* The order that the kernel wants, and its errno for every other. */
static void
test_order(void **state)
{
    struct vfio_group_status status = { .argsz = sizeof(status) };
    struct vfio_iommu_type1_info info = { .argsz = sizeof(info) };
    int other, none = -1;

    (void)state;
    assert_false(lv_group_unattached());
    group = lv_group_open(5, server->path);
    assert_true(group >= 0);
    assert_true(lv_group_unattached());
    assert_errno(lv_group_open(5, server->path), EBUSY);
    assert_int_equal(ioctl_on(group, VFIO_GROUP_GET_STATUS, &status), 0);
    assert_int_equal(status.flags, VFIO_GROUP_FLAGS_VIABLE);
    assert_errno(ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5"), EINVAL);
    assert_errno(ioctl_on(group, VFIO_GROUP_UNSET_CONTAINER, NULL), EINVAL);
    assert_errno(ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &none), EBADF);
    assert_errno(ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &ram_fd), EINVAL);
    assert_errno(ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &group), EINVAL);
    assert_errno(ioctl_on(group, VFIO_DEVICE_RESET, NULL), ENOTTY);

    container = lv_container_open();
    assert_int_equal(ioctl_on(container, VFIO_GET_API_VERSION, NULL),
                     VFIO_API_VERSION);
    assert_int_equal(ioctl_on(container, VFIO_CHECK_EXTENSION,
                              (void *)VFIO_TYPE1v2_IOMMU), 1);
    assert_int_equal(ioctl_on(container, VFIO_CHECK_EXTENSION,
                              (void *)VFIO_SPAPR_TCE_IOMMU), 0);
    assert_errno(ioctl_on(container, VFIO_SET_IOMMU, (void *)VFIO_TYPE1_IOMMU), EINVAL);
    assert_errno(ioctl_on(container, VFIO_IOMMU_GET_INFO, &info), EINVAL);
    assert_int_equal(ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &container), 0);
    assert_false(lv_group_unattached());
    assert_int_equal(ioctl_on(group, VFIO_GROUP_GET_STATUS, &status), 0);
    assert_true((status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET) != 0);
    assert_errno(ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &container), EINVAL);
    assert_errno(ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5"), EINVAL);
    assert_errno(ioctl_on(container, VFIO_SET_IOMMU, (void *)VFIO_SPAPR_TCE_IOMMU),
                 ENODEV);
    assert_int_equal(ioctl_on(container, VFIO_SET_IOMMU, (void *)VFIO_TYPE1v2_IOMMU),
                     0);
    assert_errno(ioctl_on(container, VFIO_SET_IOMMU, (void *)VFIO_TYPE1v2_IOMMU),
                 EINVAL);

    device = ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5");
    assert_true(device >= 0);
    assert_errno(ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5"), EBUSY);
    assert_errno(ioctl_on(group, VFIO_GROUP_UNSET_CONTAINER, NULL), EBUSY);
    close_fd(device);
    device = ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5");
    assert_true(device >= 0);
    other = device;
    device = -1;
    close_fd(other);
    assert_int_equal(ioctl_on(group, VFIO_GROUP_UNSET_CONTAINER, NULL), 0);
}

/* Closing everything in the wrong order, fifty times: nothing is left. */
static void
test_again_and_again(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        open_device();
        assert_int_equal(map(0, 0x1000, ram), 0);
        close_fd(i % 2 ? container : group);
        close_fd(i % 2 ? group : container);
        assert_int_equal(ioctl_on(device, VFIO_DEVICE_RESET, NULL), 0);
        close_fd(device);
        group = container = device = -1;
    }
    assert_int_equal(server->connections, 50);
}

static void
test_no_server(void **state)
{
    (void)state;
    assert_errno(lv_group_open(6, "/nowhere/cntrl"), ENOENT);
    assert_errno(lv_group_open(6, "/nowhere/cntrl"), ENOENT);
    assert_false(lv_group_unattached());
}

static void
test_iommu_info(void **state)
{
    struct {
        struct vfio_iommu_type1_info info;
        char rest[64];
    } out = { .info = { .argsz = sizeof(out.info) } };
    struct vfio_iommu_type1_info_dma_avail *available;

    (void)state;
    server->version_json = "{\"capabilities\":{\"max_msg_fds\":8,\"max_dma_maps\":9}}";
    open_container();
    assert_int_equal(map(0, 0x1000, ram), 0);
    assert_int_equal(ioctl_on(container, VFIO_IOMMU_GET_INFO, &out.info), 0);
    assert_true(out.info.argsz > sizeof(out.info));
    assert_int_equal(out.info.flags, VFIO_IOMMU_INFO_PGSIZES);
    assert_true((out.info.iova_pgsizes & 0x1000) != 0);
    assert_int_equal(ioctl_on(container, VFIO_IOMMU_GET_INFO, &out.info), 0);
    assert_true((out.info.flags & VFIO_IOMMU_INFO_CAPS) != 0);
    available = (void *)((char *)&out + out.info.cap_offset);
    assert_int_equal(available->header.id, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
    assert_int_equal(available->avail, 8);
    out.info.argsz = 8;
    assert_errno(ioctl_on(container, VFIO_IOMMU_GET_INFO, &out.info), EINVAL);
    assert_errno(ioctl_on(container, VFIO_IOMMU_DIRTY_PAGES, &out), ENOTTY);
}

static void
test_mappings_reach_the_server(void **state)
{
    char byte;

    (void)state;
    open_container();
    assert_int_equal(map(0x100000, 0x2000, ram + 0x3000), 0);
    assert_int_equal(server->nr_maps, 1);
    assert_int_equal(server->maps[0].address, 0x100000);
    assert_int_equal(server->maps[0].size, 0x2000);
    assert_int_equal(server->maps[0].offset, 0x3000);
    assert_int_equal(server->maps[0].flags, VU_DMA_READABLE | VU_DMA_WRITABLE);
    ram[0x3000] = 0x11;
    assert_int_equal(pread(server->maps[0].fd, &byte, 1, 0x3000), 1);
    assert_int_equal(byte, 0x11);

    assert_errno(map(0x101000, 0x1000, ram), EEXIST);
    assert_errno(map(0x1, 0x1000, ram), EINVAL);
    assert_errno(unmap(0x100000, 0x1000), EINVAL);
    assert_int_equal(unmap(0, 0x100000), 0);
    assert_int_equal(unmap(0, 0x200000), 0x2000);
    assert_int_equal(server->nr_maps, 0);
    assert_int_equal(unmap(0x100000, 0x2000), 0);
}

static void
test_unmap_all(void **state)
{
    struct vfio_iommu_type1_dma_unmap u = { .argsz = sizeof(u),
                                            .flags = VFIO_DMA_UNMAP_FLAG_ALL };

    (void)state;
    open_container();
    assert_int_equal(map(0, 0x1000, ram), 0);
    assert_int_equal(map(0x5000, 0x1000, ram + 0x1000), 0);
    assert_int_equal(ioctl_on(container, VFIO_IOMMU_UNMAP_DMA, &u), 0);
    assert_int_equal(u.size, 0x2000);
    assert_int_equal(server->nr_maps, 0);
    u.size = 0x1000;
    assert_errno(ioctl_on(container, VFIO_IOMMU_UNMAP_DMA, &u), EINVAL);
    u.flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    assert_errno(ioctl_on(container, VFIO_IOMMU_UNMAP_DMA, &u), EINVAL);
}

/* Guest memory must be shared; what is no guest memory goes without a file. */
static void
test_private_memory(void **state)
{
    char *private = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    (void)state;
    open_container();
    assert_errno(map(0, 0x1000, private), EFAULT);
    assert_int_equal(server->nr_maps, 0);
    assert_int_equal(map(0xfd000000, RAM_SIZE, private), 0);
    assert_int_equal(server->maps[0].fd, -1);
    assert_int_equal(server->maps[0].offset, 0);
    assert_int_equal(unmap(0xfd000000, RAM_SIZE), RAM_SIZE);
    device = ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5");
    /* The guest runs: QEMU would abort. */
    assert_int_equal(map(0, 0x1000, private), 0);
    munmap(private, RAM_SIZE);
}

static void
test_server_refuses_mapping(void **state)
{
    (void)state;
    open_container();
    server->fault = FAULT_ERROR;
    server->fault_command = VU_DMA_MAP;
    assert_errno(map(0, 0x1000, ram), EPERM);
    server->fault = FAULT_NONE;
    assert_int_equal(map(0, 0x1000, ram), 0);
}

/* A second group in the container learns what was mapped before it came. */
static void
test_second_group(void **state)
{
    struct server *second = server_start();
    int other;

    (void)state;
    open_container();
    assert_int_equal(map(0, 0x1000, ram), 0);
    assert_int_equal(map(0x2000, 0x1000, ram + 0x2000), 0);
    other = lv_group_open(6, second->path);
    assert_true(other >= 0);
    assert_int_equal(ioctl_on(other, VFIO_GROUP_SET_CONTAINER, &container), 0);
    assert_int_equal(second->nr_maps, 2);
    assert_int_equal(unmap(0x2000, 0x1000), 0x1000);
    assert_int_equal(second->nr_maps, 1);
    assert_int_equal(server->nr_maps, 1);
    /* One refuses: the other forgets it again. */
    second->fault = FAULT_ERROR;
    second->fault_command = VU_DMA_MAP;
    assert_errno(map(0x2000, 0x1000, ram), EPERM);
    assert_int_equal(server->nr_maps, 1);
    second->fault = FAULT_NONE;
    close_fd(other);
    assert_int_equal(map(0x2000, 0x1000, ram), 0);
    server_stop(second);
}

/* A group that leaves takes its mappings along, also when it never quite came. */
static void
test_group_comes_and_goes(void **state)
{
    struct server *second = server_start();
    int other;

    (void)state;
    open_container();
    assert_int_equal(map(0, 0x1000, ram), 0);
    assert_int_equal(map(0x2000, 0x1000, ram + 0x2000), 0);
    other = lv_group_open(6, second->path);
    second->fault = FAULT_ERROR;
    second->fault_command = VU_DMA_MAP;
    second->fault_after = 1;
    assert_errno(ioctl_on(other, VFIO_GROUP_SET_CONTAINER, &container), EPERM);
    assert_int_equal(second->nr_maps, 0);
    assert_true(lv_group_unattached());
    second->fault = FAULT_NONE;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ioctl_on(other, VFIO_GROUP_SET_CONTAINER, &container), 0);
        assert_int_equal(second->nr_maps, 2);
        assert_int_equal(ioctl_on(other, VFIO_GROUP_UNSET_CONTAINER, NULL), 0);
        assert_int_equal(second->nr_maps, 0);
    }
    assert_errno(ioctl_on(other, VFIO_GROUP_UNSET_CONTAINER, NULL), EINVAL);
    assert_int_equal(server->nr_maps, 2);
    close_fd(other);
    server_stop(second);
}

/* A duplicate is as good as the original, and outlives it. */
static void
test_duplicates(void **state)
{
    struct vfio_device_info info = { .argsz = sizeof(info) };
    int copy;

    (void)state;
    open_device();
    copy = dup(device);
    lv_fdtable_duplicate(device, copy);
    close_fd(device);
    device = copy;
    assert_int_equal(ioctl_on(copy, VFIO_DEVICE_GET_INFO, &info), 0);
    assert_errno(ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5"), EBUSY);
    /* dup2() of something else over it was its last close. */
    lv_fdtable_duplicate(ram_fd, copy);
    assert_false(lv_trapped(copy));
    device = ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5");
    assert_true(device >= 0);
    lv_fdtable_duplicate(device, LV_FD_MAX);
    lv_fdtable_duplicate(-1, copy);
    assert_int_equal(close(copy), 0);
}

static void *
take_out(void *arg)
{
    long done = 0;

    for (int i = 0; i < 200; i++) {
        done += ioctl_on(*(int *)arg, VFIO_GROUP_UNSET_CONTAINER, NULL) == 0;
    }
    return (void *)done;
}

/* Two threads take the same group out: each time, one of them has done it. */
static void
test_taken_out_by_two(void **state)
{
    pthread_t threads[2];
    void *done[2];
    long put = 0;

    (void)state;
    open_container();
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, take_out, &group), 0);
    }
    for (int i = 0; i < 200; i++) {
        put += ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &container) == 0;
    }
    pthread_join(threads[0], &done[0]);
    pthread_join(threads[1], &done[1]);
    if (ioctl_on(group, VFIO_GROUP_UNSET_CONTAINER, NULL) == 0) {
        put--;
    }
    assert_int_equal((long)done[0] + (long)done[1], put + 1);
}

static void
test_server_reads_and_writes_memory(void **state)
{
    char data[] = "from the server", back[16];

    (void)state;
    open_container();
    assert_int_equal(map(0x10000, 0x1000, ram + 0x1000), 0);
    assert_int_equal(server_dma(server, VU_DMA_WRITE, 0x10010, data, 16), 0);
    assert_string_equal(ram + 0x1010, data);
    assert_int_equal(server_dma(server, VU_DMA_READ, 0x10010, back, 16), 0);
    assert_string_equal(back, data);
    assert_int_equal(server_dma(server, VU_DMA_READ, 0x11000, back, 16), EFAULT);
    assert_int_equal(unmap(0x10000, 0x1000), 0x1000);
    assert_int_equal(server_dma(server, VU_DMA_READ, 0x10010, back, 16), EFAULT);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_order),
        TEST(test_again_and_again),
        TWIN(test_again_and_again),
        TEST(test_no_server),
        TEST(test_iommu_info),
        TEST(test_mappings_reach_the_server),
        TEST(test_unmap_all),
        TEST(test_private_memory),
        TEST(test_server_refuses_mapping),
        TEST(test_second_group),
        TEST(test_group_comes_and_goes),
        TEST(test_duplicates),
        TEST(test_taken_out_by_two),
        TWIN(test_server_reads_and_writes_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
