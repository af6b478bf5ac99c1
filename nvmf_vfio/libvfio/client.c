/* SPDX-License-Identifier: BSD-3-Clause */
#include "client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "log.h"
#include "number.h"

#define DEFAULT_TIMEOUT_MS 20000

static int
timeout_ms(void)
{
    const char *text = getenv("LIBVFIO_TIMEOUT_MS");
    const char *at = text;
    uint64_t value;

    if (text == NULL || *text == '\0') {
        return DEFAULT_TIMEOUT_MS;
    }
    if (!lv_parse_number(&at, 10, 3600000, &value) || *at != '\0') {
        lv_log("LIBVFIO_TIMEOUT_MS=%s is not a number of milliseconds up to an "
               "hour; using %d", text, DEFAULT_TIMEOUT_MS);
        return DEFAULT_TIMEOUT_MS;
    }
    return (int)value;
}

void
lv_client_shutdown(struct lv_client *client)
{
    shutdown(client->sock, SHUT_RDWR);
    if (client->twin != -1) {
        shutdown(client->twin, SHUT_RDWR);
    }
}

void
lv_client_kill(struct lv_client *client, int why)
{
    bool first;

    pthread_mutex_lock(&client->lock);
    first = !client->dead;
    client->dead = true;
    if (first) {
        lv_client_shutdown(client);
    }
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
    if (first && client->wake != -1) {  /* else connecting: the caller says it */
        errno = why;
        lv_log("%s: lost the vfio-user server (%m); its device is gone until "
               "it is unplugged and plugged again", client->path);
    }
}

static int
negotiate(struct lv_client *client)
{
    struct vu_version ours = { .major = VU_MAJOR, .minor = VU_MINOR };
    const char *json = lv_version_request();
    int fds[VU_MAX_FDS];
    char reply[4096];
    struct vu_version theirs;
    struct lv_call call = {
        .command = VU_VERSION,
        .request = { { &ours, sizeof(ours) }, { (void *)json, strlen(json) + 1 } },
        .reply = { { &theirs, sizeof(theirs) }, { reply, sizeof(reply) } },
        .reply_fds = fds,
    };
    int ret = -1;

    if (lv_client_call(client, &call) != 0) {
        return -1;
    }
    if (call.reply_length < sizeof(theirs) || theirs.major != VU_MAJOR ||
        theirs.minor > VU_MINOR ||
        lv_version_parse(reply, call.reply_length - sizeof(theirs),
                         &client->limits) != 0) {
        errno = EPROTO;
    } else if (!client->limits.twin_socket) {
        ret = 0;
    } else if (client->limits.twin_fd_index >= call.nr_reply_fds) {
        errno = EPROTO;
    } else {
        client->twin = fds[client->limits.twin_fd_index];
        fds[client->limits.twin_fd_index] = fds[--call.nr_reply_fds];
        ret = lv_channel_set_timeout(client->twin, client->timeout_ms);
        if (ret != 0) {
            errno = EPROTO;     /* no socket */
        }
    }
    lv_channel_close_fds(fds, call.nr_reply_fds);
    return ret;
}

static void
destroy(struct lv_client *client)
{
    int saved = errno;

    if (client->sock != -1) {
        close(client->sock);
    }
    if (client->twin != -1) {
        close(client->twin);
    }
    if (client->wake != -1) {
        close(client->wake);
    }
    pthread_mutex_destroy(&client->send_lock);
    pthread_mutex_destroy(&client->lock);
    pthread_cond_destroy(&client->changed);
    free(client->buffer);
    free(client->path);
    free(client);
    errno = saved;
}

static struct lv_client *
create(const char *path, const struct lv_client_ops *ops, void *opaque)
{
    struct lv_client *client = calloc(1, sizeof(*client));
    pthread_condattr_t attr;

    if (client == NULL) {
        return NULL;
    }
    client->sock = client->twin = client->wake = -1;
    client->ops = ops;
    client->opaque = opaque;
    client->timeout_ms = timeout_ms();
    client->limits.max_msg_fds = VU_DEFAULT_MAX_FDS;
    client->limits.max_data_xfer_size = VU_DEFAULT_MAX_XFER;
    pthread_mutex_init(&client->send_lock, NULL);
    pthread_mutex_init(&client->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&client->changed, &attr);
    pthread_condattr_destroy(&attr);
    client->path = strdup(path);
    client->buffer = malloc(VU_MAX_PAYLOAD);
    if (client->path != NULL && client->buffer != NULL) {
        return client;
    }
    destroy(client);
    return NULL;
}

struct lv_client *
lv_client_connect(const char *path, const struct lv_client_ops *ops, void *opaque)
{
    struct lv_client *client = create(path, ops, opaque);

    if (client == NULL) {
        return NULL;
    }
    client->sock = lv_channel_connect(path, client->timeout_ms);
    if (client->sock == -1 || negotiate(client) != 0 ||
        lv_service_start(client) != 0) {
        destroy(client);
        return NULL;
    }
    return client;
}

void
lv_client_close(struct lv_client *client)
{
    lv_service_stop(client);
    destroy(client);
}

bool
lv_client_dead(struct lv_client *client)
{
    pthread_mutex_lock(&client->lock);
    bool dead = client->dead;
    pthread_mutex_unlock(&client->lock);
    return dead;
}

uint32_t
lv_client_max_xfer(const struct lv_client *client)
{
    return (uint32_t)client->limits.max_data_xfer_size;
}

uint32_t
lv_client_max_fds(const struct lv_client *client)
{
    return (uint32_t)client->limits.max_msg_fds;
}

uint64_t
lv_client_max_dma_maps(const struct lv_client *client)
{
    return client->limits.max_dma_maps;
}
