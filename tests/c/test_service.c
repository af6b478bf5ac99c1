/* SPDX-License-Identifier: BSD-3-Clause */
/* The server's own commands, on the twin socket and between replies. */
#include <errno.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "client_fixture.h"

/* The server reads guest memory on the main socket before it answers. */
static void
test_command_between(void **state)
{
    struct lv_client *client = connected();
    uint8_t data[8];

    (void)state;
    memset(guest, 0xa5, sizeof(guest));
    server->fault = FAULT_ASKS_FIRST;
    server->fault_command = VU_REGION_READ;
    server->ask_address = 0x10;
    assert_int_equal(read_config(client, 0, data, 8), 8);
    assert_int_equal(server->asked[0], 0xa5);
    lv_client_close(client);
}

/* A server that talks without ever answering is given up all the same. */
static void
test_commands_only(void **state)
{
    struct lv_client *client = connected();
    uint8_t data[8];

    (void)state;
    server->fault = FAULT_ASKS_ONLY;
    server->fault_command = VU_REGION_READ;
    assert_errno(read_config(client, 0, data, 8), ECONNRESET);
    assert_true(lv_client_dead(client));
    lv_client_close(client);
}

static void
test_twin_socket(void **state)
{
    struct lv_client *client = connected();
    char data[8] = "written", back[8] = { 0 };
    uint8_t config[8];

    (void)state;
    assert_int_equal(server_dma(server, VU_DMA_WRITE, 0x100, data, 8), 0);
    assert_memory_equal(guest + 0x100, "written", 8);
    assert_int_equal(server_dma(server, VU_DMA_READ, 0x100, back, 8), 0);
    assert_string_equal(back, "written");
    assert_int_equal(server_dma(server, VU_DMA_READ, 0xfff, back, 8), EFAULT);
    assert_int_equal(server_dma(server, VU_DMA_READ, 0, back, 2 << 20), E2BIG);
    assert_int_equal(server_dma(server, VU_DEVICE_RESET, 0, back, 8), ENOTSUP);
    assert_int_equal(read_config(client, 0, config, 8), 8);
    lv_client_close(client);
}

/* The end of the twin socket is not the end of the connection. */
static void
test_twin_socket_ends(void **state)
{
    struct lv_client *client = connected();
    uint8_t config[8];

    (void)state;
    pthread_mutex_lock(&server->lock);
    close(server->commands);
    server->commands = -1;
    pthread_mutex_unlock(&server->lock);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(read_config(client, 0, config, 8), 8);
    }
    server_drop(server);
    wait_gone();
    lv_client_close(client);
}

static void
close_in_time(struct lv_client *client)
{
    struct timespec before, after;

    clock_gettime(CLOCK_MONOTONIC, &before);
    lv_client_close(client);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_true(after.tv_sec - before.tv_sec < 4);
}

/* Waits until the socket's other end has been read empty. */
static void
wait_taken(int sock)
{
    int left = 1;

    for (int i = 0; i < 5000 && left > 0; i++) {
        assert_int_equal(ioctl(sock, SIOCOUTQ, &left), 0);
        usleep(1000);
    }
    assert_int_equal(left, 0);
}

/* The service thread waits for the other half, and must be woken from that. */
static void
half_a_command(int sock)
{
    const struct vu_header header = { 1, VU_DMA_READ, sizeof(header) + 16, 0, 0 };

    assert_int_equal(write(sock, &header, 8), 8);
    wait_taken(sock);
}

static void
test_half_a_command(void **state)
{
    struct lv_client *client = connected();

    (void)state;
    half_a_command(server->twin ? server->commands : server->connection);
    close_in_time(client);
    assert_int_equal(gone_calls, 0);
}

/* The server dies, but its twin socket lives on in another process. */
static void
test_half_a_command_outlives_the_server(void **state)
{
    struct lv_client *client = connected();
    int copy = dup(server->commands);
    uint8_t config[8];

    (void)state;
    half_a_command(copy);
    server_drop(server);
    assert_errno(read_config(client, 0, config, 8), ECONNRESET);
    wait_gone();
    close_in_time(client);
    close(copy);
}

/* The server asks for memory, and reads none of it: the replies fill the socket. */
static void
test_replies_unread(void **state)
{
    struct {
        struct vu_header header;
        struct vu_dma_access access;
    } command = { { 1, VU_DMA_READ, sizeof(command), 0, 0 }, { 0, sizeof(guest) } };
    struct lv_client *client = connected();
    int left = 0, before;

    (void)state;
    for (int i = 0; i < 400; i++) {
        if (send(server->commands, &command, sizeof(command), MSG_DONTWAIT) < 0) {
            break;
        }
    }
    do {                        /* until no more is read: the thread is stuck */
        before = left;
        usleep(100000);
        assert_int_equal(ioctl(server->commands, SIOCOUTQ, &left), 0);
    } while (left != before);
    assert_true(left > 0);
    close_in_time(client);
}

/* What is no socket is no twin socket. */
static void
test_twin_is_no_socket(void **state)
{
    (void)state;
    server->twin_is_file = true;
    assert_errno(lv_client_connect(server->path, &ops, guest) == NULL ? -1 : 0, EPROTO);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_command_between),
        TEST(test_commands_only),
        TWIN(test_twin_socket),
        TWIN(test_twin_socket_ends),
        TEST(test_half_a_command),
        TWIN(test_half_a_command),
        TWIN(test_half_a_command_outlives_the_server),
        TWIN(test_replies_unread),
        TWIN(test_twin_is_no_socket),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
