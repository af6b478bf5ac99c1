/* SPDX-License-Identifier: BSD-3-Clause */
#include "client_fixture.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

struct server *server;
unsigned int gone_calls;
static pthread_mutex_t gone_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gone_changed = PTHREAD_COND_INITIALIZER;
uint8_t guest[0x1000];

static bool
inside(const void *opaque, uint64_t address, size_t size)
{
    assert_ptr_equal(opaque, guest);
    errno = EFAULT;
    return address < sizeof(guest) && size <= sizeof(guest) - address;
}

static int
dma_read(void *opaque, uint64_t address, void *data, size_t size)
{
    if (!inside(opaque, address, size)) {
        return -1;
    }
    memcpy(data, guest + address, size);
    return 0;
}

static int
dma_write(void *opaque, uint64_t address, const void *data, size_t size)
{
    if (!inside(opaque, address, size)) {
        return -1;
    }
    memcpy(guest + address, data, size);
    return 0;
}

static void
gone(void *opaque)
{
    assert_ptr_equal(opaque, guest);
    pthread_mutex_lock(&gone_lock);
    gone_calls++;
    pthread_cond_broadcast(&gone_changed);
    pthread_mutex_unlock(&gone_lock);
}

const struct lv_client_ops ops = { dma_read, dma_write, gone };

int
setup(void **state)
{
    (void)state;
    gone_calls = 0;
    server = server_start();
    return 0;
}

int
setup_twin(void **state)
{
    (void)setup(state);
    server->twin = true;
    return 0;
}

int
teardown(void **state)
{
    (void)state;
    server_stop(server);
    return 0;
}

struct lv_client *
connected(void)
{
    struct lv_client *client = lv_client_connect(server->path, &ops, guest);

    assert_non_null(client);
    return client;
}

void
wait_gone(void)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 5;
    pthread_mutex_lock(&gone_lock);
    while (gone_calls == 0) {
        assert_int_equal(pthread_cond_timedwait(&gone_changed, &gone_lock, &until), 0);
    }
    pthread_mutex_unlock(&gone_lock);
}

int
read_config(struct lv_client *client, uint64_t offset, void *data, size_t size)
{
    struct vu_region_access request = { offset, 7, (uint32_t)size }, reply;
    struct lv_call call = {
        .command = VU_REGION_READ,
        .request = { { &request, sizeof(request) } },
        .reply = { { &reply, sizeof(reply) }, { data, size } },
    };

    if (lv_client_call(client, &call) != 0) {
        return -1;
    }
    return (int)(call.reply_length - sizeof(reply));
}
