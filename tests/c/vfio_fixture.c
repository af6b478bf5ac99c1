/* SPDX-License-Identifier: BSD-3-Clause */
#include "vfio_fixture.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

struct server *server;
int ram_fd, group, container, device;
char *ram;

int
ioctl_on(int fd, unsigned long request, void *arg)
{
    struct lv_file *file = lv_file_get(fd);
    int ret, saved;

    assert_non_null(file);
    ret = file->kind == LV_CONTAINER
        ? lv_container_ioctl((struct lv_container *)file, request, arg)
        : file->kind == LV_GROUP
        ? lv_group_ioctl((struct lv_group *)file, request, arg)
        : lv_device_ioctl((struct lv_device *)file, request, arg);
    saved = errno;
    lv_file_put(file);
    errno = saved;
    return ret;
}

void
close_fd(int fd)
{
    lv_fdtable_remove(fd);
    close(fd);
}

struct lv_device *
the_device(void)
{
    struct lv_device *d = (struct lv_device *)lv_file_get_kind(device, LV_DEVICE);

    assert_non_null(d);
    lv_file_put(&d->file);
    return d;
}

int
map(uint64_t iova, uint64_t size, const void *vaddr)
{
    struct vfio_iommu_type1_dma_map m = {
        .argsz = sizeof(m),
        .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)vaddr, .iova = iova, .size = size,
    };

    return ioctl_on(container, VFIO_IOMMU_MAP_DMA, &m);
}

int64_t
unmap(uint64_t iova, uint64_t size)
{
    struct vfio_iommu_type1_dma_unmap u = {
        .argsz = sizeof(u), .iova = iova, .size = size,
    };

    return ioctl_on(container, VFIO_IOMMU_UNMAP_DMA, &u) == 0 ? (int64_t)u.size : -1;
}

int
setup(void **state)
{
    (void)state;
    server = server_start();
    ram_fd = memfd_create("ram", MFD_CLOEXEC);
    assert_int_equal(ftruncate(ram_fd, RAM_SIZE), 0);
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
    assert_true(ram != MAP_FAILED);
    group = container = device = -1;
    return 0;
}

int
setup_twin(void **state)
{
    (void)setup(state);
    server->twin = true;
    return 0;
}

int
teardown(void **state)
{
    (void)state;
    if (device != -1) {
        close_fd(device);
    }
    if (group != -1) {
        close_fd(group);
    }
    if (container != -1) {
        close_fd(container);
    }
    server_stop(server);
    munmap(ram, RAM_SIZE);
    close(ram_fd);
    return 0;
}

void
open_container(void)
{
    group = lv_group_open(5, server->path);
    assert_true(group >= 0);
    container = lv_container_open();
    assert_true(container >= 0);
    assert_int_equal(ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &container), 0);
    assert_int_equal(ioctl_on(container, VFIO_SET_IOMMU, (void *)VFIO_TYPE1v2_IOMMU),
                     0);
}

void
open_device(void)
{
    open_container();
    device = ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5");
    assert_true(device >= 0);
}
