/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What client.c (calls) and service.c (the service thread, the server's
 * commands, the end of a connection) share.
 */
#ifndef LV_CLIENT_PRIV_H
#define LV_CLIENT_PRIV_H

#include <pthread.h>

#include "client.h"
#include "version.h"

struct pending {
    uint16_t id;
    struct lv_call *call;
    bool done;
    int error;
    struct pending *next;
};

struct lv_client {
    int sock;
    int wake;                   /* eventfd: the service thread is to end */
    char *path;
    struct lv_limits limits;
    int timeout_ms;
    const struct lv_client_ops *ops;
    void *opaque;
    pthread_t thread;

    pthread_mutex_t send_lock;  /* whole messages on sock */

    pthread_mutex_t lock;       /* everything below */
    pthread_cond_t changed;
    struct pending *pending;
    bool reading;               /* somebody reads sock, and owns buffer */
    bool dead;
    bool closing;               /* dead by our own will: nobody is told */
    int twin;                   /* the server's commands, or -1: only the service
                                   thread closes it, and reads this without a lock */
    uint16_t next_id;
    char *buffer;               /* VU_MAX_PAYLOAD */
};

/* Marks the connection dead and wakes all; the first time says why. */
void
lv_client_kill(struct lv_client *client, int why);

/* Ends every wait on the sockets, in whatever thread; under ->lock. */
void
lv_client_shutdown(struct lv_client *client);

/*
 * Reads one message of the main socket as the reader and hands it to its call,
 * or answers it if it is a command. The caller has set ->reading and holds no
 * lock. Returns 0, or -1 with errno.
 */
int
lv_client_read_one(struct lv_client *client);

/* Answers one of the server's commands on sock. Returns 0, or -1. */
int
lv_service_answer(struct lv_client *client, int sock,
                  const struct vu_header *header, char *payload, size_t length);

int
lv_service_start(struct lv_client *client);

void
lv_service_stop(struct lv_client *client);

#endif /* LV_CLIENT_PRIV_H */
