/* SPDX-License-Identifier: BSD-3-Clause */
#include "server_priv.h"

#include <assert.h>
#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define USUAL_JSON "{\"capabilities\":{\"max_msg_fds\":8," \
                   "\"max_data_xfer_size\":1048576,\"migration\":{\"pgsize\":4096}}}"

static void
answer_version(struct server *s, const struct message *m)
{
    const char *json = s->version_json != NULL ? s->version_json
        : s->twin ? "{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":"
                    "{\"supported\":true,\"fd_index\":0}}}"
        : USUAL_JSON;
    size_t size = 4 + strlen(json) + 1;
    char *payload = calloc(1, size);
    int pair[2] = { -1, -1 };

    memcpy(payload, &s->major, 2);
    payload[2] = VU_MINOR;
    strcpy(payload + 4, json);
    if (s->twin) {
        assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
        pthread_mutex_lock(&s->lock);
        s->commands = pair[0];
        pthread_mutex_unlock(&s->lock);
    }
    server_reply(s->connection, &m->header, 0, payload, size,
                 s->twin_is_file ? s->bar0_fd : pair[1], false);
    if (pair[1] != -1) {
        close(pair[1]);
    }
    free(payload);
}

void
server_answer_region_info(struct server *s, const struct message *m, bool bad_caps)
{
    struct {
        struct vfio_region_info info;
        struct vfio_region_info_cap_sparse_mmap sparse;
        struct vfio_region_sparse_mmap_area area;
    } out = { .info = { .argsz = sizeof(out.info) } };
    size_t size = sizeof(out.info);
    int fd = -1;

    memcpy(&out.info.index, m->payload + 8, 4);
    out.info.flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    if (out.info.index == 0) {
        out.info.size = SERVER_BAR0_SIZE;
        out.info.offset = 0x1000;       /* in the memory behind the descriptor */
        out.info.flags |= VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS;
        out.info.cap_offset = bad_caps ? 0x7fffffff : sizeof(out.info);
        out.sparse.header.id = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
        out.sparse.header.version = 1;
        out.sparse.nr_areas = 1;
        out.area.offset = SERVER_BAR0_SIZE / 2;
        out.area.size = SERVER_BAR0_SIZE / 2;
        out.info.argsz = size = sizeof(out);
        fd = s->bar0_fd;
    } else if (out.info.index == 1) {
        out.info.size = 256;
    } else if (out.info.index == VFIO_PCI_CONFIG_REGION_INDEX) {
        out.info.size = SERVER_CONFIG_SIZE;
    }
    server_reply(s->connection, &m->header, 0, &out, size, fd, false);
}

static void
answer_irq_info(struct server *s, const struct message *m)
{
    struct vfio_irq_info out = { .argsz = sizeof(out),
                                 .flags = VFIO_IRQ_INFO_EVENTFD };

    memcpy(&out.index, m->payload + 8, 4);
    out.count = out.index == VFIO_PCI_INTX_IRQ_INDEX ? 1
        : out.index <= VFIO_PCI_MSIX_IRQ_INDEX ? SERVER_MSIX
        : out.index == VFIO_PCI_ERR_IRQ_INDEX ? (uint32_t)s->error_irqs
        : out.index == VFIO_PCI_REQ_IRQ_INDEX ? (uint32_t)s->request_irqs : 0;
    server_reply(s->connection, &m->header, 0, &out, sizeof(out), -1, false);
}

static void
answer_set_irqs(struct server *s, struct message *m)
{
    struct vu_irq_set set;
    int *vectors;

    memcpy(&set, m->payload, sizeof(set));
    vectors = set.index == VFIO_PCI_MSIX_IRQ_INDEX ? s->vectors
        : set.index == VFIO_PCI_MSI_IRQ_INDEX ? s->msi_vectors : NULL;
    for (uint32_t i = 0; i < set.count && vectors != NULL &&
                         set.start + i < SERVER_MSIX; i++) {
        int *vector = &vectors[set.start + i];

        if (*vector != -1) {
            close(*vector);
        }
        *vector = i < m->nr_fds ? m->fds[i] : -1;
    }
    if (vectors != NULL) {
        m->nr_fds = 0;
    }
    server_reply(s->connection, &m->header, 0, NULL, 0, -1, false);
}

static void
answer_dma(struct server *s, struct message *m)
{
    struct vu_dma_map map;
    struct vu_dma_unmap unmap;

    if (m->header.command == VU_DMA_MAP) {
        memcpy(&map, m->payload, sizeof(map));
        assert(s->nr_maps < SERVER_MAX_MAPS);
        s->maps[s->nr_maps++] = (struct server_map){
            map.address, map.size, map.offset, map.flags,
            m->nr_fds > 0 ? m->fds[0] : -1,
        };
        m->nr_fds = 0;
        server_reply(s->connection, &m->header, 0, NULL, 0, -1, false);
        return;
    }
    memcpy(&unmap, m->payload, sizeof(unmap));
    for (unsigned int i = 0; i < s->nr_maps; i++) {
        if (s->maps[i].address == unmap.address && s->maps[i].size == unmap.size) {
            if (s->maps[i].fd != -1) {
                close(s->maps[i].fd);
            }
            s->maps[i] = s->maps[--s->nr_maps];
            server_reply(s->connection, &m->header, 0, &unmap, sizeof(unmap), -1, false);
            return;
        }
    }
    server_reply(s->connection, &m->header, EINVAL, NULL, 0, -1, false);
}

static void
answer_access(struct server *s, const struct message *m)
{
    struct vu_region_access a;
    bool is_read = m->header.command == VU_REGION_READ;
    char *out;
    uint8_t *memory;

    memcpy(&a, m->payload, sizeof(a));
    memory = a.region == 0 ? s->bar0
        : a.region == VFIO_PCI_CONFIG_REGION_INDEX ? s->config : NULL;
    if (memory == NULL) {
        if ((m->header.flags & VU_FLAG_NO_REPLY) == 0) {
            server_reply(s->connection, &m->header, EINVAL, NULL, 0, -1, false);
        }
        return;
    }
    if (!is_read) {
        memcpy(memory + a.offset, m->payload + sizeof(a), a.count);
        if ((m->header.flags & VU_FLAG_NO_REPLY) == 0) {
            server_reply(s->connection, &m->header, 0, &a, sizeof(a), -1, false);
        }
        return;
    }
    out = malloc(sizeof(a) + a.count);
    memcpy(out, &a, sizeof(a));
    memcpy(out + sizeof(a), memory + a.offset, a.count);
    server_reply(s->connection, &m->header, 0, out, sizeof(a) + a.count, -1, false);
    free(out);
}

void
server_answer(struct server *s, struct message *m)
{
    const struct vu_device_info info = {
        sizeof(info), VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET, 9, 5
    };

    switch (m->header.command) {
    case VU_VERSION:
        answer_version(s, m);
        break;
    case VU_DMA_MAP:
    case VU_DMA_UNMAP:
        answer_dma(s, m);
        break;
    case VU_DEVICE_GET_INFO:
        server_reply(s->connection, &m->header, 0, &info, sizeof(info), -1, false);
        break;
    case VU_DEVICE_GET_REGION_INFO:
        server_answer_region_info(s, m, false);
        break;
    case VU_DEVICE_GET_IRQ_INFO:
        answer_irq_info(s, m);
        break;
    case VU_DEVICE_SET_IRQS:
        answer_set_irqs(s, m);
        break;
    case VU_REGION_READ:
    case VU_REGION_WRITE:
        answer_access(s, m);
        break;
    case VU_DEVICE_RESET:
        s->resets++;
        server_reply(s->connection, &m->header, 0, NULL, 0, -1, false);
        break;
    case VU_DEVICE_FEATURE:
    case VU_MIG_DATA_READ:
    case VU_MIG_DATA_WRITE:
        server_answer_migration(s, m);
        break;
    default:
        server_reply(s->connection, &m->header, ENOTSUP, NULL, 0, -1, false);
    }
}
