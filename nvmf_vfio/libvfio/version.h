/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the two sides tell each other in the VERSION message: a JSON object whose
 * "capabilities" hold limits and options. lv_version_request() is what we say;
 * lv_version_parse() reads a server's answer into *limits*, starting from the
 * specification's defaults. Unknown keys are skipped, as the specification asks.
 *
 * Only as much JSON as that needs: objects, arrays, strings, integers, literals.
 */
#ifndef LV_VERSION_H
#define LV_VERSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lv_limits {
    uint64_t max_msg_fds;       /* descriptors that the server takes at once */
    uint64_t max_data_xfer_size;
    uint64_t max_dma_maps;
    bool twin_socket;           /* its commands come on a socket of their own */
    uint64_t twin_fd_index;     /* which of the reply's descriptors that is */
};

/* The JSON text of our request, a constant. */
const char *
lv_version_request(void);

/*
 * Parses length bytes of JSON (a NUL inside ends them). Empty text is valid.
 * Returns 0, or -1 with EPROTO for what is not JSON or has senseless limits.
 */
int
lv_version_parse(const char *json, size_t length, struct lv_limits *limits);

#endif /* LV_VERSION_H */
