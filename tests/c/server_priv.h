/* SPDX-License-Identifier: BSD-3-Clause */
/* What server.c (transport, faults) and server_device.c (the device) share. */
#ifndef TEST_SERVER_PRIV_H
#define TEST_SERVER_PRIV_H

#include "server.h"

struct message {
    struct vu_header header;
    char payload[VU_MAX_PAYLOAD];
    size_t length;
    int fds[16];
    size_t nr_fds;
};

/* Sends a reply: error -1 is an error without errno; split sends single bytes. */
void
server_reply(int sock, const struct vu_header *to, int error, const void *payload,
             size_t length, int fd, bool split);

/* Answers a command as the device does; takes the descriptors that it keeps. */
void
server_answer(struct server *server, struct message *m);

void
server_answer_region_info(struct server *server, const struct message *m,
                          bool bad_caps);

/* server_migration.c: DEVICE_FEATURE and MIG_DATA_*. */
void
server_answer_migration(struct server *server, const struct message *m);

#endif /* TEST_SERVER_PRIV_H */
