/* SPDX-License-Identifier: BSD-3-Clause */
/* The server's own commands, on the twin socket and between replies. */
#include <errno.h>
#include <string.h>
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

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_command_between),
        TEST(test_commands_only),
        TWIN(test_twin_socket),
        TWIN(test_twin_socket_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
