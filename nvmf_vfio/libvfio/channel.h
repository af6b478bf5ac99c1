/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whole vfio-user messages over a UNIX stream socket.
 *
 * A *channel* is nothing but the socket: lv_channel_send() writes one message
 * with its descriptors, lv_channel_recv() reads one. Both retry on EINTR (QEMU's
 * virtual CPUs are kicked by signals) and treat anything that would leave the
 * stream between two messages as the end of the connection, because what
 * follows could not be understood any more. The socket's own time-outs
 * (SO_RCVTIMEO, SO_SNDTIMEO) bound them: ETIMEDOUT.
 *
 * Locking is the caller's: one sender and one receiver at a time.
 */
#ifndef LV_CHANNEL_H
#define LV_CHANNEL_H

#include <stddef.h>
#include <sys/uio.h>

#include "protocol.h"

/*
 * Connects to the server's socket at path (of any length; symbolic links are
 * followed) and bounds every later wait on it to timeout_ms (0: no bound).
 * Returns the socket, or -1 with connect()'s errno.
 */
int
lv_channel_connect(const char *path, int timeout_ms);

/* Bounds every later wait on a socket. Returns 0, or -1 (ENOTSOCK, …). */
int
lv_channel_set_timeout(int sock, int timeout_ms);

/*
 * Sends header and payload. header->size is filled in. At most VU_MAX_FDS
 * descriptors; they stay the caller's. Returns 0, or -1: EINVAL (too much,
 * nothing was sent), else the connection is of no more use.
 */
int
lv_channel_send(int sock, struct vu_header *header, const struct iovec *payload,
                size_t nr_payload, const int *fds, size_t nr_fds);

/*
 * Receives one message: up to capacity bytes of payload (a longer one is a
 * protocol error), descriptors into fds[VU_MAX_FDS], which then belong to the
 * caller. Returns 0, or -1 and the connection is of no more use: ECONNRESET
 * (end), ETIMEDOUT, EPROTO, or recvmsg()'s errno; no descriptor is kept then.
 */
int
lv_channel_recv(int sock, struct vu_header *header, void *payload,
                size_t capacity, size_t *length, int *fds, size_t *nr_fds);

/* Closes what lv_channel_recv() delivered. */
void
lv_channel_close_fds(const int *fds, size_t nr_fds);

#endif /* LV_CHANNEL_H */
