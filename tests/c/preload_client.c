/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A little QEMU: opens a device through the kernel's VFIO calls, in QEMU's order
 * and knowing nothing of vfio-user, and prints what it finds. Run with
 * libvfio.so preloaded. Built with 64-bit file offsets as QEMU is, so that it
 * calls open64, pread64, …
 *
 *   preload_client DIR      sysfsdev=DIR
 *   preload_client -f DIR   and children that close every descriptor meanwhile
 *   preload_client -k DIR   and tells KVM, see fake_kvm.c
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define RAM_SIZE 0x100000u

#define REQUIRE(condition)                                                  \
    do {                                                                    \
        if (!(condition)) {                                                 \
            printf("line %d: %s: %s\n", __LINE__, #condition,               \
                   strerror(errno));                                        \
            exit(1);                                                        \
        }                                                                   \
    } while (0)

static int
group_number(const char *directory)
{
    char link[PATH_MAX], target[PATH_MAX];
    struct stat st;
    ssize_t n;
    char *base;

    REQUIRE(stat(directory, &st) == 0);
    (void)snprintf(link, sizeof(link), "%s/iommu_group", directory);
    n = readlink(link, target, sizeof(target));
    REQUIRE(n > 0 && n < (ssize_t)sizeof(target));
    target[n] = '\0';
    base = strrchr(target, '/');
    return atoi(base == NULL ? target : base + 1);
}

struct reader {
    pthread_t thread;
    int device;
    off_t position;
    atomic_bool over;
};

static void *
read_until_over(void *arg)
{
    struct reader *r = arg;

    while (!r->over) {
        uint32_t value;

        REQUIRE(pread(r->device, &value, sizeof(value), r->position) == 4);
    }
    return NULL;
}

/* What QEMU does to start a helper program, while its virtual CPUs are at work. */
static void
close_all_in_children(int device, off_t position)
{
    struct reader r = { .device = device, .position = position };

    REQUIRE(pthread_create(&r.thread, NULL, read_until_over, &r) == 0);
    for (int i = 0; i < 50; i++) {
        pid_t child = fork();
        int status;

        REQUIRE(child >= 0);
        if (child == 0) {
            for (int fd = 3; fd < 64; fd++) {
                (void)close(fd);
            }
            _exit(dup2(0, 3) == 3 ? 0 : 1);
        }
        REQUIRE(waitpid(child, &status, 0) == child && status == 0);
    }
    r.over = true;
    REQUIRE(pthread_join(r.thread, NULL) == 0);
}

/* The same by vfork(): the child has our memory, and must not take it apart. */
static void
close_in_sharing_child(int device)
{
    pid_t child = vfork();
    int status;

    REQUIRE(child >= 0);
    if (child == 0) {
        (void)close(device);
        _exit(0);
    }
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
}

static void
use_duplicate(int device, int other)
{
    struct vfio_device_info info = { .argsz = sizeof(info) };
    int copy = dup(device);

    REQUIRE(copy >= 0 && ioctl(copy, VFIO_DEVICE_GET_INFO, &info) == 0);
    REQUIRE(dup2(other, copy) == copy);
    REQUIRE(ioctl(copy, VFIO_DEVICE_GET_INFO, &info) == -1 && errno == ENOTTY);
    REQUIRE(close(copy) == 0);
}

static int
make_kvm_device(uint32_t type, uint32_t flags)
{
    struct kvm_create_device create = { .type = type, .fd = UINT32_MAX, .flags = flags };

    REQUIRE(ioctl(0, KVM_CREATE_DEVICE, &create) == 0);
    return (int)create.fd;
}

/* Returns 0, or what the call failed with. */
static int
tell_kvm(int device, uint32_t group, uint64_t attribute, int32_t fd)
{
    struct kvm_device_attr attr = { .group = group, .attr = attribute,
                                    .addr = (uintptr_t)&fd };

    return ioctl(device, KVM_SET_DEVICE_ATTR, &attr) == 0 ? 0 : errno;
}

/* KVM hears of all but our groups, on its VFIO device, as long as that is there. */
static void
tell_kvm_of(int ours, int foreign)
{
    const uint32_t group = KVM_DEV_VFIO_GROUP;
    const uint64_t add = KVM_DEV_VFIO_GROUP_ADD, del = KVM_DEV_VFIO_GROUP_DEL;
    int other, device;

    (void)make_kvm_device(KVM_DEV_TYPE_VFIO, KVM_CREATE_DEVICE_TEST);
    other = make_kvm_device(KVM_DEV_TYPE_FLIC, 0);
    REQUIRE(tell_kvm(other, group, add, ours) == ELIBBAD);
    device = make_kvm_device(KVM_DEV_TYPE_VFIO, 0);
    REQUIRE(tell_kvm(device, group, add, ours) == 0);
    REQUIRE(tell_kvm(device, group, add, foreign) == ELIBBAD);
    REQUIRE(tell_kvm(device, group, del, foreign) == ELIBBAD);
    REQUIRE(tell_kvm(device, group, del, ours) == 0);
    REQUIRE(tell_kvm(device, group, del + 1, ours) == ELIBBAD);
    REQUIRE(tell_kvm(device, group + 1, add, ours) == ELIBBAD);
    REQUIRE(tell_kvm(other, group, add, ours) == ELIBBAD);
    REQUIRE(close(device) == 0);
    REQUIRE(dup2(other, device) == device);     /* the number, for something else */
    REQUIRE(tell_kvm(device, group, add, ours) == ELIBBAD);
    REQUIRE(close(device) == 0 && close(other) == 0);
}

int
main(int argc, char **argv)
{
    bool with_child = argc > 1 && strcmp(argv[1], "-f") == 0;
    bool with_kvm = argc > 1 && strcmp(argv[1], "-k") == 0;
    const char *directory = argv[argc - 1];
    struct vfio_group_status status = { .argsz = sizeof(status) };
    struct vfio_device_info info = { .argsz = sizeof(info) };
    struct vfio_region_info region = { .argsz = sizeof(region), .index = 7 };
    struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map) };
    char path[64], other[8];
    uint32_t id = 0;
    int group, container, device, ram_fd, null;
    void *ram, *bar;

    REQUIRE(argc == 2 || ((with_child || with_kvm) && argc == 3));
    (void)snprintf(path, sizeof(path), "/dev/vfio/%d", group_number(directory));
    group = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(group >= 0);
    REQUIRE(ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0);
    container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    REQUIRE(container >= 0);
    REQUIRE(ioctl(container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
    REQUIRE(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
    REQUIRE(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);

    ram_fd = memfd_create("ram", 0);
    REQUIRE(ftruncate(ram_fd, RAM_SIZE) == 0);
    ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
    REQUIRE(ram != MAP_FAILED);
    map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
    map.vaddr = (uintptr_t)ram;
    map.size = RAM_SIZE;
    REQUIRE(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);

    device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "any");
    REQUIRE(device >= 0);
    REQUIRE(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0);
    REQUIRE(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
    if (with_child) {
        close_in_sharing_child(device);
        close_all_in_children(device, (off_t)region.offset);
    }
    REQUIRE(pread(device, &id, 4, (off_t)region.offset) == 4);
    REQUIRE(pwrite(device, &id, 4, (off_t)region.offset + 0x40) == 4);
    bar = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0x8000);
    REQUIRE(bar != MAP_FAILED);
    munmap(bar, 0x1000);

    /* Everything else goes where it always went. */
    null = open("/dev/null", O_RDWR);
    REQUIRE(null >= 0 && pread(null, other, 8, 0) == 0);
    REQUIRE(ioctl(null, VFIO_GET_API_VERSION) == -1 && errno == ENOTTY);
    REQUIRE(open("/dev/vfio/99999", O_RDWR) == -1 && errno == ENOENT);
    REQUIRE(open("/dev/vfio/vfio", O_RDWR) == -1);
    use_duplicate(device, null);
    if (with_kvm) {
        tell_kvm_of(group, null);
    }

    printf("regions=%u irqs=%u id=%08x\n", info.num_regions, info.num_irqs, id);
    REQUIRE(close(device) == 0);
    REQUIRE(ioctl(group, VFIO_GROUP_UNSET_CONTAINER, &container) == 0);
    REQUIRE(close(container) == 0);
    REQUIRE(close(group) == 0);
    REQUIRE(close(group) == -1 && errno == EBADF);
    return 0;
}
