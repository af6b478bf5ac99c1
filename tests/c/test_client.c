/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client_fixture.h"

static void
test_call(void **state)
{
    struct lv_client *client = connected();
    uint8_t data[4];

    (void)state;
    assert_int_equal(read_config(client, 3, data, 4), 4);
    assert_memory_equal(data, server->config + 3, 4);
    assert_int_equal(lv_client_max_fds(client), 8);
    assert_int_equal(lv_client_max_xfer(client), 1 << 20);
    assert_false(lv_client_dead(client));
    lv_client_close(client);
    assert_int_equal(gone_calls, 0);
}

struct reader {
    struct lv_client *client;
    unsigned int seed;
    int wrong;
};

static void *
read_much(void *arg)
{
    struct reader *r = arg;

    for (int i = 0; i < 2000; i++) {
        uint64_t offset = (uint64_t)rand_r(&r->seed) % 4000;
        uint8_t data[8];

        r->wrong += read_config(r->client, offset, data, 8) != 8 ||
                    memcmp(data, server->config + offset, 8) != 0;
    }
    return NULL;
}

/* Many threads, one connection: each gets its own reply. */
static void
test_threads(void **state)
{
    struct lv_client *client = connected();
    struct reader readers[6];
    pthread_t threads[6];

    (void)state;
    for (unsigned int i = 0; i < 6; i++) {
        readers[i] = (struct reader){ client, i, 0 };
        assert_int_equal(pthread_create(&threads[i], NULL, read_much, &readers[i]), 0);
    }
    for (unsigned int i = 0; i < 6; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].wrong, 0);
    }
    lv_client_close(client);
}

static void *
read_once(void *arg)
{
    struct reader *r = arg;
    uint8_t data[8];

    r->wrong = read_config(r->client, r->seed, data, 8) != 8 ||
               memcmp(data, server->config + r->seed, 8) != 0;
    return NULL;
}

static void
test_replies_out_of_order(void **state)
{
    struct lv_client *client = connected();
    struct reader first = { client, 100, 0 }, second = { client, 200, 0 };
    pthread_t threads[2];

    (void)state;
    server->fault = FAULT_REVERSED;
    server->fault_command = VU_REGION_READ;
    assert_int_equal(pthread_create(&threads[0], NULL, read_once, &first), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, read_once, &second), 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    assert_int_equal(first.wrong + second.wrong, 0);
    lv_client_close(client);
}

static void
test_split_reply(void **state)
{
    struct lv_client *client = connected();
    uint8_t data[8];

    (void)state;
    server->fault = FAULT_SPLIT;
    server->fault_command = VU_REGION_READ;
    assert_int_equal(read_config(client, 0, data, 8), 8);
    lv_client_close(client);
}

static void
test_errors(void **state)
{
    struct lv_client *client = connected();
    uint8_t data[8];

    (void)state;
    server->fault_command = VU_REGION_READ;
    server->fault = FAULT_ERROR;
    assert_errno(read_config(client, 0, data, 8), EPERM);
    server->fault = FAULT_ERROR_ZERO;
    assert_errno(read_config(client, 0, data, 8), EIO);
    /* An error leaves the connection as it was. */
    server->fault = FAULT_NONE;
    assert_int_equal(read_config(client, 0, data, 8), 8);
    lv_client_close(client);
}

static void
expect_death(struct lv_client *client, enum server_fault fault)
{
    uint8_t data[8];

    server->fault_command = VU_REGION_READ;
    server->fault = fault;
    assert_errno(read_config(client, 0, data, 8), ECONNRESET);
    assert_true(lv_client_dead(client));
    assert_errno(read_config(client, 0, data, 8), ECONNRESET);
    wait_gone();
    lv_client_close(client);
    assert_int_equal(gone_calls, 1);
}

static void
test_hang_up(void **state)
{
    (void)state;
    expect_death(connected(), FAULT_HANG_UP);
}

static void
test_garbage(void **state)
{
    (void)state;
    expect_death(connected(), FAULT_GARBAGE);
}

/* A server that hangs is given up after the time limit (2 s in these tests). */
static void
test_silence(void **state)
{
    struct timespec start, end;

    (void)state;
    clock_gettime(CLOCK_MONOTONIC, &start);
    expect_death(connected(), FAULT_SILENT);
    clock_gettime(CLOCK_MONOTONIC, &end);
    assert_true(end.tv_sec - start.tv_sec <= 4);
}

/* Nobody calls: the service thread notices the end by itself. */
static void
test_gone_while_idle(void **state)
{
    struct lv_client *client = connected();

    (void)state;
    server_drop(server);
    wait_gone();
    assert_true(lv_client_dead(client));
    lv_client_close(client);
}

static void
test_posted(void **state)
{
    struct lv_client *client = connected();
    struct vu_region_access request = { 0x20, 7, 4 };
    struct lv_call call = {
        .command = VU_REGION_WRITE,
        .no_reply = true,
        .request = { { &request, sizeof(request) }, { "wxyz", 4 } },
    };
    uint8_t data[4];

    (void)state;
    assert_int_equal(lv_client_call(client, &call), 0);
    /* What follows on the socket comes after it. */
    assert_int_equal(read_config(client, 0x20, data, 4), 4);
    assert_memory_equal(data, "wxyz", 4);
    assert_int_equal(server->unanswered, 1);
    lv_client_close(client);
}

static void
connect_fails(int number)
{
    errno = 0;
    assert_null(lv_client_connect(server->path, &ops, guest));
    assert_int_equal(errno, number);
    assert_int_equal(gone_calls, 0);
}

static void
test_no_connection(void **state)
{
    (void)state;
    server->major = 1;
    connect_fails(EPROTO);
    server->major = 0;
    server->version_json = "{";
    connect_fails(EPROTO);
    /* A twin socket announced, and none sent. */
    server->version_json = "{\"capabilities\":{\"twin_socket\":"
                           "{\"supported\":true,\"fd_index\":0}}}";
    connect_fails(EPROTO);
    server->version_json = NULL;
    server->fault_command = VU_VERSION;
    server->fault = FAULT_HANG_UP;
    connect_fails(ECONNRESET);
    server->fault = FAULT_ERROR;
    connect_fails(EPERM);
    server->fault = FAULT_SILENT;
    connect_fails(ECONNRESET);
    errno = 0;
    assert_null(lv_client_connect("/nowhere/cntrl", &ops, guest));
    assert_int_equal(errno, ENOENT);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_call),
        TWIN(test_call),
        TEST(test_threads),
        TWIN(test_threads),
        TEST(test_replies_out_of_order),
        TEST(test_split_reply),
        TEST(test_errors),
        TEST(test_hang_up),
        TWIN(test_hang_up),
        TEST(test_garbage),
        TEST(test_silence),
        TWIN(test_silence),
        TEST(test_gone_while_idle),
        TWIN(test_gone_while_idle),
        TEST(test_posted),
        TEST(test_no_connection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
