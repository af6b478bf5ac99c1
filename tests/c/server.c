/* SPDX-License-Identifier: BSD-3-Clause */
#include "server_priv.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static bool
recv_all(int sock, void *data, size_t size, struct message *m)
{
    size_t got = 0;

    while (got < size) {
        char control[CMSG_SPACE(16 * sizeof(int))];
        struct iovec iov = { (char *)data + got, size - got };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1,
                              .msg_control = control,
                              .msg_controllen = sizeof(control) };
        ssize_t n = recvmsg(sock, &msg, 0);
        struct cmsghdr *c;

        if (n <= 0) {
            return false;
        }
        for (c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
            m->nr_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(m->fds, CMSG_DATA(c), m->nr_fds * sizeof(int));
        }
        got += (size_t)n;
    }
    return true;
}

static bool
recv_message(int sock, struct message *m)
{
    m->nr_fds = 0;
    if (!recv_all(sock, &m->header, sizeof(m->header), m)) {
        return false;
    }
    m->length = m->header.size - sizeof(m->header);
    return m->length <= sizeof(m->payload) &&
           recv_all(sock, m->payload, m->length, m);
}

static void
send_bytes(int sock, const void *data, size_t size, size_t step, int fd)
{
    const char *at = data;

    while (size > 0) {
        char control[CMSG_SPACE(sizeof(int))] = { 0 };
        struct iovec iov = { (void *)at, size < step ? size : step };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t n;

        if (fd != -1) {
            struct cmsghdr *c;

            msg.msg_control = control;
            msg.msg_controllen = sizeof(control);
            c = CMSG_FIRSTHDR(&msg);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(c), &fd, sizeof(fd));
        }
        n = sendmsg(sock, &msg, MSG_NOSIGNAL);
        if (n <= 0) {
            return;
        }
        fd = -1;
        at += n;
        size -= (size_t)n;
    }
}

static _Atomic(unsigned int) damage_seed;

void
server_damage(unsigned int seed)
{
    damage_seed = seed;
}

/* Changes some bytes of a reply, or its length, one time in three. */
static void
damage(char *reply, size_t *length, size_t room)
{
    static const unsigned char liked[] = { 0, 1, 0x7f, 0x80, 0xff };
    unsigned int seed = damage_seed;

    if (seed == 0) {
        return;
    }
    if (rand_r(&seed) % 3 == 0) {
        if (rand_r(&seed) % 4 == 0) {
            *length = (size_t)rand_r(&seed) % room;
        }
        for (int i = rand_r(&seed) % 4; i >= 0; i--) {
            size_t at = (size_t)rand_r(&seed) % room;

            /* Seldom the id: that is waited for. Never the length of what is sent. */
            if (at >= 8 || (at < 4 && rand_r(&seed) % 16 == 0)) {
                reply[at] = (char)(rand_r(&seed) % 2 ? rand_r(&seed)
                                                     : liked[rand_r(&seed) % 5]);
            }
        }
    }
    damage_seed = seed;
}

void
server_reply(int sock, const struct vu_header *to, int error, const void *payload,
      size_t length, int fd, bool split)
{
    size_t total = sizeof(struct vu_header) + length, room = total + 64;
    char *all = calloc(1, room);
    struct vu_header h = *to;

    h.flags = VU_TYPE_REPLY | (error != 0 ? VU_FLAG_ERROR : 0);
    h.error = (uint32_t)(error > 0 ? error : 0);
    memcpy(all, &h, sizeof(h));
    if (length > 0) {
        memcpy(all + sizeof(h), payload, length);
    }
    damage(all, &total, room);
    if (total >= sizeof(h)) {
        ((struct vu_header *)(void *)all)->size = (uint32_t)total;
        send_bytes(sock, all, total, split ? 1 : total, fd);
    }
    free(all);
}

/* A DMA command and its reply on sock; m is overwritten. */
static int
ask(int sock, struct message *m, enum vu_command command, uint64_t address,
    void *data, size_t size)
{
    struct vu_dma_access a = { address, size };
    struct vu_header h = { 77, (uint16_t)command, sizeof(h) + sizeof(a), 0, 0 };
    char *out = malloc(sizeof(h) + sizeof(a) + size);
    size_t total = sizeof(h) + sizeof(a);

    memcpy(out + sizeof(h), &a, sizeof(a));
    if (command == VU_DMA_WRITE) {
        memcpy(out + total, data, size);
        total += size;
    }
    h.size = (uint32_t)total;
    memcpy(out, &h, sizeof(h));
    send_bytes(sock, out, total, total, -1);
    free(out);
    if (!recv_message(sock, m) || m->header.id != 77) {
        return -1;
    }
    if (m->header.flags & VU_FLAG_ERROR) {
        return (int)m->header.error;
    }
    if (command == VU_DMA_READ) {
        memcpy(data, m->payload + sizeof(a), size);
    }
    return 0;
}

/* Returns false when the connection is to end. */
static bool
misbehave(struct server *s, struct message *m)
{
    static const char zeros[64];
    struct vu_header h = m->header;
    struct message *other;

    switch (s->fault) {
    case FAULT_SILENT:
        return true;
    case FAULT_HANG_UP:
        return false;
    case FAULT_GARBAGE:
        h.flags = VU_TYPE_REPLY;
        h.size = 3;
        send_bytes(s->connection, &h, sizeof(h), sizeof(h), -1);
        return true;
    case FAULT_SPLIT:
        server_reply(s->connection, &h, 0, m->payload, sizeof(struct vu_region_access) + 8,
              -1, true);
        return true;
    case FAULT_ERROR:
        server_reply(s->connection, &h, EPERM, NULL, 0, -1, false);
        return true;
    case FAULT_ERROR_ZERO:
        server_reply(s->connection, &h, -1, NULL, 0, -1, false);
        return true;
    case FAULT_SHORT:
        server_reply(s->connection, &h, 0, zeros, 4, -1, false);
        return true;
    case FAULT_BAD_CAPS:
        server_answer_region_info(s, m, true);
        return true;
    case FAULT_REVERSED:
        other = calloc(1, sizeof(*other));
        if (recv_message(s->connection, other)) {
            server_answer(s, other);
        }
        free(other);
        server_answer(s, m);
        return true;
    case FAULT_ASKS_ONLY:
        other = calloc(1, sizeof(*other));
        while (ask(s->connection, other, VU_DMA_READ, 0, s->asked, 1) == 0) {
        }
        free(other);
        return false;
    case FAULT_ASKS_FIRST:
        other = calloc(1, sizeof(*other));
        (void)ask(s->connection, other, VU_DMA_READ, s->ask_address, s->asked,
                  sizeof(s->asked));
        free(other);
        server_answer(s, m);
        return true;
    default:
        return true;
    }
}

static void
serve(struct server *s, struct message *m)
{
    while (recv_message(s->connection, m)) {
        bool faulty;

        pthread_mutex_lock(&s->lock);
        if (m->header.command < 32) {
            s->seen[m->header.command]++;
        }
        s->unanswered += (m->header.flags & VU_FLAG_NO_REPLY) != 0;
        faulty = s->fault != FAULT_NONE && m->header.command == s->fault_command;
        if (faulty && s->fault_after > 0) {
            s->fault_after--;
            faulty = false;
        }
        pthread_mutex_unlock(&s->lock);
        if (!faulty) {
            server_answer(s, m);
        } else if (!misbehave(s, m)) {
            break;
        }
        for (size_t i = 0; i < m->nr_fds; i++) {
            close(m->fds[i]);
        }
        pthread_mutex_lock(&s->lock);
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
    }
}

static void
forget(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->connection != -1) {
        close(s->connection);
        s->connection = -1;
    }
    if (s->commands != -1) {
        close(s->commands);
        s->commands = -1;
    }
    for (unsigned int i = 0; i < s->nr_maps; i++) {
        if (s->maps[i].fd != -1) {
            close(s->maps[i].fd);
        }
    }
    s->nr_maps = 0;
    for (unsigned int i = 0; i < SERVER_MSIX; i++) {
        if (s->vectors[i] != -1) {
            close(s->vectors[i]);
            s->vectors[i] = -1;
        }
        if (s->msi_vectors[i] != -1) {
            close(s->msi_vectors[i]);
            s->msi_vectors[i] = -1;
        }
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void *
run(void *arg)
{
    struct server *s = arg;
    struct message *m = malloc(sizeof(*m));
    int fd;

    while ((fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC)) != -1) {
        pthread_mutex_lock(&s->lock);
        s->connection = fd;
        s->connections++;
        pthread_mutex_unlock(&s->lock);
        serve(s, m);
        forget(s);
    }
    free(m);
    return NULL;
}

struct server *
server_start(void)
{
    static unsigned int serial;
    struct server *s = calloc(1, sizeof(*s));
    struct sockaddr_un a = { .sun_family = AF_UNIX };

    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    (void)snprintf(s->path, sizeof(s->path), "/tmp/libvfio-test-%d-%u", getpid(),
                   serial++);
    strcpy(a.sun_path, s->path);
    s->connection = s->commands = -1;
    for (unsigned int i = 0; i < SERVER_MSIX; i++) {
        s->vectors[i] = s->msi_vectors[i] = -1;
    }
    for (size_t i = 0; i < sizeof(s->config); i++) {
        s->config[i] = (uint8_t)(i * 7);
    }
    s->config[0x10] = 0x04;     /* BAR0: memory */
    s->config[0x14] = 0x01;     /* BAR1: I/O */
    s->bar0_fd = memfd_create("bar0", MFD_CLOEXEC);
    assert(ftruncate(s->bar0_fd, 0x1000 + SERVER_BAR0_SIZE) == 0);
    s->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert(bind(s->listener, (struct sockaddr *)&a, sizeof(a)) == 0);
    assert(listen(s->listener, 4) == 0);
    assert(pthread_create(&s->thread, NULL, run, s) == 0);
    return s;
}

void
server_drop(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->connection != -1) {
        shutdown(s->connection, SHUT_RDWR);
    }
    pthread_mutex_unlock(&s->lock);
}

void
server_stop(struct server *s)
{
    shutdown(s->listener, SHUT_RDWR);
    server_drop(s);
    pthread_join(s->thread, NULL);
    close(s->listener);
    close(s->bar0_fd);
    unlink(s->path);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

bool
server_wait_seen(struct server *s, enum vu_command command, unsigned int n)
{
    struct timespec until;
    int ret = 0;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 5;
    pthread_mutex_lock(&s->lock);
    while (s->seen[command] < n && ret == 0) {
        ret = pthread_cond_timedwait(&s->changed, &s->lock, &until);
    }
    pthread_mutex_unlock(&s->lock);
    return ret == 0;
}

int
server_dma(struct server *s, enum vu_command command, uint64_t address, void *data,
           size_t size)
{
    struct message *m = calloc(1, sizeof(*m));
    int ret = ask(s->commands, m, command, address, data, size);

    free(m);
    return ret;
}
