/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The vfio-user protocol on the wire, as the specification has it
 * (docs/interop/vfio-user.rst in QEMU, docs/vfio-user.rst in libvfio-user).
 *
 * Every message is a header and a payload; numbers are in the host's byte
 * order; file descriptors travel beside the header as SCM_RIGHTS. A command is
 * answered by a reply that carries the same id, unless it says NO_REPLY. A reply
 * with the error bit consists of the header alone.
 *
 * Where the payload equals a structure of <linux/vfio.h>, that structure is
 * used: vfio_device_info's first 16 bytes, vfio_region_info and its
 * capabilities, vfio_irq_info, vfio_irq_set's first 20 bytes.
 *
 * Layout only: no function of this header sends anything.
 */
#ifndef LV_PROTOCOL_H
#define LV_PROTOCOL_H

#include <stdint.h>

enum vu_command {
    VU_VERSION = 1,
    VU_DMA_MAP = 2,
    VU_DMA_UNMAP = 3,
    VU_DEVICE_GET_INFO = 4,
    VU_DEVICE_GET_REGION_INFO = 5,
    VU_DEVICE_GET_IRQ_INFO = 7,
    VU_DEVICE_SET_IRQS = 8,
    VU_REGION_READ = 9,
    VU_REGION_WRITE = 10,
    VU_DMA_READ = 11,
    VU_DMA_WRITE = 12,
    VU_DEVICE_RESET = 13,
    VU_DEVICE_FEATURE = 16,
    VU_MIG_DATA_READ = 17,
    VU_MIG_DATA_WRITE = 18,
};

#define VU_TYPE_MASK        0xfu
#define VU_TYPE_COMMAND     0x0u
#define VU_TYPE_REPLY       0x1u
#define VU_FLAG_NO_REPLY    0x10u
#define VU_FLAG_ERROR       0x20u

#define VU_MAJOR            0
#define VU_MINOR            1

/* What a peer that does not say otherwise accepts. */
#define VU_DEFAULT_MAX_XFER (1024u * 1024u)
#define VU_DEFAULT_MAX_FDS  1u

/* The longest payload there is: a full transfer behind its own header. */
#define VU_MAX_PAYLOAD      (VU_DEFAULT_MAX_XFER + 64u)

/* Descriptors accepted in one message; announced as max_msg_fds. */
#define VU_MAX_FDS          8u

struct vu_header {
    uint16_t id;
    uint16_t command;
    uint32_t size;              /* with this header */
    uint32_t flags;
    uint32_t error;             /* errno, valid with VU_FLAG_ERROR; may be 0 */
} __attribute__((packed));

struct vu_version {
    uint16_t major;
    uint16_t minor;
    char json[];                /* NUL-terminated, optional */
} __attribute__((packed));

#define VU_DMA_READABLE     0x1u
#define VU_DMA_WRITABLE     0x2u

struct vu_dma_map {
    uint32_t argsz;
    uint32_t flags;
    uint64_t offset;            /* in the descriptor sent along, if any */
    uint64_t address;
    uint64_t size;
} __attribute__((packed));

struct vu_dma_unmap {
    uint32_t argsz;
    uint32_t flags;
    uint64_t address;
    uint64_t size;
} __attribute__((packed));

struct vu_device_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t num_regions;
    uint32_t num_irqs;
} __attribute__((packed));

struct vu_irq_set {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t start;
    uint32_t count;
} __attribute__((packed));

/* Request and reply of REGION_READ and REGION_WRITE; the data follow. */
struct vu_region_access {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
} __attribute__((packed));

/* Request and reply of DMA_READ and DMA_WRITE; the data follow. */
struct vu_dma_access {
    uint64_t address;
    uint64_t count;
} __attribute__((packed));

/* Request and reply of DEVICE_FEATURE; the feature's data follow. */
struct vu_device_feature {
    uint32_t argsz;
    uint32_t flags;             /* VFIO_DEVICE_FEATURE_* */
} __attribute__((packed));

struct vu_mig_state {
    uint32_t state;             /* VFIO_DEVICE_STATE_* */
    int32_t fd;                 /* none comes along */
} __attribute__((packed));

struct vu_dma_logging_control {
    uint64_t page_size;
    uint32_t num_ranges;
    uint32_t reserved;          /* the ranges follow: address and length */
} __attribute__((packed));

/* The bitmap follows in the reply. */
struct vu_dma_logging_report {
    uint64_t address;
    uint64_t length;
    uint64_t page_size;
} __attribute__((packed));

/* Request and reply of MIG_DATA_READ and MIG_DATA_WRITE; the data follow. */
struct vu_mig_data {
    uint32_t argsz;
    uint32_t size;
} __attribute__((packed));

#endif /* LV_PROTOCOL_H */
