/* Guest memory: copies, and ranges mapped for as long as they are needed. */
#include <alloca.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "glue.h"

/* The caller keeps to one region of the client's, so that there is one entry. */
static int
to_sgl(vfu_ctx_t *ctx, uint64_t address, size_t length, bool write, dma_sg_t *sgl)
{
    int prot = write ? PROT_READ | PROT_WRITE : PROT_READ;
    int count = vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)address, length, sgl, 1, prot);

    if (count < -1) {
        errno = EINVAL;
    }
    return count == 1 ? 0 : -1;
}

/* By the kernel, which answers EFAULT where the client's file has no page: touching that ourselves would be SIGBUS. */
static int
copy_mapped(struct iovec remote, char *data, bool write)
{
    struct iovec local = { .iov_base = data };

    while (remote.iov_len > 0) {
        ssize_t done;

        local.iov_len = remote.iov_len;
        done = write ? process_vm_writev(getpid(), &local, 1, &remote, 1, 0)
                     : process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
        if (done <= 0) {
            return -1;
        }
        remote.iov_base = (char *)remote.iov_base + done;
        remote.iov_len -= done;
        local.iov_base = (char *)local.iov_base + done;
    }
    return 0;
}

int
nvmuser_vfu_dma_copy(vfu_ctx_t *ctx, uint64_t address, void *data, size_t length, bool write)
{
    dma_sg_t *sgl = alloca(dma_sg_size());
    struct iovec iov;
    int ret;

    if (to_sgl(ctx, address, length, write, sgl) < 0) {
        return -1;
    }
    if (!vfu_sg_is_mappable(ctx, sgl)) {
        return write ? vfu_sgl_write(ctx, sgl, 1, data) : vfu_sgl_read(ctx, sgl, 1, data);
    }
    if (vfu_sgl_get(ctx, sgl, &iov, 1, 0) < 0) {
        return -1;
    }
    ret = copy_mapped(iov, data, write);
    vfu_sgl_put(ctx, sgl, &iov, 1);
    return ret;
}

void *
nvmuser_vfu_dma_map(vfu_ctx_t *ctx, uint64_t address, size_t length, bool write, struct iovec *iov)
{
    dma_sg_t *sgl = calloc(1, dma_sg_size());

    if (sgl == NULL) {
        return NULL;
    }
    if (to_sgl(ctx, address, length, write, sgl) < 0 || vfu_sgl_get(ctx, sgl, iov, 1, 0) < 0) {
        free(sgl);
        return NULL;
    }
    return sgl;
}

void
nvmuser_vfu_dma_unmap(vfu_ctx_t *ctx, void *mapping, struct iovec *iov)
{
    vfu_sgl_put(ctx, mapping, iov, 1);
    free(mapping);
}
