/* SPDX-License-Identifier: BSD-3-Clause */
#include "client_priv.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "channel.h"
#include "log.h"

enum { SERVICE_WAKE, SERVICE_MAIN, SERVICE_TWIN, SERVICE_NR };

/*
 * Runs a DMA command on payload, which starts with a vu_dma_access and has room
 * for VU_MAX_PAYLOAD bytes. Returns the reply's length, or -1 with errno.
 */
static ssize_t
run_dma(struct lv_client *client, enum vu_command command, char *payload,
        size_t length)
{
    struct vu_dma_access access;
    char *data = payload + sizeof(access);
    int ret;

    if (length < sizeof(access)) {
        errno = EINVAL;
        return -1;
    }
    memcpy(&access, payload, sizeof(access));
    if (access.count > VU_DEFAULT_MAX_XFER) {
        errno = E2BIG;
        return -1;
    }
    if (command == VU_DMA_READ) {
        ret = client->ops->dma_read(client->opaque, access.address, data,
                                    access.count);
        return ret == 0 ? (ssize_t)(sizeof(access) + access.count) : -1;
    }
    if (length - sizeof(access) < access.count) {
        errno = EINVAL;
        return -1;
    }
    ret = client->ops->dma_write(client->opaque, access.address, data,
                                 access.count);
    return ret == 0 ? (ssize_t)sizeof(access) : -1;
}

int
lv_service_answer(struct lv_client *client, int sock,
                  const struct vu_header *header, char *payload, size_t length)
{
    struct vu_header reply = {
        .id = header->id,
        .command = header->command,
        .flags = VU_TYPE_REPLY,
    };
    struct iovec iov = { payload, 0 };
    ssize_t n = -1;
    int ret;

    if (header->command == VU_DMA_READ || header->command == VU_DMA_WRITE) {
        n = run_dma(client, header->command, payload, length);
    } else {
        errno = ENOTSUP;
    }
    if (n < 0) {
        reply.flags |= VU_FLAG_ERROR;
        reply.error = (uint32_t)errno;
    } else {
        iov.iov_len = (size_t)n;
    }
    if (header->flags & VU_FLAG_NO_REPLY) {
        return 0;
    }
    /* The twin socket has one sender, this thread; the main one has many. */
    if (sock == client->sock) {
        pthread_mutex_lock(&client->send_lock);
    }
    ret = lv_channel_send(sock, &reply, &iov, 1, NULL, 0);
    if (sock == client->sock) {
        pthread_mutex_unlock(&client->send_lock);
    }
    return ret;
}

/* One command of the twin socket; its end only ends the server's commands. */
static void
serve_twin(struct lv_client *client, char *buffer)
{
    struct vu_header header;
    int fds[VU_MAX_FDS];
    size_t length, nr_fds;
    int ret = lv_channel_recv(client->twin, &header, buffer, VU_MAX_PAYLOAD,
                              &length, fds, &nr_fds);

    if (ret == 0) {
        lv_channel_close_fds(fds, nr_fds);
        ret = lv_service_answer(client, client->twin, &header, buffer, length);
    }
    if (ret != 0) {
        pthread_mutex_lock(&client->lock);
        close(client->twin);
        client->twin = -1;
        pthread_mutex_unlock(&client->lock);
    }
}

/*
 * Something can be read from the main socket. While calls wait, that is most
 * likely a reply, and they read it themselves.
 */
static void
serve_main(struct lv_client *client)
{
    int ret, why;

    pthread_mutex_lock(&client->lock);
    while ((client->reading || client->pending != NULL) && !client->dead) {
        pthread_cond_wait(&client->changed, &client->lock);
    }
    if (client->dead) {
        pthread_mutex_unlock(&client->lock);
        return;
    }
    client->reading = true;
    pthread_mutex_unlock(&client->lock);
    /* The readers have left nothing behind, perhaps: then do not block. */
    struct pollfd pfd = { client->sock, POLLIN, 0 };
    ret = poll(&pfd, 1, 0) > 0 ? lv_client_read_one(client) : 0;
    why = errno;
    pthread_mutex_lock(&client->lock);
    client->reading = false;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
    if (ret != 0) {
        lv_client_kill(client, why);
    }
}

static void *
service(void *arg)
{
    struct lv_client *client = arg;
    char *buffer = malloc(VU_MAX_PAYLOAD);
    struct pollfd pfds[SERVICE_NR];

    if (buffer == NULL) {
        lv_client_kill(client, ENOMEM);
    }
    while (!lv_client_dead(client)) {
        pfds[SERVICE_WAKE] = (struct pollfd){ client->wake, POLLIN, 0 };
        /* With a twin, the main socket has replies only: watch for its end. */
        pfds[SERVICE_MAIN] = (struct pollfd){
            client->sock, client->twin == -1 ? POLLIN : POLLRDHUP, 0
        };
        pfds[SERVICE_TWIN] = (struct pollfd){ client->twin, POLLIN, 0 };
        if (poll(pfds, SERVICE_NR, -1) < 0) {
            continue;
        }
        if (pfds[SERVICE_WAKE].revents != 0) {
            free(buffer);
            return NULL;
        }
        if (pfds[SERVICE_TWIN].revents != 0) {
            serve_twin(client, buffer);
        }
        if (pfds[SERVICE_MAIN].revents & (POLLRDHUP | POLLHUP | POLLERR)) {
            lv_client_kill(client, ECONNRESET);
        } else if (pfds[SERVICE_MAIN].revents & POLLIN) {
            serve_main(client);
        }
    }
    free(buffer);
    pthread_mutex_lock(&client->lock);
    bool closing = client->closing;
    pthread_mutex_unlock(&client->lock);
    if (!closing) {
        client->ops->gone(client->opaque);
    }
    return NULL;
}

int
lv_service_start(struct lv_client *client)
{
    sigset_t all, old;
    int ret;

    client->wake = eventfd(0, EFD_CLOEXEC);
    if (client->wake == -1) {
        return -1;
    }
    /* QEMU's signals are for QEMU's threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    ret = pthread_create(&client->thread, NULL, service, client);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret != 0) {
        errno = ret;
        return -1;
    }
    return 0;
}

void
lv_service_stop(struct lv_client *client)
{
    pthread_mutex_lock(&client->lock);
    client->dead = client->closing = true;
    lv_client_shutdown(client);
    pthread_mutex_unlock(&client->lock);
    (void)eventfd_write(client->wake, 1);
    pthread_join(client->thread, NULL);
}
