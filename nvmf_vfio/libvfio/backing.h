/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is behind an address of this process. QEMU hands VFIO virtual addresses;
 * a vfio-user server wants a file descriptor and an offset to map. The mapping
 * comes from /proc/self/maps (device, inode, offset, shared or private), the
 * descriptor from /proc/self/fd: QEMU keeps the memfd, hugetlbfs file or
 * ordinary file of its guest's memory open for as long as it is mapped.
 *
 * Looked up anew each time: mappings change rarely (tens of times in a boot),
 * and a cache of descriptors could outlive the file it was made for.
 */
#ifndef LV_BACKING_H
#define LV_BACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Finds a descriptor and an offset for [vaddr, vaddr + size). Returns 0 with a
 * descriptor that is the caller's, or -1 with errno:
 *   EFAULT   not, or not wholly, mapped
 *   ENOTSUP  private or anonymous, or pieces of different files
 *   EBADF    shared, but no open descriptor gives this access
 */
int
lv_backing_find(const void *vaddr, size_t size, bool writable, int *fd,
                uint64_t *offset);

#endif /* LV_BACKING_H */
