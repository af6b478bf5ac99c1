/* SPDX-License-Identifier: BSD-3-Clause */
/* The fixture of the tests of connections: a test server, and a page of memory. */
#ifndef CLIENT_FIXTURE_H
#define CLIENT_FIXTURE_H

#include "client.h"
#include "server.h"
#include "test.h"

extern struct server *server;
extern const struct lv_client_ops ops;
extern unsigned int gone_calls;
extern uint8_t guest[0x1000];

int setup(void **state);
int setup_twin(void **state);
int teardown(void **state);

/* A connection to the test server. */
struct lv_client *connected(void);

/* Waits for the callback that says that the server is gone. */
void wait_gone(void);

/* Reads size bytes of configuration space; returns how many came, or -1. */
int read_config(struct lv_client *client, uint64_t offset, void *data, size_t size);

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TWIN(name) cmocka_unit_test_setup_teardown(name, setup_twin, teardown)

#endif /* CLIENT_FIXTURE_H */
