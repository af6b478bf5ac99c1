/* What nvmuser_vfu offers: libvfio-user.h's own names, glue.h's, and the functions in Python that glue.c calls. */

typedef struct vfu_ctx vfu_ctx_t;
struct iovec { void *iov_base; size_t iov_len; };

#define LIBVFIO_USER_FLAG_ATTACH_NB ...
#define VFU_REGION_FLAG_READ ...
#define VFU_REGION_FLAG_WRITE ...
#define VFU_REGION_FLAG_MEM ...
#define VFU_REGION_FLAG_64_BITS ...
#define VFU_REGION_FLAG_PREFETCH ...
#define VFU_CAP_FLAG_EXTENDED ...
#define VFU_CAP_FLAG_READONLY ...
#define VFU_PCI_DEV_CFG_REGION_IDX ...
#define VFU_TRANS_SOCK ...
#define VFU_DEV_TYPE_PCI ...
#define VFU_PCI_TYPE_CONVENTIONAL ...
#define VFU_PCI_TYPE_EXPRESS ...
#define VFU_DEV_INTX_IRQ ...
#define VFU_DEV_MSI_IRQ ...
#define VFU_DEV_MSIX_IRQ ...

vfu_ctx_t *vfu_create_ctx(int trans, const char *path, int flags, void *pvt, int dev_type);
int vfu_realize_ctx(vfu_ctx_t *ctx);
int vfu_attach_ctx(vfu_ctx_t *ctx);
int vfu_get_poll_fd(vfu_ctx_t *ctx);
int vfu_run_ctx(vfu_ctx_t *ctx);
void vfu_destroy_ctx(vfu_ctx_t *ctx);
int vfu_device_quiesced(vfu_ctx_t *ctx, int quiesce_errno);
int vfu_setup_device_nr_irqs(vfu_ctx_t *ctx, int type, uint32_t count);
int vfu_irq_trigger(vfu_ctx_t *ctx, uint32_t subindex);
int vfu_pci_init(vfu_ctx_t *ctx, int pci_type, int hdr_type, int revision);
void vfu_pci_set_id(vfu_ctx_t *ctx, uint16_t vid, uint16_t did, uint16_t ssvid, uint16_t ssid);
void vfu_pci_set_class(vfu_ctx_t *ctx, uint8_t base, uint8_t sub, uint8_t pi);
ssize_t vfu_pci_add_capability(vfu_ctx_t *ctx, size_t pos, int flags, void *data);

int nvmuser_vfu_setup_callbacks(vfu_ctx_t *ctx, int log_level);
int nvmuser_vfu_setup_region(vfu_ctx_t *ctx, int region, size_t size, int flags, struct iovec *areas,
                             uint32_t area_count, int fd);
int nvmuser_vfu_setup_config(vfu_ctx_t *ctx, size_t size);
uint8_t *nvmuser_vfu_config_space(vfu_ctx_t *ctx);
int nvmuser_vfu_message_waits(int fd);
int nvmuser_vfu_dma_copy(vfu_ctx_t *ctx, uint64_t address, void *data, size_t length, bool write);
void *nvmuser_vfu_dma_map(vfu_ctx_t *ctx, uint64_t address, size_t length, bool write, struct iovec *iov);
void nvmuser_vfu_dma_unmap(vfu_ctx_t *ctx, void *mapping, struct iovec *iov);

/* Implemented by nvmuser.pci.raw. `device` is the handle given to vfu_create_ctx. */
extern "Python+C" {
int nvmuser_py_read(void *device, int region, uint64_t offset, uint32_t size, uint64_t *value);
int nvmuser_py_write(void *device, int region, uint64_t offset, uint32_t size, uint64_t value);
int nvmuser_py_reset(void *device, int reason);
int nvmuser_py_quiesce(void *device);
void nvmuser_py_dma(void *device, uint64_t address, uint64_t size, bool mapped, bool added);
void nvmuser_py_irq_state(void *device, int type, uint32_t start, uint32_t count, bool masked);
void nvmuser_py_log(void *device, int level, const char *text);
}
