/* SPDX-License-Identifier: BSD-3-Clause */
#include "version.h"

#include <errno.h>
#include <string.h>

#include "protocol.h"

#define MAX_DEPTH 8
#define MAX_KEY   32

struct parser {
    const char *at;
    const char *end;
    int depth;
    char key[MAX_DEPTH + 1][MAX_KEY];   /* the key that leads to each level */
    struct lv_limits *limits;
    bool twin_supported;
    bool twin_fd_seen;
};

static int parse_value(struct parser *p);

static void
skip_space(struct parser *p)
{
    while (p->at < p->end && strchr(" \t\r\n", *p->at) != NULL && *p->at) {
        p->at++;
    }
}

static bool
take(struct parser *p, char c)
{
    skip_space(p);
    if (p->at < p->end && *p->at == c) {
        p->at++;
        return true;
    }
    return false;
}

static bool
take_word(struct parser *p, const char *word)
{
    size_t n = strlen(word);

    if ((size_t)(p->end - p->at) >= n && memcmp(p->at, word, n) == 0) {
        p->at += n;
        return true;
    }
    return false;
}

/* A string, cut to size - 1 bytes; escapes are kept as they are. */
static int
parse_string(struct parser *p, char *out, size_t size)
{
    size_t n = 0;

    if (!take(p, '"')) {
        return -1;
    }
    while (p->at < p->end && *p->at != '"') {
        if (*p->at == '\\' && p->end - p->at > 1) {
            p->at++;
        }
        if (n + 1 < size) {
            out[n++] = *p->at;
        }
        p->at++;
    }
    if (size > 0) {
        out[n] = '\0';
    }
    return take(p, '"') ? 0 : -1;
}

/* Is the value at hand capabilities.<a>, or capabilities.<a>.<b>? */
static bool
path_is(const struct parser *p, const char *a, const char *b)
{
    int depth = b == NULL ? 2 : 3;

    return p->depth == depth && strcmp(p->key[1], "capabilities") == 0 &&
           strcmp(p->key[2], a) == 0 && (b == NULL || strcmp(p->key[3], b) == 0);
}

static void
store_number(struct parser *p, uint64_t value)
{
    if (path_is(p, "max_msg_fds", NULL)) {
        p->limits->max_msg_fds = value;
    } else if (path_is(p, "max_data_xfer_size", NULL)) {
        p->limits->max_data_xfer_size = value;
    } else if (path_is(p, "max_dma_maps", NULL)) {
        p->limits->max_dma_maps = value;
    } else if (path_is(p, "twin_socket", "fd_index")) {
        p->limits->twin_fd_index = value;
        p->twin_fd_seen = true;
    }
}

/* Integers are used; a sign, a fraction or an exponent is only skipped. */
static int
parse_number(struct parser *p)
{
    const char *start = p->at;
    uint64_t value = 0;
    bool plain = true;

    while (p->at < p->end && *p->at && strchr("+-.eE0123456789", *p->at)) {
        if (*p->at < '0' || *p->at > '9' || value > (UINT64_MAX - 9) / 10) {
            plain = false;
        } else {
            value = value * 10 + (uint64_t)(*p->at - '0');
        }
        p->at++;
    }
    if (p->at == start) {
        return -1;
    }
    if (plain) {
        store_number(p, value);
    }
    return 0;
}

static int
parse_members(struct parser *p, bool object)
{
    char closing = object ? '}' : ']';

    if (++p->depth > MAX_DEPTH) {
        return -1;
    }
    p->key[p->depth][0] = '\0';
    if (take(p, closing)) {
        p->depth--;
        return 0;
    }
    do {
        if (object && (parse_string(p, p->key[p->depth], MAX_KEY) != 0 ||
                       !take(p, ':'))) {
            return -1;
        }
        if (parse_value(p) != 0) {
            return -1;
        }
    } while (take(p, ','));
    p->depth--;
    return take(p, closing) ? 0 : -1;
}

static int
parse_value(struct parser *p)
{
    skip_space(p);
    if (p->at >= p->end) {
        return -1;
    }
    if (*p->at == '{' || *p->at == '[') {
        return parse_members(p, *p->at++ == '{');
    }
    if (*p->at == '"') {
        return parse_string(p, NULL, 0);
    }
    if (take_word(p, "true")) {
        if (path_is(p, "twin_socket", "supported")) {
            p->twin_supported = true;
        }
        return 0;
    }
    if (take_word(p, "false") || take_word(p, "null")) {
        return 0;
    }
    return parse_number(p);
}

const char *
lv_version_request(void)
{
    return "{\"capabilities\":{"
           "\"max_msg_fds\":8,"
           "\"max_data_xfer_size\":1048576,"
           "\"max_dma_maps\":65535,"
           "\"pgsizes\":4096,"
           "\"twin_socket\":{\"supported\":true}}}";
}

int
lv_version_parse(const char *json, size_t length, struct lv_limits *limits)
{
    struct parser p = {
        .at = json,
        .end = json + strnlen(json, length),
        .limits = limits,
    };

    *limits = (struct lv_limits){
        .max_msg_fds = VU_DEFAULT_MAX_FDS,
        .max_data_xfer_size = VU_DEFAULT_MAX_XFER,
        .max_dma_maps = 65535,
    };
    skip_space(&p);
    if (p.at == p.end) {
        return 0;
    }
    if (parse_value(&p) != 0) {
        errno = EPROTO;
        return -1;
    }
    skip_space(&p);
    if (p.at != p.end || limits->max_data_xfer_size == 0 ||
        (p.twin_supported && !p.twin_fd_seen)) {
        errno = EPROTO;
        return -1;
    }
    limits->twin_socket = p.twin_supported;
    if (limits->max_msg_fds > VU_MAX_FDS) {
        limits->max_msg_fds = VU_MAX_FDS;
    }
    if (limits->max_data_xfer_size > VU_DEFAULT_MAX_XFER) {
        limits->max_data_xfer_size = VU_DEFAULT_MAX_XFER;
    }
    return 0;
}
