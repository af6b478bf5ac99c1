/*
 * What stands between libvfio-user and devices written in Python (nvmuser.pci).
 *
 * Owns what would be slow or unsafe to do in Python: an access to a region becomes values of 1, 2, 4 or 8 bytes; a
 * message is only taken when all of it has come, so that no client can hold up a loop that serves others too; guest
 * memory is copied by the kernel, so that memory which the client has truncated is an error and no SIGBUS.
 *
 * Functions return 0, or -1 with errno set, unless they say otherwise. Nothing here is thread-safe: a context and all
 * of its callbacks belong to one thread at a time.
 */
#ifndef NVMUSER_VFU_GLUE_H
#define NVMUSER_VFU_GLUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <vfio-user/libvfio-user.h>

/* Log, reset, quiesce, DMA and interrupt-state callbacks, all to the functions in Python below. */
int nvmuser_vfu_setup_callbacks(vfu_ctx_t *ctx, int log_level);

/* The device can migrate: its state is Python's. After vfu_pci_init(). */
int nvmuser_vfu_setup_migration(vfu_ctx_t *ctx);

/* A BAR or the ROM. Accesses that come as messages go to Python, also for what is mappable. */
int nvmuser_vfu_setup_region(vfu_ctx_t *ctx, int region, size_t size, int flags, struct iovec *areas,
                             uint32_t area_count, int fd);

/*
 * Accesses to configuration space beside the header and the known capabilities go to Python; after vfu_pci_init(). The
 * size must be the one that this has allocated: vfu_setup_region() does not ignore it, whatever libvfio-user.h says.
 */
int nvmuser_vfu_setup_config(vfu_ctx_t *ctx, size_t size);

/* The library's buffer. */
uint8_t *nvmuser_vfu_config_space(vfu_ctx_t *ctx);

/*
 * Whether vfu_run_ctx() can take something off a connection without waiting: 1 for a whole message or the end of the
 * connection, 0 for nothing, or for a message of which a part is still to come (errno is then EINPROGRESS, else EAGAIN).
 * -1 with EPROTO for a message that the library must not see.
 */
int nvmuser_vfu_message_waits(int fd);

/*
 * Copies between `data` and guest memory, within one region that the client has registered. What the client has not
 * made mappable is asked of it by messages: not while it waits for the device to quiesce.
 */
int nvmuser_vfu_dma_copy(vfu_ctx_t *ctx, uint64_t address, void *data, size_t length, bool write);

/*
 * Where a range of guest memory, within one region, is mapped: in *iov. Returns what nvmuser_vfu_dma_unmap() is to be
 * given, or NULL with errno set; EFAULT: the region is not mappable.
 */
void *nvmuser_vfu_dma_map(vfu_ctx_t *ctx, uint64_t address, size_t length, bool write, struct iovec *iov);

void nvmuser_vfu_dma_unmap(vfu_ctx_t *ctx, void *mapping, struct iovec *iov);

/* In Python; -1 with errno set is what the client then gets for an answer. */
int nvmuser_py_read(void *device, int region, uint64_t offset, uint32_t size, uint64_t *value);
int nvmuser_py_write(void *device, int region, uint64_t offset, uint32_t size, uint64_t value);
int nvmuser_py_reset(void *device, int reason);
int nvmuser_py_quiesce(void *device);
void nvmuser_py_dma(void *device, uint64_t address, uint64_t size, bool mapped, bool added);
void nvmuser_py_irq_state(void *device, int type, uint32_t start, uint32_t count, bool masked);
/* A vfu_migr_state_t that is entered. */
int nvmuser_py_enter(void *device, int state);
/* As read() and write() do, on the device's state. */
int64_t nvmuser_py_state_read(void *device, void *data, uint64_t size);
int64_t nvmuser_py_state_write(void *device, void *data, uint64_t size);
void nvmuser_py_log(void *device, int level, const char *text);

#endif
