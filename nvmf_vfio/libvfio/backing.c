/* SPDX-License-Identifier: BSD-3-Clause */
#include "backing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "number.h"

struct area {
    uintptr_t start;
    uintptr_t end;
    bool shared;
    uint64_t offset;
    dev_t device;
    ino_t inode;
    char path[PATH_MAX + 16];   /* as maps and /proc/self/fd give it */
};

/* A number and the character that ends it (0: any). */
static bool
take(const char **line, unsigned int base, char end, uint64_t *value)
{
    if (!lv_parse_number(line, base, UINT64_MAX, value) ||
        (end != 0 && **line != end)) {
        return false;
    }
    *line += end != 0;
    return true;
}

static int
parse_area(const char *line, struct area *area)
{
    uint64_t start, end, offset, major, minor, inode;
    const char *permissions;

    /* START-END PERM OFFSET MAJOR:MINOR INODE   PATH */
    if (!take(&line, 16, '-', &start) || !take(&line, 16, ' ', &end) ||
        strcspn(line, " ") != 4) {
        return -1;
    }
    permissions = line;
    line += 5;
    if (!take(&line, 16, ' ', &offset) || !take(&line, 16, ':', &major) ||
        !take(&line, 16, ' ', &minor) || !take(&line, 10, 0, &inode)) {
        return -1;
    }
    line += strspn(line, " ");
    *area = (struct area){
        .start = start,
        .end = end,
        .shared = permissions[3] == 's',
        .offset = offset,
        .device = makedev((unsigned int)major, (unsigned int)minor),
        .inode = (ino_t)inode,
    };
    (void)snprintf(area->path, sizeof(area->path), "%.*s",
                   (int)strcspn(line, "\n"), line);
    return 0;
}

/*
 * Adds a piece to what was found so far: QEMU may have split one mapping by
 * advice or protection, so that a range is several adjacent areas of one file.
 */
static int
join(struct area *found, const struct area *piece, uintptr_t vaddr)
{
    if (!piece->shared || piece->inode == 0) {
        errno = ENOTSUP;
        return -1;
    }
    if (found->inode == 0) {
        *found = *piece;
        found->offset += vaddr - piece->start;
        found->start = vaddr;
        return 0;
    }
    if (piece->device != found->device || piece->inode != found->inode ||
        piece->offset != found->offset + (piece->start - found->start)) {
        errno = ENOTSUP;
        return -1;
    }
    found->end = piece->end;
    return 0;
}

static int
find_area(uintptr_t vaddr, size_t size, struct area *found)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    uintptr_t at = vaddr, end = vaddr + size;
    char *line = NULL;
    size_t room = 0;
    int ret = 0, saved;

    if (maps == NULL) {
        return -1;
    }
    *found = (struct area){ 0 };
    while (ret == 0 && at < end && getline(&line, &room, maps) > 0) {
        struct area area;

        if (parse_area(line, &area) != 0 || area.end <= at) {
            continue;
        }
        if (area.start > at) {
            break;              /* a hole */
        }
        ret = join(found, &area, vaddr);
        at = area.end;
    }
    if (ret == 0 && at < end) {
        errno = EFAULT;
        ret = -1;
    }
    saved = errno;
    free(line);
    (void)fclose(maps);
    errno = saved;
    return ret;
}

/* On btrfs and overlayfs, maps and fstat() differ in the device: then by name. */
static bool
same_path(int fd, const struct area *area)
{
    char link[32], path[sizeof(area->path)];
    ssize_t n;

    (void)snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path));
    return n > 0 && (size_t)n == strlen(area->path) &&
           memcmp(path, area->path, (size_t)n) == 0;
}

static bool
same_file(int fd, const struct area *area)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_ino == area->inode &&
           (st.st_dev == area->device || same_path(fd, area));
}

/* Is fd that file, opened well enough? */
static bool
gives_access(int fd, const struct area *area, bool writable)
{
    int flags;

    if (!same_file(fd, area)) {
        return false;
    }
    flags = fcntl(fd, F_GETFL);
    if (flags == -1 || (flags & O_PATH) != 0) {
        return false;
    }
    return (flags & O_ACCMODE) == O_RDWR ||
           (!writable && (flags & O_ACCMODE) == O_RDONLY);
}

static int
find_fd(const struct area *area, bool writable)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    int found = -1;

    if (dir == NULL) {
        return -1;
    }
    while (found == -1 && (entry = readdir(dir)) != NULL) {
        const char *end = entry->d_name;
        uint64_t fd;

        if (!lv_parse_number(&end, 10, INT_MAX, &fd) || *end != '\0' ||
            !gives_access((int)fd, area, writable)) {
            continue;
        }
        found = fcntl((int)fd, F_DUPFD_CLOEXEC, 0);
        /* Another thread may have closed it and opened something else. */
        if (found != -1 && !same_file(found, area)) {
            close(found);
            found = -1;
        }
    }
    closedir(dir);
    if (found == -1) {
        errno = EBADF;
    }
    return found;
}

int
lv_backing_find(const void *vaddr, size_t size, bool writable, int *fd,
                uint64_t *offset)
{
    struct area area;

    *fd = -1;
    if (find_area((uintptr_t)vaddr, size, &area) != 0) {
        return -1;
    }
    *fd = find_fd(&area, writable);
    if (*fd == -1) {
        return -1;
    }
    *offset = area.offset;
    return 0;
}
