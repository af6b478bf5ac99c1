/*
 * The device of nvmuser.bench.scenarios.gpio in C: what its round trip is compared with. The same BAR, the same registers, the
 * shortest way through libvfio-user: one client, blocking. The library's calls are all that could go wrong.
 */
#include <err.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <vfio-user/libvfio-user.h>

static uint8_t outputs;

static ssize_t
access_bar2(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    if (count != 1) {
        errno = EINVAL;
        return -1;
    }
    if (is_write) {
        if (offset == 0) {
            outputs = buf[0];
        }
    } else {
        buf[0] = offset == 0 ? outputs : 0;
    }
    return count;
}

int
main(int argc, char **argv)
{
    vfu_ctx_t *ctx;

    if (argc != 2) {
        errx(EXIT_FAILURE, "usage: %s SOCKET", argv[0]);
    }
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, NULL, VFU_DEV_TYPE_PCI);
    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, 0x100, access_bar2, VFU_REGION_FLAG_RW, NULL, 0, -1, 0) < 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) < 0 || vfu_realize_ctx(ctx) < 0) {
        err(EXIT_FAILURE, "%s", argv[1]);
    }
    vfu_pci_set_id(ctx, 0x494f, 0x0dc8, 0, 0);
    puts("ready");
    fflush(stdout);
    if (vfu_attach_ctx(ctx) < 0) {
        err(EXIT_FAILURE, "no client");
    }
    while (vfu_run_ctx(ctx) >= 0) {
    }
    vfu_destroy_ctx(ctx);
    return EXIT_SUCCESS;
}
