/* SPDX-License-Identifier: BSD-3-Clause */
/* libvfio.so as it is used: preloaded into a program that knows the kernel's VFIO. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server.h"
#include "test.h"

static const char *library;
static char client[PATH_MAX], root[] = "/tmp/libvfio-preload-XXXXXX", device[PATH_MAX];
static struct server *server;

static int
setup(void **state)
{
    char path[PATH_MAX + 16];

    (void)state;
    server = server_start();
    strcpy(root, "/tmp/libvfio-preload-XXXXXX");
    if (mkdtemp(root) == NULL) {
        return -1;
    }
    (void)snprintf(device, sizeof(device), "%s/17", root);
    if (mkdir(device, 0700) != 0) {
        return -1;
    }
    (void)snprintf(path, sizeof(path), "%s/cntrl", device);
    if (symlink(server->path, path) != 0) {
        return -1;
    }
    (void)snprintf(path, sizeof(path), "%s/iommu_group", device);
    return symlink("groups/17", path);
}

static int
teardown(void **state)
{
    char command[96];

    (void)state;
    server_stop(server);
    (void)snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command);
}

/* Runs the client and compares its whole output. */
static void
expect_output(const char *environment, const char *arguments, const char *expected)
{
    char command[5 * PATH_MAX], line[256] = "";
    FILE *out;

    (void)snprintf(command, sizeof(command), "%s LD_PRELOAD=%s %s %s", environment,
                   library, client, arguments);
    out = popen(command, "r");
    assert_non_null(out);
    (void)!fgets(line, sizeof(line), out);
    assert_string_equal(line, expected);
    assert_int_equal(pclose(out) == 0, strncmp(expected, "regions", 7) == 0);
}

static const char *
good(void)
{
    static char line[64];
    uint32_t id;

    memcpy(&id, server->config, 4);
    (void)snprintf(line, sizeof(line), "regions=9 irqs=5 id=%08x\n", id);
    return line;
}

static void
test_by_directory(void **state)
{
    (void)state;
    expect_output("", device, good());
    assert_memory_equal(server->config + 0x40, server->config, 4);
    assert_true(server_wait_seen(server, VU_DMA_MAP, 1));
    assert_int_equal(server->connections, 1);
}

/* The older form, which needs LIBVFIO_DIR. */
static void
test_by_group_path(void **state)
{
    char environment[64];

    (void)state;
    (void)snprintf(environment, sizeof(environment), "LIBVFIO_DIR=%s", root);
    expect_output(environment, "/dev/vfio/17", good());
}

static void
test_children_close_everything(void **state)
{
    char arguments[PATH_MAX + 8];

    (void)state;
    (void)snprintf(arguments, sizeof(arguments), "-f %s", device);
    expect_output("", arguments, good());
}

static void
test_kvm(void **state)
{
    const char *alone = library;
    char arguments[PATH_MAX + 8], both[2 * PATH_MAX + 16];

    (void)state;
    (void)snprintf(arguments, sizeof(arguments), "-k %s", device);
    (void)snprintf(both, sizeof(both), "%s:%.*s/fake_kvm.so", alone,
                   (int)(strrchr(client, '/') - client), client);
    library = both;
    expect_output("", arguments, good());
    library = alone;
}

static void
test_twin(void **state)
{
    (void)state;
    server->twin = true;
    expect_output("", device, good());
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_by_directory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_by_group_path, setup, teardown),
        cmocka_unit_test_setup_teardown(test_children_close_everything, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kvm, setup, teardown),
        cmocka_unit_test_setup_teardown(test_twin, setup, teardown),
    };
    static char absolute[PATH_MAX];

    if (argc != 2 || realpath(argv[1], absolute) == NULL) {
        (void)fprintf(stderr, "usage: %s LIBRARY\n", argv[0]);
        return 2;
    }
    library = absolute;
    (void)snprintf(client, sizeof(client), "%.*s/preload_client",
                   (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
