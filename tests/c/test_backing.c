/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backing.h"
#include "test.h"

#define SIZE 0x10000
#define HUGE_2MB (21u << 26)    /* MFD_HUGE_2MB: only the kernel's headers have it */

static int fd;
static char *memory;

static int
setup(void **state)
{
    (void)state;
    fd = memfd_create("guest", MFD_CLOEXEC);
    if (fd == -1 || ftruncate(fd, 2 * SIZE) != 0) {
        return -1;
    }
    memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x3000);
    return memory == MAP_FAILED ? -1 : 0;
}

static int
teardown(void **state)
{
    (void)state;
    munmap(memory, SIZE);
    if (fd != -1) {
        close(fd);
    }
    return 0;
}

/* What is found must reach the very same bytes. */
static void
expect_same(char *at, size_t size)
{
    uint64_t offset;
    int found;
    char byte = 0;

    assert_int_equal(lv_backing_find(at, size, true, &found, &offset), 0);
    *at = 0x42;
    assert_int_equal(pread(found, &byte, 1, (off_t)offset), 1);
    assert_int_equal(byte, 0x42);
    *at = 0x43;
    assert_int_equal(pread(found, &byte, 1, (off_t)offset), 1);
    assert_int_equal(byte, 0x43);
    assert_true((fcntl(found, F_GETFD) & FD_CLOEXEC) != 0);
    close(found);
}

static void
test_memfd(void **state)
{
    (void)state;
    expect_same(memory, SIZE);
    expect_same(memory + 0x5000, 0x1000);
    expect_same(memory + SIZE - 0x1000, 0x1000);
}

static void
test_file(void **state)
{
    char path[] = "/tmp/libvfio-backing-XXXXXX";
    int file = mkstemp(path);
    char *at;

    (void)state;
    unlink(path);
    assert_int_equal(ftruncate(file, 0x4000), 0);
    at = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0x2000);
    assert_true(at != MAP_FAILED);
    expect_same(at + 0x1000, 0x1000);
    munmap(at, 0x2000);
    close(file);
}

/* Pages that are there are reserved by mmap(); most machines have none. */
static void
test_hugetlbfs(void **state)
{
    const size_t page = 2 << 20;
    int file = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB | HUGE_2MB);
    char *at;

    (void)state;
    if (file == -1) {
        assert_true(errno == ENOENT || errno == ENODEV || errno == ENOSYS);
        skip();                 /* a machine without 2 MiB pages */
    }
    assert_int_equal(ftruncate(file, (off_t)(2 * page)), 0);
    at = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)page);
    if (at == MAP_FAILED) {
        close(file);
        assert_int_equal(errno, ENOMEM);
        skip();
    }
    expect_same(at, page);
    expect_same(at + 0x3000, 0x1000);
    munmap(at, page);
    close(file);
}

/* QEMU's advice and protections split one mapping into several areas. */
static void
test_split_area(void **state)
{
    (void)state;
    assert_int_equal(madvise(memory + 0x4000, 0x2000, MADV_DONTFORK), 0);
    assert_int_equal(mprotect(memory + 0x8000, 0x1000, PROT_READ), 0);
    expect_same(memory + 0x1000, SIZE - 0x1000);
}

static void
expect_errno(const char *at, size_t size, bool writable, int number)
{
    uint64_t offset;
    int found;

    assert_errno(lv_backing_find(at, size, writable, &found, &offset), number);
    assert_int_equal(found, -1);
}

static void
test_refused(void **state)
{
    char *private = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *copy = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

    (void)state;
    expect_errno(private, SIZE, true, ENOTSUP);
    expect_errno(copy, SIZE, true, ENOTSUP);
    munmap(private, SIZE);
    munmap(copy, SIZE);
    munmap(memory + 0x4000, 0x1000);
    expect_errno(memory, SIZE, true, EFAULT);
    expect_errno(memory + 0x4000, 0x1000, true, EFAULT);
}

/* Two pieces of one file that do not follow each other there. */
static void
test_not_contiguous(void **state)
{
    (void)state;
    assert_true(mmap(memory + 0x8000, 0x8000, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED, fd, 0x18000) != MAP_FAILED);
    expect_errno(memory, SIZE, true, ENOTSUP);
    expect_same(memory, 0x8000);
    expect_same(memory + 0x8000, 0x8000);
}

static void
test_descriptor_missing(void **state)
{
    (void)state;
    close(fd);
    fd = -1;
    expect_errno(memory, SIZE, true, EBADF);
}

static void
test_read_only_descriptor(void **state)
{
    char path[32];
    uint64_t offset;
    int found, flags;

    (void)state;
    assert_true(sprintf(path, "/proc/self/fd/%d", fd) > 0);
    flags = open(path, O_RDONLY | O_CLOEXEC);
    close(fd);
    fd = flags;
    expect_errno(memory, SIZE, true, EBADF);
    assert_int_equal(lv_backing_find(memory, SIZE, false, &found, &offset), 0);
    assert_int_equal(offset, 0x3000);
    close(found);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_memfd), TEST(test_file), TEST(test_hugetlbfs), TEST(test_split_area),
        TEST(test_refused), TEST(test_not_contiguous), TEST(test_descriptor_missing),
        TEST(test_read_only_descriptor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
