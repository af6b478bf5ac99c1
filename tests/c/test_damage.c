/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server whose replies are damaged at random: whatever it says, nothing but
 * errors may come of it. The sanitizers are the judges.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vfio_fixture.h"

#define ROUNDS 500

/* Follows capabilities without a doubt, as QEMU does. */
static uint64_t
walk(const struct vfio_region_info *info)
{
    const struct vfio_info_cap_header *header;
    uint64_t sum = 0;

    for (uint32_t at = info->cap_offset; at != 0; at = header->next) {
        const struct vfio_region_info_cap_sparse_mmap *sparse;

        header = (const void *)((const char *)info + at);
        sparse = (const void *)header;
        if (header->id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
            for (uint32_t i = 0; i < sparse->nr_areas; i++) {
                sum += sparse->areas[i].size;
            }
        }
    }
    return sum;
}

/* As QEMU does: how much does it take, then all of it. */
static void
ask_regions(void)
{
    for (uint32_t i = 0; i < LV_MAX_REGIONS; i++) {
        struct vfio_region_info head = { .argsz = sizeof(head), .index = i }, *all;

        if (ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, &head) != 0 ||
            head.argsz <= sizeof(head)) {
            continue;
        }
        assert_in_range(head.argsz, sizeof(head), 4096);
        all = calloc(1, head.argsz);
        all->argsz = head.argsz;
        all->index = i;
        assert_int_equal(ioctl_on(device, VFIO_DEVICE_GET_REGION_INFO, all), 0);
        if ((all->flags & VFIO_REGION_INFO_FLAG_CAPS) != 0) {
            (void)walk(all);
        }
        free(all);
    }
}

static void
ask_irqs(void)
{
    char room[sizeof(struct vfio_irq_set) + sizeof(int32_t)];
    struct vfio_irq_set *set = (void *)room;
    int fd = eventfd(0, EFD_CLOEXEC);

    for (uint32_t i = 0; i < LV_MAX_IRQS; i++) {
        struct vfio_irq_info info = { .argsz = sizeof(info), .index = i };

        (void)ioctl_on(device, VFIO_DEVICE_GET_IRQ_INFO, &info);
        *set = (struct vfio_irq_set){
            .argsz = sizeof(room),
            .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            .index = i,
            .count = 1,
        };
        memcpy(set->data, &fd, sizeof(fd));
        (void)ioctl_on(device, VFIO_DEVICE_SET_IRQS, set);
    }
    close(fd);
}

static void
touch_regions(void)
{
    uint8_t data[64];

    for (uint64_t i = 0; i < 10; i++) {
        void *memory;

        (void)lv_region_read(the_device(), data, sizeof(data), i << LV_REGION_SHIFT);
        (void)lv_region_write(the_device(), data, 4, (i << LV_REGION_SHIFT) + 0x10);
        memory = lv_region_mmap(the_device(), NULL, 0x1000, PROT_READ, MAP_SHARED,
                                (i << LV_REGION_SHIFT) + 0x8000);
        if (memory != MAP_FAILED) {
            munmap(memory, 0x1000);
        }
    }
}

static void
use_all(void)
{
    group = lv_group_open(5, server->path);
    if (group == -1) {
        return;
    }
    container = lv_container_open();
    if (ioctl_on(group, VFIO_GROUP_SET_CONTAINER, &container) != 0 ||
        ioctl_on(container, VFIO_SET_IOMMU, (void *)VFIO_TYPE1v2_IOMMU) != 0) {
        return;
    }
    (void)map(0, 0x1000, ram);
    (void)map(0x4000, 0x2000, ram + 0x4000);
    device = ioctl_on(group, VFIO_GROUP_GET_DEVICE_FD, "5");
    if (device == -1) {
        return;
    }
    ask_regions();
    ask_irqs();
    touch_regions();
    (void)ioctl_on(device, VFIO_DEVICE_RESET, NULL);
    (void)unmap(0, 0x10000);
}

static void
test_damaged_replies(void **state)
{
    unsigned int complete = 0;

    (void)state;
    for (unsigned int seed = 1; seed <= ROUNDS; seed++) {
        server_damage(seed);
        use_all();
        complete += device != -1;
        if (device != -1) {
            close_fd(device);
        }
        if (group != -1) {
            close_fd(group);
        }
        if (container != -1) {
            close_fd(container);
        }
        group = container = device = -1;
    }
    server_damage(0);
    /* Not all gave up at the start, and what is undamaged still works. */
    assert_in_range(complete, 1, ROUNDS - 1);
    open_device();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_damaged_replies),
        TWIN(test_damaged_replies),
    };

    /* A reply with another's id is waited for in vain. */
    setenv("LIBVFIO_TIMEOUT_MS", "20", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
