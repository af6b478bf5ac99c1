/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One connection to a vfio-user server.
 *
 * A *call* is a command and its reply; any thread may make one, and several may
 * be under way: replies find their call by id. Nobody is woken for another's
 * reply: of the threads that wait, one (the *reader*) reads the socket for all
 * and hands the part on when it has its own reply.
 *
 * A *service thread* per connection answers the server's own commands (DMA
 * reads and writes), which come on the twin socket if the server offers one,
 * else between the replies, and it notices the end of the connection.
 *
 * *Dead*: once the connection has ended, or a reply did not come within the time
 * limit, it is dead for good: every call fails with ECONNRESET, now and later,
 * and the gone() callback runs once, in the service thread. The time limit is 20
 * s, or LIBVFIO_TIMEOUT_MS (0: none): QEMU makes calls under its big lock, so a
 * server that hangs must not hang the monitor with it.
 */
#ifndef LV_CLIENT_H
#define LV_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "protocol.h"

struct lv_client;

/* What the service thread (or a reader) asks for on behalf of the server. */
struct lv_client_ops {
    /* Return 0, or -1 with the errno that the server is to be told. */
    int (*dma_read)(void *opaque, uint64_t address, void *data, size_t size);
    int (*dma_write)(void *opaque, uint64_t address, const void *data,
                     size_t size);
    void (*gone)(void *opaque);
};

struct lv_call {
    enum vu_command command;
    bool no_reply;              /* posted: do not wait, there is no answer */
    struct iovec request[2];    /* payload; unused parts have length 0 */
    const int *fds;             /* sent along, stay the caller's */
    size_t nr_fds;
    struct iovec reply[2];      /* where the payload goes, in this order */
    size_t reply_length;        /* out: payload that came, and fitted */
    int *reply_fds;             /* room for VU_MAX_FDS, or NULL: closed */
    size_t nr_reply_fds;        /* out: they become the caller's */
};

/*
 * Connects, agrees on a version and starts the service thread. Returns NULL with
 * errno: connect()'s, ETIMEDOUT, EPROTO (no vfio-user server of version 0.x), …
 */
struct lv_client *
lv_client_connect(const char *path, const struct lv_client_ops *ops,
                  void *opaque);

/* Ends the connection; no callback runs once this has returned. */
void
lv_client_close(struct lv_client *client);

/*
 * Makes a call. Returns 0, or -1 with the server's errno (EIO if it gave none),
 * ECONNRESET (dead), EINVAL (request too big; nothing was sent).
 */
int
lv_client_call(struct lv_client *client, struct lv_call *call);

bool
lv_client_dead(struct lv_client *client);

uint32_t
lv_client_max_xfer(const struct lv_client *client);

uint32_t
lv_client_max_fds(const struct lv_client *client);

uint64_t
lv_client_max_dma_maps(const struct lv_client *client);

#endif /* LV_CLIENT_H */
