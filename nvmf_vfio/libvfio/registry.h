/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which group number is which socket.
 *
 * A device directory stands for a device on sysfsdev=: a real directory with a
 * link `iommu_group` whose last component is the group number N, and the socket
 * (or a link to it) `cntrl`. Two ways lead from N to it:
 *
 *   - QEMU reads DIR/iommu_group before it opens /dev/vfio/N; the library sees
 *     that and remembers DIR (the latest one counts);
 *   - LIBVFIO_DIR names a directory that holds one device directory per number,
 *     LIBVFIO_DIR/N. Only with it does the older sysfsdev=/dev/vfio/N work, in
 *     which the path that stands for the group also stands for the device.
 *
 * A number that is known in neither way is the host's own VFIO, and not touched.
 */
#ifndef LV_REGISTRY_H
#define LV_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>

/* link was read and points to target: remembers it if it is a device's. */
void
lv_registry_learn(const char *link, const char *target, size_t target_length);

/* The number in /dev/vfio/N, or -1 if path is something else. */
int
lv_registry_group(const char *path);

/*
 * The socket of group N. Returns 0, or -1 with ENOENT (not ours) or
 * ENAMETOOLONG.
 */
int
lv_registry_socket(int group, char *path, size_t size);

/*
 * Translates a path at or under /dev/vfio/N to the device directory, for the
 * older form. Returns path itself if that does not apply, else buffer.
 */
const char *
lv_registry_translate(const char *path, char *buffer, size_t size);

#endif /* LV_REGISTRY_H */
