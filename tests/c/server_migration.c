/* SPDX-License-Identifier: BSD-3-Clause */
/* A device that migrates: its states, its log of one page, and its data. */
#include "server_priv.h"

#include <errno.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>

#define MIG_DATA_SIZE 9         /* VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, Linux 6.2 */
#define PRE_COPY 4u             /* VFIO_MIGRATION_PRE_COPY, Linux 6.2 */
#define PAGE 4096u

static void
answer_report(struct server *s, const struct message *m)
{
    struct vu_dma_logging_report report;
    struct vu_device_feature feature;
    size_t head = sizeof(feature) + sizeof(report), size;
    char *out;

    memcpy(&feature, m->payload, sizeof(feature));
    memcpy(&report, m->payload + sizeof(feature), sizeof(report));
    size = (report.length / PAGE + 63) / 64 * 8;
    out = calloc(1, head + size);
    memcpy(out, m->payload, head);
    if (s->dirty >= report.address && s->dirty < report.address + report.length) {
        uint64_t bit = (s->dirty - report.address) / PAGE;

        out[head + bit / 8] = (char)(1u << bit % 8);
    }
    server_reply(s->connection, &m->header, 0, out, head + size, -1, false);
    free(out);
}

static void
answer_feature(struct server *s, const struct message *m)
{
    struct {
        struct vu_device_feature head;
        union {
            uint64_t number;
            struct vu_mig_state state;
        };
    } out = { 0 };
    size_t size = sizeof(out);

    memcpy(&out.head, m->payload, sizeof(out.head));
    switch (out.head.flags) {
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION:
        out.number = VFIO_MIGRATION_STOP_COPY |
                     (s->plain ? PRE_COPY : VFIO_MIGRATION_P2P);
        break;
    case VFIO_DEVICE_FEATURE_GET | MIG_DATA_SIZE:
        if (s->plain) {
            server_reply(s->connection, &m->header, EINVAL, NULL, 0, -1, false);
            return;
        }
        out.number = 12345;
        break;
    case VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        memcpy(&s->state, m->payload + sizeof(out.head), sizeof(s->state));
        s->nr_saved = 0;
        /* fallthrough */
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE:
        out.state = (struct vu_mig_state){ s->state, -1 };
        break;
    case VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
        memcpy(s->logged, m->payload + sizeof(out.head) +
                              sizeof(struct vu_dma_logging_control), 16);
        size = sizeof(out.head);
        break;
    case VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        answer_report(s, m);
        return;
    default:
        size = sizeof(out.head);
    }
    server_reply(s->connection, &m->header, 0, &out, size, -1, false);
}

static void
answer_read(struct server *s, const struct message *m)
{
    struct vu_mig_data head;
    size_t n = sizeof(s->saved) - s->nr_saved;
    char *out;

    memcpy(&head, m->payload, sizeof(head));
    n = n < head.size ? n : head.size;
    head.size = (uint32_t)n;
    out = malloc(sizeof(head) + n);
    memcpy(out, &head, sizeof(head));
    memcpy(out + sizeof(head), s->saved + s->nr_saved, n);
    s->nr_saved += n;
    server_reply(s->connection, &m->header, 0, out, sizeof(head) + n, -1, false);
    free(out);
}

static void
answer_write(struct server *s, const struct message *m)
{
    struct vu_mig_data head;

    memcpy(&head, m->payload, sizeof(head));
    if (s->nr_restored + head.size > s->refuse_after ||
        s->nr_restored + head.size > sizeof(s->restored)) {
        server_reply(s->connection, &m->header, EINVAL, NULL, 0, -1, false);
        return;
    }
    memcpy(s->restored + s->nr_restored, m->payload + sizeof(head), head.size);
    s->nr_restored += head.size;
    server_reply(s->connection, &m->header, 0, &head, sizeof(head), -1, false);
}

void
server_answer_migration(struct server *s, const struct message *m)
{
    if (!s->migratable) {
        server_reply(s->connection, &m->header, EINVAL, NULL, 0, -1, false);
    } else if (m->header.command == VU_DEVICE_FEATURE) {
        answer_feature(s, m);
    } else if (m->header.command == VU_MIG_DATA_READ) {
        answer_read(s, m);
    } else {
        answer_write(s, m);
    }
}
