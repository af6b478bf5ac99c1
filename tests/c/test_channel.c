/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "channel.h"
#include "test.h"

static int pair[2];

static int
setup(void **state)
{
    (void)state;
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
}

static int
teardown(void **state)
{
    (void)state;
    close(pair[0]);
    close(pair[1]);
    return 0;
}

static void
test_there_and_back(void **state)
{
    struct vu_header out = { .id = 7, .command = 9, .flags = 0 }, in;
    struct iovec parts[2] = { { "abc", 3 }, { "defg", 4 } };
    char payload[16];
    int fds[VU_MAX_FDS], null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int sent[2] = { null, null };
    size_t length, nr;

    (void)state;
    assert_int_equal(lv_channel_send(pair[0], &out, parts, 2, sent, 2), 0);
    assert_int_equal(lv_channel_recv(pair[1], &in, payload, sizeof(payload),
                                     &length, fds, &nr), 0);
    assert_int_equal(in.id, 7);
    assert_int_equal(in.size, sizeof(in) + 7);
    assert_int_equal(length, 7);
    assert_memory_equal(payload, "abcdefg", 7);
    assert_int_equal(nr, 2);
    assert_true((fcntl(fds[0], F_GETFD) & FD_CLOEXEC) != 0);
    lv_channel_close_fds(fds, nr);
    close(null);
}

/* Descriptors of one message do not leak into the next. */
static void
test_two_in_a_row(void **state)
{
    struct vu_header first = { .id = 1 }, second = { .id = 2 }, in;
    char payload[16];
    int fds[VU_MAX_FDS];
    size_t length, nr;

    (void)state;
    assert_int_equal(lv_channel_send(pair[0], &first, NULL, 0, &pair[0], 1), 0);
    assert_int_equal(lv_channel_send(pair[0], &second, NULL, 0, NULL, 0), 0);
    assert_int_equal(lv_channel_recv(pair[1], &in, payload, 16, &length, fds, &nr), 0);
    assert_int_equal(in.id, 1);
    assert_int_equal(nr, 1);
    lv_channel_close_fds(fds, nr);
    assert_int_equal(lv_channel_recv(pair[1], &in, payload, 16, &length, fds, &nr), 0);
    assert_int_equal(in.id, 2);
    assert_int_equal(nr, 0);
}

struct sending {
    int sock;
    char *data;
    size_t size;
};

static void *
send_big(void *arg)
{
    struct sending *s = arg;
    struct vu_header h = { .id = 3 };
    struct iovec part = { s->data, s->size };

    assert_int_equal(lv_channel_send(s->sock, &h, &part, 1, NULL, 0), 0);
    return NULL;
}

/* More than the socket's buffers hold: partial sends and receives. */
static void
test_a_megabyte(void **state)
{
    struct sending s = { pair[0], malloc(1 << 20), 1 << 20 };
    char *payload = malloc(VU_MAX_PAYLOAD);
    struct vu_header in;
    pthread_t thread;
    int fds[VU_MAX_FDS];
    size_t length, nr;

    (void)state;
    for (size_t i = 0; i < s.size; i++) {
        s.data[i] = (char)(i * 31 >> 3);
    }
    assert_int_equal(pthread_create(&thread, NULL, send_big, &s), 0);
    assert_int_equal(lv_channel_recv(pair[1], &in, payload, VU_MAX_PAYLOAD, &length,
                                     fds, &nr), 0);
    pthread_join(thread, NULL);
    assert_int_equal(length, s.size);
    assert_memory_equal(payload, s.data, s.size);
    free(s.data);
    free(payload);
}

static void
test_refused_before_sending(void **state)
{
    struct vu_header h = { 0 };
    int fds[VU_MAX_FDS + 1] = { 0 };
    static char big[VU_MAX_PAYLOAD + 1];
    struct iovec part = { big, sizeof(big) };

    (void)state;
    assert_errno(lv_channel_send(pair[0], &h, NULL, 0, fds, VU_MAX_FDS + 1), EINVAL);
    assert_errno(lv_channel_send(pair[0], &h, &part, 1, NULL, 0), EINVAL);
    assert_int_equal(recv(pair[1], big, 1, MSG_DONTWAIT), -1);
}

static void
receive_fails(const void *bytes, size_t size, int number)
{
    struct vu_header in;
    char payload[8];
    int fds[VU_MAX_FDS];
    size_t length, nr;

    assert_int_equal(write(pair[0], bytes, size), (ssize_t)size);
    shutdown(pair[0], SHUT_WR);
    assert_errno(lv_channel_recv(pair[1], &in, payload, sizeof(payload), &length,
                                 fds, &nr), number);
    assert_int_equal(nr, 0);
}

static void
test_too_small(void **state)
{
    struct vu_header h = { .size = 15 };

    (void)state;
    receive_fails(&h, sizeof(h), EPROTO);
}

static void
test_too_big(void **state)
{
    struct vu_header h = { .size = sizeof(h) + 9 };

    (void)state;
    receive_fails(&h, sizeof(h), EPROTO);
}

static void
test_end_in_header(void **state)
{
    (void)state;
    receive_fails("1234567", 7, ECONNRESET);
}

static void
test_end_in_payload(void **state)
{
    struct {
        struct vu_header h;
        char some[3];
    } m = { .h = { .size = sizeof(struct vu_header) + 8 } };

    (void)state;
    receive_fails(&m, sizeof(m.h) + 3, ECONNRESET);
}

static void
test_peer_gone(void **state)
{
    struct vu_header h = { 0 };

    (void)state;
    close(pair[1]);
    assert_errno(lv_channel_send(pair[0], &h, NULL, 0, NULL, 0), ECONNRESET);
    pair[1] = dup(pair[0]);
}

/* A socket path beyond sun_path's 107 bytes, and one through a link. */
static void
test_long_path(void **state)
{
    char root[] = "/tmp/libvfio-long-XXXXXX", dir[256], path[300], link[64];
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), sock;

    (void)state;
    assert_non_null(mkdtemp(root));
    (void)snprintf(dir, sizeof(dir), "%s/%0150d", root, 0);
    assert_int_equal(mkdir(dir, 0700), 0);
    (void)snprintf(path, sizeof(path), "%s/cntrl", dir);
    (void)snprintf(link, sizeof(link), "%s/link", root);
    (void)snprintf(a.sun_path, sizeof(a.sun_path), "%s/s", root);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(listener, 4), 0);
    assert_int_equal(rename(a.sun_path, path), 0);
    assert_int_equal(symlink(path, link), 0);

    sock = lv_channel_connect(path, 1000);
    assert_true(sock >= 0);
    close(sock);
    sock = lv_channel_connect(link, 1000);
    assert_true(sock >= 0);
    close(sock);

    close(listener);
    assert_errno(lv_channel_connect(path, 1000), ECONNREFUSED);
    unlink(path);
    assert_errno(lv_channel_connect(path, 1000), ENOENT);
    unlink(link);
    rmdir(dir);
    rmdir(root);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_there_and_back), TEST(test_two_in_a_row), TEST(test_a_megabyte),
        TEST(test_refused_before_sending), TEST(test_too_small), TEST(test_too_big),
        TEST(test_end_in_header), TEST(test_end_in_payload), TEST(test_peer_gone),
        cmocka_unit_test(test_long_path),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
