/* SPDX-License-Identifier: BSD-3-Clause */
/* Calls of many threads over one socket: one of those that wait reads for all. */
#include "client_priv.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "channel.h"

/* Copies a reply's payload to where its call wants it. */
static void
scatter(struct lv_call *call, const char *payload, size_t length)
{
    call->reply_length = 0;
    for (size_t i = 0; i < 2; i++) {
        size_t n = call->reply[i].iov_len < length ? call->reply[i].iov_len
                                                   : length;

        if (n > 0) {
            memcpy(call->reply[i].iov_base, payload, n);
            payload += n;
            length -= n;
            call->reply_length += n;
        }
    }
}

/* Hands a reply to its call; one that nobody waits for is dropped. */
static void
deliver(struct lv_client *client, const struct vu_header *header, size_t length,
        const int *fds, size_t nr_fds)
{
    struct pending *p;

    pthread_mutex_lock(&client->lock);
    for (p = client->pending; p != NULL; p = p->next) {
        if (p->id == header->id && !p->done) {
            break;
        }
    }
    if (p != NULL) {
        if (header->flags & VU_FLAG_ERROR) {
            p->error = header->error > 0 && header->error < 4096
                           ? (int)header->error : EIO;
        } else if (header->command != p->call->command) {
            p->error = EPROTO;
        } else {
            scatter(p->call, client->buffer, length);
            if (p->call->reply_fds != NULL) {
                memcpy(p->call->reply_fds, fds, nr_fds * sizeof(*fds));
                p->call->nr_reply_fds = nr_fds;
                nr_fds = 0;
            }
        }
        p->done = true;
    }
    pthread_mutex_unlock(&client->lock);
    lv_channel_close_fds(fds, nr_fds);
}

int
lv_client_read_one(struct lv_client *client)
{
    struct vu_header header;
    int fds[VU_MAX_FDS];
    size_t length, nr_fds;

    if (lv_channel_recv(client->sock, &header, client->buffer, VU_MAX_PAYLOAD,
                        &length, fds, &nr_fds) != 0) {
        return -1;
    }
    if ((header.flags & VU_TYPE_MASK) == VU_TYPE_REPLY) {
        deliver(client, &header, length, fds, nr_fds);
        return 0;
    }
    lv_channel_close_fds(fds, nr_fds);
    return lv_service_answer(client, client->sock, &header, client->buffer,
                             length);
}

static void
deadline_in(struct timespec *deadline, int ms)
{
    clock_gettime(CLOCK_MONOTONIC, deadline);
    deadline->tv_sec += ms / 1000;
    deadline->tv_nsec += (long)(ms % 1000) * 1000000;
    if (deadline->tv_nsec >= 1000000000) {
        deadline->tv_sec++;
        deadline->tv_nsec -= 1000000000;
    }
}

static bool
is_past(const struct timespec *deadline)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > deadline->tv_sec ||
           (now.tv_sec == deadline->tv_sec && now.tv_nsec >= deadline->tv_nsec);
}

/* Waits under client->lock for the reply, as the reader or behind it. */
static void
wait_reply(struct lv_client *client, struct pending *p)
{
    struct timespec deadline;

    deadline_in(&deadline, client->timeout_ms);
    while (!p->done && !client->dead) {
        int ret = 0;

        if (!client->reading) {
            client->reading = true;
            pthread_mutex_unlock(&client->lock);
            ret = lv_client_read_one(client) == 0 ? 0 : errno;
            /* A server that says everything but the reply does not answer. */
            if (ret == 0 && client->timeout_ms != 0 && is_past(&deadline)) {
                ret = ETIMEDOUT;
            }
            pthread_mutex_lock(&client->lock);
            client->reading = false;
            pthread_cond_broadcast(&client->changed);
        } else if (client->timeout_ms == 0) {
            pthread_cond_wait(&client->changed, &client->lock);
        } else {
            ret = pthread_cond_timedwait(&client->changed, &client->lock,
                                         &deadline);
        }
        if (ret != 0 && !p->done) {
            pthread_mutex_unlock(&client->lock);
            lv_client_kill(client, ret);
            pthread_mutex_lock(&client->lock);
        }
    }
}

/* An id that no waiting call has; under client->lock. */
static uint16_t
fresh_id(struct lv_client *client)
{
    struct pending *p;
    uint16_t id;

    do {
        id = client->next_id++;
        for (p = client->pending; p != NULL && p->id != id; p = p->next) {
        }
    } while (p != NULL);
    return id;
}

static void
unlink_pending(struct lv_client *client, struct pending *p)
{
    struct pending **link = &client->pending;

    while (*link != p) {
        link = &(*link)->next;
    }
    *link = p->next;
}

static int
send_call(struct lv_client *client, const struct lv_call *call, uint16_t id)
{
    struct vu_header header = {
        .id = id,
        .command = (uint16_t)call->command,
        .flags = VU_TYPE_COMMAND | (call->no_reply ? VU_FLAG_NO_REPLY : 0),
    };
    int ret, why;

    pthread_mutex_lock(&client->send_lock);
    ret = lv_channel_send(client->sock, &header, call->request, 2, call->fds,
                          call->nr_fds);
    why = errno;
    pthread_mutex_unlock(&client->send_lock);
    if (ret != 0 && why != EINVAL) {
        lv_client_kill(client, why);
    }
    errno = why;
    return ret;
}

int
lv_client_call(struct lv_client *client, struct lv_call *call)
{
    struct pending self = { .call = call };
    int error = 0;

    call->reply_length = 0;
    call->nr_reply_fds = 0;
    pthread_mutex_lock(&client->lock);
    if (client->dead) {
        pthread_mutex_unlock(&client->lock);
        errno = ECONNRESET;
        return -1;
    }
    self.id = fresh_id(client);
    if (!call->no_reply) {
        self.next = client->pending;
        client->pending = &self;
    }
    pthread_mutex_unlock(&client->lock);

    if (send_call(client, call, self.id) != 0) {
        error = errno == EINVAL ? EINVAL : ECONNRESET;
    }
    if (!call->no_reply) {
        pthread_mutex_lock(&client->lock);
        if (error == 0) {
            wait_reply(client, &self);
            error = self.done ? self.error : ECONNRESET;
        }
        unlink_pending(client, &self);
        pthread_cond_broadcast(&client->changed);
        pthread_mutex_unlock(&client->lock);
    }
    errno = error;
    return error == 0 ? 0 : -1;
}
