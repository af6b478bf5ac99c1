/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The fixture of the tests that call the kernel's objects as the traps call them:
 * a test server, memory to map, and the descriptors of one group of number 5.
 */
#ifndef VFIO_FIXTURE_H
#define VFIO_FIXTURE_H

#include "server.h"
#include "test.h"
#include "vfio.h"

#define RAM_SIZE 0x400000u

extern struct server *server;
extern int ram_fd, group, container, device;
extern char *ram;

int setup(void **state);
int setup_twin(void **state);
int teardown(void **state);

/* ioctl() and close() on one of libvfio's descriptors. */
int ioctl_on(int fd, unsigned long request, void *arg);
void close_fd(int fd);

/* Opens group and container, the device as well. */
void open_container(void);
void open_device(void);
struct lv_device *the_device(void);

/* Maps memory for reading and writing. */
int map(uint64_t iova, uint64_t size, const void *vaddr);

/* Returns how much was unmapped, or -1. */
int64_t unmap(uint64_t iova, uint64_t size);

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TWIN(name) cmocka_unit_test_setup_teardown(name, setup_twin, teardown)

#endif /* VFIO_FIXTURE_H */
