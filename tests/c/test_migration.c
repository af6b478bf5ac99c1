/* SPDX-License-Identifier: BSD-3-Clause */
/* Migration as hw/vfio/migration.c and hw/vfio/container.c of QEMU ask for it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vfio_fixture.h"

#define GET(name) (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_##name)
#define SET(name) (VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_##name)
#define MIG_DATA_SIZE (VFIO_DEVICE_FEATURE_GET | 9)
#define PAGE 4096ull

/* The ioctl; data comes back in data. */
static int
feature(uint32_t flags, void *data, size_t size)
{
    union {
        struct vfio_device_feature f;
        char room[128];
    } arg = { .f = { .argsz = (uint32_t)(sizeof(arg.f) + size), .flags = flags } };
    int ret, saved;

    if (size > 0) {
        memcpy(arg.f.data, data, size);
    }
    ret = ioctl_on(device, VFIO_DEVICE_FEATURE, &arg);
    saved = errno;
    if (size > 0) {
        memcpy(data, arg.f.data, size);
    }
    errno = saved;
    return ret;
}

/* Returns the data descriptor, -1 where there is none, -2 with errno. */
static int
enter(uint32_t state)
{
    struct vfio_device_feature_mig_state arg = { .device_state = state, .data_fd = 77 };

    return feature(SET(MIG_DEVICE_STATE), &arg, sizeof(arg)) == 0 ? arg.data_fd : -2;
}

static void
open_migratable(void)
{
    server->migratable = true;
    server->refuse_after = sizeof(server->restored);
    for (size_t i = 0; i < sizeof(server->saved); i++) {
        server->saved[i] = (char)(i * 7 + i / 256);
    }
    open_device();
}

static void
test_a_server_that_cannot(void **state)
{
    uint64_t number;

    (void)state;
    open_device();
    assert_errno(feature(GET(MIGRATION), &number, sizeof(number)), ENOTTY);
    assert_errno(feature(VFIO_DEVICE_FEATURE_PROBE | SET(DMA_LOGGING_START), NULL, 0),
                 ENOTTY);
    assert_errno(feature(VFIO_DEVICE_FEATURE_GET | 3, &number, sizeof(number)), ENOTTY);
}

static void
test_what_it_can(void **state)
{
    uint64_t number = 0;

    (void)state;
    open_migratable();
    assert_int_equal(feature(GET(MIGRATION), &number, sizeof(number)), 0);
    assert_int_equal(number, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P);
    assert_int_equal(feature(MIG_DATA_SIZE, &number, sizeof(number)), 0);
    assert_int_equal(number, 12345);
    assert_int_equal(
        feature(VFIO_DEVICE_FEATURE_PROBE | SET(DMA_LOGGING_START), NULL, 0), 0);
    assert_errno(feature(GET(MIGRATION), NULL, 0), EINVAL);
    assert_errno(feature(SET(MIGRATION), &number, sizeof(number)), EINVAL);
}

static void
test_a_server_that_can_less(void **state)
{
    uint64_t number = 0;

    (void)state;
    server->plain = true;
    open_migratable();
    assert_int_equal(feature(GET(MIGRATION), &number, sizeof(number)), 0);
    assert_int_equal(number, VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P);
    assert_int_equal(feature(MIG_DATA_SIZE, &number, sizeof(number)), 0);
    assert_in_range(number, 1, 1 << 20);
    assert_int_equal(enter(VFIO_DEVICE_STATE_RUNNING_P2P), -1);
    assert_int_equal(server->state, VFIO_DEVICE_STATE_STOP);
    assert_int_equal(enter(VFIO_DEVICE_STATE_RUNNING), -1);
    assert_int_equal(server->state, VFIO_DEVICE_STATE_RUNNING);
}

static void
test_saved(void **state)
{
    char *data = malloc(sizeof(server->saved) + 1);
    struct vfio_device_feature_mig_state now = { 0 };
    int fd;
    size_t size = 0;
    ssize_t n;

    (void)state;
    open_migratable();
    assert_int_equal(enter(VFIO_DEVICE_STATE_RUNNING_P2P), -1);
    assert_int_equal(enter(VFIO_DEVICE_STATE_STOP), -1);
    fd = enter(VFIO_DEVICE_STATE_STOP_COPY);
    assert_true(fd >= 0);
    do {
        n = read(fd, data + size, 4096);
        size += n > 0 ? (size_t)n : 0;
    } while (n > 0 && size <= sizeof(server->saved));
    assert_int_equal(n, 0);
    assert_int_equal(size, sizeof(server->saved));
    assert_memory_equal(data, server->saved, size);
    close(fd);
    assert_int_equal(feature(GET(MIG_DEVICE_STATE), &now, sizeof(now)), 0);
    assert_int_equal(now.device_state, VFIO_DEVICE_STATE_STOP_COPY);
    free(data);
}

static ssize_t
write_incoming(int fd, const void *data, size_t size)
{
    struct lv_file *file = lv_file_get_kind(fd, LV_INCOMING);
    ssize_t n;
    int saved;

    assert_non_null(file);
    n = lv_incoming_write((struct lv_incoming *)file, data, size);
    saved = errno;
    lv_file_put(file);
    errno = saved;
    return n;
}

static void
test_restored(void **state)
{
    int fd;
    size_t done = 0;

    (void)state;
    open_migratable();
    fd = enter(VFIO_DEVICE_STATE_RESUMING);
    assert_true(fd >= 0);
    while (done < 90000) {
        ssize_t n = write_incoming(fd, server->saved + done, 90000 - done);

        assert_true(n > 0);
        done += (size_t)n;
    }
    assert_int_equal(server->nr_restored, 90000);
    assert_memory_equal(server->restored, server->saved, 90000);
    close_fd(fd);
    assert_int_equal(enter(VFIO_DEVICE_STATE_RUNNING), -1);
}

static void
test_refused_as_it_comes(void **state)
{
    int fd;

    (void)state;
    open_migratable();
    server->refuse_after = 10;
    fd = enter(VFIO_DEVICE_STATE_RESUMING);
    assert_int_equal(write_incoming(fd, "0123456789", 10), 10);
    assert_errno((int)write_incoming(fd, "more", 4), EINVAL);
    close_fd(fd);
}

static void
test_log(void **state)
{
    struct vfio_device_feature_dma_logging_range range = { 0x100000, 8ull << 30 };
    struct vfio_device_feature_dma_logging_control control = {
        .page_size = PAGE, .num_ranges = 1, .ranges = (uintptr_t)&range,
    };
    size_t size = (3ull << 30) / PAGE / 8;
    uint8_t *bitmap = calloc(1, size);
    struct vfio_device_feature_dma_logging_report report = {
        .iova = 0x100000, .length = 3ull << 30, .page_size = PAGE,
        .bitmap = (uintptr_t)bitmap,
    };
    uint64_t page = (2ull << 30) / PAGE + 5;

    (void)state;
    open_migratable();
    assert_int_equal(feature(SET(DMA_LOGGING_START), &control, sizeof(control)), 0);
    assert_memory_equal(server->logged, &range, sizeof(range));
    bitmap[0] = 0x80;           /* what is there already stays */
    server->dirty = report.iova + page * PAGE;
    assert_int_equal(feature(GET(DMA_LOGGING_REPORT), &report, sizeof(report)), 0);
    assert_int_equal(bitmap[0], 0x80);
    assert_int_equal(bitmap[page / 8], 1u << page % 8);
    bitmap[0] = bitmap[page / 8] = 0;
    for (size_t i = 0; i < size; i++) {
        assert_int_equal(bitmap[i], 0);
    }
    report.page_size = 65536;
    assert_errno(feature(GET(DMA_LOGGING_REPORT), &report, sizeof(report)), EINVAL);
    assert_int_equal(feature(SET(DMA_LOGGING_STOP), NULL, 0), 0);
    control.num_ranges = 65;
    assert_errno(feature(SET(DMA_LOGGING_START), &control, sizeof(control)), E2BIG);
    free(bitmap);
}

/* QEMU ends itself over a device that can neither stop nor be reset. */
static void
test_server_gone(void **state)
{
    int fd;

    (void)state;
    open_migratable();
    fd = enter(VFIO_DEVICE_STATE_RESUMING);
    server_drop(server);
    assert_int_equal(enter(VFIO_DEVICE_STATE_STOP), -1);
    assert_int_equal(enter(VFIO_DEVICE_STATE_RUNNING), -1);
    assert_int_equal(enter(VFIO_DEVICE_STATE_STOP_COPY), -2);
    assert_errno((int)write_incoming(fd, "x", 1), EIO);
    assert_int_equal(feature(SET(DMA_LOGGING_STOP), NULL, 0), 0);
    close_fd(fd);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_a_server_that_cannot),
        TEST(test_what_it_can),
        TEST(test_a_server_that_can_less),
        TEST(test_saved),
        TEST(test_restored),
        TEST(test_refused_as_it_comes),
        TEST(test_log),
        TEST(test_server_gone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
