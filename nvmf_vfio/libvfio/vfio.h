/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The kernel's VFIO objects, played over vfio-user.
 *
 *   container   an address space: the DMA mapping table, and the groups in it
 *   group       one device's connection to its server (the specification's "put
 *               each device into its own group"); made by opening /dev/vfio/N
 *   device      the device of a group: regions and interrupts
 *
 * A mapping made on a container goes to the server of every group in it; a group
 * that joins later is told all there are. References: device → group →
 * container. A group leaves its container when its last reference goes, as in
 * the kernel, so QEMU may close in any order.
 *
 * Locks, outermost first:
 *   container->map_lock   one change of the mapping at a time; held during calls
 *   lv_topology           who belongs to whom; never held during calls
 *   container->table_lock the table, and that what it names stays mapped
 *
 * Ioctl functions return what ioctl() does: ≥ 0, or -1 with the errno that the
 * kernel gives for the same mistake. When a server is gone its device behaves
 * like hardware that was pulled out: reads give ones (but for what the kernel
 * would have kept of the configuration space), writes go nowhere, mappings and
 * interrupts succeed (QEMU aborts or complains when they fail), resets are EIO.
 */
#ifndef LV_VFIO_H
#define LV_VFIO_H

#include <linux/vfio.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client.h"
#include "dma.h"
#include "fdtable.h"

#define LV_MAX_REGIONS  64u     /* more than any PCI device has */
#define LV_MAX_IRQS     16u

/* Region N begins here in the device's file, as in the kernel's vfio-pci. */
#define LV_REGION_SHIFT 40
#define LV_REGION_MASK  ((UINT64_C(1) << LV_REGION_SHIFT) - 1)

struct lv_device;
struct lv_group;

struct lv_container {
    struct lv_file file;
    pthread_mutex_t map_lock;
    atomic_bool iommu_set;
    atomic_bool running;        /* a device was opened: QEMU cannot be refused */
    pthread_mutex_t table_lock;
    struct lv_dma_table table;
    struct lv_group *groups;    /* lv_topology */
};

struct lv_group {
    struct lv_file file;
    int number;
    struct lv_client *client;
    struct lv_container *container;     /* lv_topology; referenced */
    struct lv_group *next;              /* in the container; lv_topology */
    struct lv_device *device;           /* lv_topology; not referenced */
};

struct lv_region {
    struct vfio_region_info *info;      /* with its capabilities; our offset */
    uint64_t server_offset;             /* where mmap() of fd begins */
    int fd;                             /* mappable memory, or -1 */
    bool posted;                        /* writes need no reply */
};

#define LV_CONFIG_HEADER 64u

struct lv_device {
    struct lv_file file;
    struct lv_group *group;             /* referenced */
    uint8_t header[LV_CONFIG_HEADER];   /* of configuration space, at opening */
    struct vfio_device_info info;
    uint32_t nr_regions;
    struct lv_region regions[LV_MAX_REGIONS];
    uint32_t nr_irqs;
    struct vfio_irq_info irqs[LV_MAX_IRQS];
    atomic_bool intx_enabled;
    pthread_mutex_t request_lock;
    int request_fd;     /* QEMU's eventfd for "give the device back", or -1 */
    bool request_local; /* the server has no such interrupt: it is only ours */
    atomic_bool no_p2p; /* the server has no RUNNING_P2P */
};

extern pthread_mutex_t lv_topology;

/* container.c */
int lv_container_open(void);
int lv_container_ioctl(struct lv_container *container, unsigned long request,
                       void *arg);
/* Puts group into container: its server learns all mappings. */
int lv_container_attach(struct lv_container *container, struct lv_group *group);
/*
 * Takes group out of container, and its server forgets all mappings. Returns 0,
 * or -1 with EINVAL (it is not in there) or EBUSY (its device is open).
 */
int lv_container_detach(struct lv_container *container, struct lv_group *group);

/* mapping.c: both under container->map_lock */
int lv_mapping_map(struct lv_container *container,
                   struct vfio_iommu_type1_dma_map *arg);
int lv_mapping_unmap(struct lv_container *container,
                     struct vfio_iommu_type1_dma_unmap *arg);
int lv_mapping_replay(struct lv_container *container, struct lv_group *group);
void lv_mapping_withdraw(struct lv_container *container, struct lv_group *group);

/* group.c */
int lv_group_open(int number, const char *socket);
int lv_group_ioctl(struct lv_group *group, unsigned long request, void *arg);
/* Is there a group of ours that waits for a container? */
bool lv_group_unattached(void);

/* device.c */
int lv_device_open(struct lv_group *group);
int lv_device_ioctl(struct lv_device *device, unsigned long request, void *arg);
/* The server is gone: asks QEMU to give the device back. */
void lv_device_gone(struct lv_device *device);

/* region.c */
int lv_region_query(struct lv_device *device, uint32_t index);
void lv_region_release(struct lv_region *region);
/* Keeps the header of configuration space; finds BARs that take posted writes. */
void lv_region_read_header(struct lv_device *device);
int lv_region_info(struct lv_device *device, struct vfio_region_info *arg);
ssize_t lv_region_read(struct lv_device *device, void *data, size_t size,
                       uint64_t position);
ssize_t lv_region_write(struct lv_device *device, const void *data, size_t size,
                        uint64_t position);
void *lv_region_mmap(struct lv_device *device, void *address, size_t length,
                     int protection, int flags, uint64_t position);

/* irq.c */
int lv_irq_query(struct lv_device *device, uint32_t index);
int lv_irq_info(struct lv_device *device, struct vfio_irq_info *arg);
int lv_irq_set(struct lv_device *device, struct vfio_irq_set *arg);

/* migration.c */
struct lv_incoming;
int lv_device_feature(struct lv_device *device, struct vfio_device_feature *arg);
/* As write(): data is a part of a device's state, which may be refused at once. */
ssize_t lv_incoming_write(struct lv_incoming *incoming, const void *data,
                          size_t size);

#endif /* LV_VFIO_H */
