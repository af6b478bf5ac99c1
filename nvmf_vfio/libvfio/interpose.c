/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The traps: libc's functions by their own names. Each one decides as cheaply as
 * it can whether the call is about VFIO (a path under /dev/vfio/, a descriptor in
 * the table) and passes every other call on unchanged.
 *
 * KVM: QEMU tells KVM's VFIO device of each group. KVM would reject ours, which
 * are no VFIO files, and needs nothing from them (they do no DMA past the CPU's
 * caches), so that call is answered here.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "registry.h"
#include "traps.h"
#include "vfio.h"

#define EXPORT __attribute__((visibility("default")))
#define CONTAINER_PATH "/dev/vfio/vfio"

/* libc has these, its headers declare them only for its own macros. */
EXPORT int __open_2(const char *path, int flags);
EXPORT int __open64_2(const char *path, int flags);
EXPORT ssize_t __pread_chk(int fd, void *data, size_t size, off_t offset,
                           size_t room);
EXPORT ssize_t __pread64_chk(int fd, void *data, size_t size, off64_t offset,
                             size_t room);
EXPORT ssize_t __readlink_chk(const char *path, char *target, size_t size,
                              size_t room);

/* The next definition of each trapped function, looked up when first used. */
#define DECLARE_REAL(name) static _Atomic(void *) real_##name;
LV_TRAPS(DECLARE_REAL)

/*
 * All at once, before there are threads: dlsym() takes locks that a child of
 * fork() may find taken for ever. What runs earlier is looked up when it is used.
 */
__attribute__((constructor)) static void
find_all(void)
{
#define FIND_REAL(name)                                                     \
    atomic_store_explicit(&real_##name, dlsym(RTLD_NEXT, #name),            \
                          memory_order_release);
    LV_TRAPS(FIND_REAL)
}

static void *
find_real(_Atomic(void *) *slot, const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);

    if (function == NULL) {
        abort();                /* a libc without it cannot have called it */
    }
    atomic_store_explicit(slot, function, memory_order_release);
    return function;
}

#define REAL(name)                                                          \
    ((__typeof__(&name))(atomic_load_explicit(&real_##name,                 \
                                              memory_order_acquire)         \
                         ?: find_real(&real_##name, #name)))

/* The descriptor of KVM's VFIO device, or -1. */
static atomic_int kvm_vfio_fd = -1;

/* Returns true if path is ours; *fd is open()'s result then. */
static bool
open_vfio(const char *path, int *fd)
{
    char socket[PATH_MAX];
    int saved = errno, group;

    if (path == NULL || strncmp(path, "/dev/vfio/", 10) != 0) {
        return false;
    }
    if (strcmp(path, CONTAINER_PATH) == 0) {
        /*
         * QEMU opens a container for the group that it has just opened. If that
         * is one of the host's, the container is the host's as well.
         */
        if (!lv_group_unattached()) {
            return false;
        }
        *fd = lv_container_open();
        return true;
    }
    group = lv_registry_group(path);
    if (group < 0 || lv_registry_socket(group, socket, sizeof(socket)) != 0) {
        errno = saved;
        return false;
    }
    *fd = lv_group_open(group, socket);
    return true;
}

#define DEFINE_OPEN(name)                                                   \
    EXPORT int                                                              \
    name(const char *path, int flags, ...)                                  \
    {                                                                       \
        mode_t mode = 0;                                                    \
        int fd;                                                             \
                                                                            \
        if ((flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE) {   \
            va_list args;                                                   \
                                                                            \
            va_start(args, flags);                                          \
            mode = va_arg(args, mode_t);                                    \
            va_end(args);                                                   \
        }                                                                   \
        if (open_vfio(path, &fd)) {                                         \
            return fd;                                                      \
        }                                                                   \
        return REAL(name)(path, flags, mode);                               \
    }

DEFINE_OPEN(open)
DEFINE_OPEN(open64)

EXPORT int
__open_2(const char *path, int flags)
{
    int fd;

    return open_vfio(path, &fd) ? fd : REAL(__open_2)(path, flags);
}

EXPORT int
__open64_2(const char *path, int flags)
{
    int fd;

    return open_vfio(path, &fd) ? fd : REAL(__open64_2)(path, flags);
}

EXPORT int
close(int fd)
{
    int expected = fd;

    if (fd >= 0) {
        (void)atomic_compare_exchange_strong(&kvm_vfio_fd, &expected, -1);
    }
    lv_fdtable_remove(fd);
    return REAL(close)(fd);
}

EXPORT int
dup(int fd)
{
    int copy = REAL(dup)(fd);

    if (copy >= 0) {
        lv_fdtable_duplicate(fd, copy);
    }
    return copy;
}

/* What the descriptor was before is closed by this, as by close(). */
static int
replaced(int fd, int copy)
{
    if (copy >= 0 && copy != fd) {
        lv_fdtable_duplicate(fd, copy);
    }
    return copy;
}

EXPORT int
dup2(int fd, int copy)
{
    return replaced(fd, REAL(dup2)(fd, copy));
}

EXPORT int
dup3(int fd, int copy, int flags)
{
    return replaced(fd, REAL(dup3)(fd, copy, flags));
}

static int
ioctl_vfio(struct lv_file *file, unsigned long request, void *arg)
{
    switch (file->kind) {
    case LV_CONTAINER:
        return lv_container_ioctl((struct lv_container *)file, request, arg);
    case LV_GROUP:
        return lv_group_ioctl((struct lv_group *)file, request, arg);
    case LV_DEVICE:
        return lv_device_ioctl((struct lv_device *)file, request, arg);
    default:
        errno = ENOTTY;
        return -1;
    }
}

/* Does this tell KVM's VFIO device of one of our groups? */
static bool
is_kvm_group(int fd, unsigned long request, const struct kvm_device_attr *attr)
{
    return request == KVM_SET_DEVICE_ATTR && fd >= 0 &&
           fd == atomic_load_explicit(&kvm_vfio_fd, memory_order_relaxed) &&
           attr->group == KVM_DEV_VFIO_GROUP &&
           (attr->attr == KVM_DEV_VFIO_GROUP_ADD ||
            attr->attr == KVM_DEV_VFIO_GROUP_DEL) &&
           lv_trapped(*(const int32_t *)(uintptr_t)attr->addr);
}

EXPORT int
ioctl(int fd, unsigned long request, ...)
{
    va_list args;
    void *arg;
    int ret;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    if (lv_trapped(fd)) {
        struct lv_file *file = lv_file_get(fd);

        if (file != NULL) {
            ret = ioctl_vfio(file, request, arg);
            int saved = errno;
            lv_file_put(file);
            errno = saved;
            return ret;
        }
    }
    if (is_kvm_group(fd, request, arg)) {
        return 0;
    }
    ret = REAL(ioctl)(fd, request, arg);
    if (request == KVM_CREATE_DEVICE && ret == 0) {
        const struct kvm_create_device *made = arg;

        if (made->type == KVM_DEV_TYPE_VFIO &&
            (made->flags & KVM_CREATE_DEVICE_TEST) == 0) {
            atomic_store(&kvm_vfio_fd, (int)made->fd);
        }
    }
    return ret;
}

static void *
mmap_vfio(struct lv_file *file, void *address, size_t length, int protection,
          int flags, off64_t offset)
{
    void *memory = lv_region_mmap((struct lv_device *)file, address, length,
                                  protection, flags, (uint64_t)offset);
    int saved = errno;

    lv_file_put(file);
    errno = saved;
    return memory;
}

#define DEFINE_MMAP(name, offset_type)                                      \
    EXPORT void *                                                           \
    name(void *address, size_t length, int protection, int flags, int fd,   \
         offset_type offset)                                                \
    {                                                                       \
        struct lv_file *file = lv_file_get_kind(fd, LV_DEVICE);             \
                                                                            \
        if (file != NULL) {                                                 \
            return mmap_vfio(file, address, length, protection, flags,      \
                             offset);                                       \
        }                                                                   \
        return REAL(name)(address, length, protection, flags, fd, offset);  \
    }

DEFINE_MMAP(mmap, off_t)
DEFINE_MMAP(mmap64, off64_t)

static ssize_t
access_vfio(struct lv_file *file, void *in, const void *out, size_t size,
            off64_t offset)
{
    struct lv_device *device = (struct lv_device *)file;
    ssize_t ret = in != NULL
        ? lv_region_read(device, in, size, (uint64_t)offset)
        : lv_region_write(device, out, size, (uint64_t)offset);
    int saved = errno;

    lv_file_put(file);
    errno = saved;
    return ret;
}

#define DEFINE_PREAD(name, offset_type)                                     \
    EXPORT ssize_t                                                          \
    name(int fd, void *data, size_t size, offset_type offset)               \
    {                                                                       \
        struct lv_file *file = lv_file_get_kind(fd, LV_DEVICE);             \
                                                                            \
        return file != NULL ? access_vfio(file, data, NULL, size, offset)   \
                            : REAL(name)(fd, data, size, offset);           \
    }

#define DEFINE_PREAD_CHK(name, offset_type)                                 \
    EXPORT ssize_t                                                          \
    name(int fd, void *data, size_t size, offset_type offset, size_t room)  \
    {                                                                       \
        struct lv_file *file =                                              \
            size <= room ? lv_file_get_kind(fd, LV_DEVICE) : NULL;          \
                                                                            \
        return file != NULL ? access_vfio(file, data, NULL, size, offset)   \
                            : REAL(name)(fd, data, size, offset, room);     \
    }

#define DEFINE_PWRITE(name, offset_type)                                    \
    EXPORT ssize_t                                                          \
    name(int fd, const void *data, size_t size, offset_type offset)         \
    {                                                                       \
        struct lv_file *file = lv_file_get_kind(fd, LV_DEVICE);             \
                                                                            \
        return file != NULL ? access_vfio(file, NULL, data, size, offset)   \
                            : REAL(name)(fd, data, size, offset);           \
    }

DEFINE_PREAD(pread, off_t)
DEFINE_PREAD(pread64, off64_t)
DEFINE_PREAD_CHK(__pread_chk, off_t)
DEFINE_PREAD_CHK(__pread64_chk, off64_t)
DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)

/* Of our descriptors only one is written to: that of a device that is restored. */
EXPORT ssize_t
write(int fd, const void *data, size_t size)
{
    struct lv_file *file = lv_file_get_kind(fd, LV_INCOMING);
    ssize_t ret;
    int saved;

    if (file == NULL) {
        return REAL(write)(fd, data, size);
    }
    ret = lv_incoming_write((struct lv_incoming *)file, data, size);
    saved = errno;
    lv_file_put(file);
    errno = saved;
    return ret;
}

EXPORT ssize_t
readlink(const char *path, char *target, size_t size)
{
    char buffer[PATH_MAX];
    const char *where = lv_registry_translate(path, buffer, sizeof(buffer));
    ssize_t length = REAL(readlink)(where, target, size);

    if (length > 0 && (size_t)length < size) {
        lv_registry_learn(where, target, (size_t)length);
    }
    return length;
}

EXPORT ssize_t
__readlink_chk(const char *path, char *target, size_t size, size_t room)
{
    return size <= room ? readlink(path, target, size)
                        : REAL(__readlink_chk)(path, target, size, room);
}

EXPORT int
stat(const char *path, struct stat *st)
{
    char buffer[PATH_MAX];

    return REAL(stat)(lv_registry_translate(path, buffer, sizeof(buffer)), st);
}

EXPORT int
stat64(const char *path, struct stat64 *st)
{
    char buffer[PATH_MAX];

    return REAL(stat64)(lv_registry_translate(path, buffer, sizeof(buffer)), st);
}
