/* SPDX-License-Identifier: BSD-3-Clause */
#include "channel.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_PAYLOAD_PARTS 3

void
lv_channel_close_fds(const int *fds, size_t nr_fds)
{
    for (size_t i = 0; i < nr_fds; i++) {
        close(fds[i]);
    }
}

int
lv_channel_set_timeout(int sock, int timeout_ms)
{
    struct timeval tv = {
        .tv_sec = timeout_ms / 1000,
        .tv_usec = (timeout_ms % 1000) * 1000,
    };

    if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) != 0 ||
        setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) != 0) {
        return -1;
    }
    return 0;
}

/*
 * sun_path ends at 107 bytes; a longer path is reached through its directory's
 * descriptor, which the caller closes after connect().
 */
static int
fill_address(const char *path, struct sockaddr_un *address, int *dir_fd)
{
    char copy[PATH_MAX];
    char *slash;
    int n;

    *dir_fd = -1;
    if (strlen(path) < sizeof(address->sun_path)) {
        strcpy(address->sun_path, path);
        return 0;
    }
    if (strlen(path) >= sizeof(copy)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(copy, path);
    slash = strrchr(copy, '/');
    if (slash == NULL) {
        errno = ENAMETOOLONG;
        return -1;
    }
    *slash = '\0';
    *dir_fd = open(copy, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*dir_fd == -1) {
        return -1;
    }
    n = snprintf(address->sun_path, sizeof(address->sun_path),
                 "/proc/self/fd/%d/%s", *dir_fd, slash + 1);
    if (n < 0 || (size_t)n >= sizeof(address->sun_path)) {
        close(*dir_fd);
        *dir_fd = -1;
        errno = ENAMETOOLONG;
        return -1;
    }
    return 0;
}

int
lv_channel_connect(const char *path, int timeout_ms)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int dir_fd, sock, ret, saved;

    if (fill_address(path, &address, &dir_fd) != 0) {
        return -1;
    }
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ret = sock;
    if (sock != -1) {
        ret = lv_channel_set_timeout(sock, timeout_ms);
    }
    while (ret != -1) {
        ret = connect(sock, (struct sockaddr *)&address, sizeof(address));
        if (ret == 0 || errno != EINTR) {
            break;
        }
        ret = 0;
    }
    saved = errno;
    if (dir_fd != -1) {
        close(dir_fd);
    }
    if (ret == -1) {
        if (sock != -1) {
            close(sock);
        }
        errno = saved == EAGAIN ? ETIMEDOUT : saved;
        return -1;
    }
    return sock;
}

/* Skips n bytes that were transferred. */
static void
advance(struct iovec **iov, size_t *nr, size_t n)
{
    while (*nr > 0 && n >= (*iov)->iov_len) {
        n -= (*iov)->iov_len;
        (*iov)++;
        (*nr)--;
    }
    if (n > 0 && *nr > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + n;
        (*iov)->iov_len -= n;
    }
}

static void
attach_fds(struct msghdr *msg, void *control, const int *fds, size_t nr_fds)
{
    struct cmsghdr *cmsg;

    msg->msg_control = control;
    msg->msg_controllen = CMSG_SPACE(nr_fds * sizeof(*fds));
    cmsg = CMSG_FIRSTHDR(msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(nr_fds * sizeof(*fds));
    memcpy(CMSG_DATA(cmsg), fds, nr_fds * sizeof(*fds));
}

int
lv_channel_send(int sock, struct vu_header *header, const struct iovec *payload,
                size_t nr_payload, const int *fds, size_t nr_fds)
{
    struct iovec parts[MAX_PAYLOAD_PARTS + 1];
    struct iovec *iov = parts;
    size_t nr = nr_payload + 1, total = sizeof(*header);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(VU_MAX_FDS * sizeof(int))];
    } control = { 0 };

    if (nr_payload > MAX_PAYLOAD_PARTS || nr_fds > VU_MAX_FDS) {
        errno = EINVAL;
        return -1;
    }
    parts[0] = (struct iovec){ header, sizeof(*header) };
    for (size_t i = 0; i < nr_payload; i++) {
        parts[i + 1] = payload[i];
        total += payload[i].iov_len;
    }
    if (total > sizeof(*header) + VU_MAX_PAYLOAD) {
        errno = EINVAL;
        return -1;
    }
    header->size = (uint32_t)total;

    while (nr > 0) {
        struct msghdr msg = { .msg_iov = iov, .msg_iovlen = nr };
        ssize_t n;

        if (nr_fds > 0) {
            attach_fds(&msg, &control, fds, nr_fds);
        }
        n = sendmsg(sock, &msg, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EPIPE) {
                errno = ECONNRESET;
            } else if (errno == EAGAIN) {
                errno = ETIMEDOUT;
            }
            return -1;
        }
        nr_fds = 0;             /* they went with the first byte */
        advance(&iov, &nr, (size_t)n);
    }
    return 0;
}

/* Takes the descriptors out of a received message; too many is EPROTO. */
static int
collect_fds(struct msghdr *msg, int *fds, size_t *nr_fds)
{
    struct cmsghdr *cmsg;
    bool overflow = (msg->msg_flags & MSG_CTRUNC) != 0;

    for (cmsg = CMSG_FIRSTHDR(msg); cmsg != NULL; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        size_t n;

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(fd), sizeof(fd));
            if (*nr_fds < VU_MAX_FDS) {
                fds[(*nr_fds)++] = fd;
            } else {
                close(fd);
                overflow = true;
            }
        }
    }
    if (overflow) {
        errno = EPROTO;
        return -1;
    }
    return 0;
}

static int
recv_exactly(int sock, void *buffer, size_t length, int *fds, size_t *nr_fds)
{
    size_t got = 0;

    while (got < length) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(VU_MAX_FDS * sizeof(int))];
        } control;
        struct iovec iov = { (char *)buffer + got, length - got };
        struct msghdr msg = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = &control,
            .msg_controllen = sizeof(control),
        };
        ssize_t n = recvmsg(sock, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC);

        if (n < 0) {
            if (errno == EINTR) {
                continue;
            }
            if (errno == EAGAIN) {
                errno = ETIMEDOUT;
            }
            return -1;
        }
        if (collect_fds(&msg, fds, nr_fds) != 0) {
            return -1;
        }
        if (n == 0) {
            errno = ECONNRESET;
            return -1;
        }
        got += (size_t)n;
    }
    return 0;
}

int
lv_channel_recv(int sock, struct vu_header *header, void *payload,
                size_t capacity, size_t *length, int *fds, size_t *nr_fds)
{
    int ret;

    *nr_fds = 0;
    *length = 0;
    ret = recv_exactly(sock, header, sizeof(*header), fds, nr_fds);
    if (ret == 0) {
        if (header->size < sizeof(*header) ||
            header->size - sizeof(*header) > capacity) {
            errno = EPROTO;
            ret = -1;
        } else {
            *length = header->size - sizeof(*header);
            ret = recv_exactly(sock, payload, *length, fds, nr_fds);
        }
    }
    if (ret != 0) {
        int saved = errno;

        lv_channel_close_fds(fds, *nr_fds);
        *nr_fds = 0;
        errno = saved;
    }
    return ret;
}
