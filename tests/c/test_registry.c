/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "registry.h"
#include "test.h"

static char root[] = "/tmp/libvfio-registry-XXXXXX";

static void
path_in(char *out, size_t size, const char *name)
{
    assert_true((size_t)snprintf(out, size, "%s/%s", root, name) < size);
}

static void
make_device(const char *name)
{
    char path[PATH_MAX], inner[64];

    path_in(path, sizeof(path), name);
    assert_int_equal(mkdir(path, 0700), 0);
    (void)snprintf(inner, sizeof(inner), "%s/cntrl", name);
    path_in(path, sizeof(path), inner);
    assert_int_equal(symlink("/nowhere/cntrl", path), 0);
}

static int
setup(void **state)
{
    (void)state;
    return mkdtemp(root) == NULL ? -1 : 0;
}

static int
teardown(void **state)
{
    char command[96];

    (void)state;
    (void)snprintf(command, sizeof(command), "rm -r %s", root);
    return system(command);
}

static void
test_paths(void **state)
{
    (void)state;
    assert_int_equal(lv_registry_group("/dev/vfio/7"), 7);
    assert_int_equal(lv_registry_group("/dev/vfio/0"), 0);
    assert_int_equal(lv_registry_group("/dev/vfio/vfio"), -1);
    assert_int_equal(lv_registry_group("/dev/vfio/"), -1);
    assert_int_equal(lv_registry_group("/dev/vfio/7x"), -1);
    assert_int_equal(lv_registry_group("/dev/vfio/-7"), -1);
    assert_int_equal(lv_registry_group("/dev/vfio/ 7"), -1);
    assert_int_equal(lv_registry_group("/dev/vfio/2147483647"), 2147483647);
    assert_int_equal(lv_registry_group("/dev/vfio/2147483648"), -1);
    assert_int_equal(lv_registry_group("/dev/vfio/99999999999999999999"), -1);
    assert_int_equal(lv_registry_group("/dev/null"), -1);
}

static void
learn(const char *link, const char *target)
{
    char path[PATH_MAX];

    path_in(path, sizeof(path), link);
    lv_registry_learn(path, target, strlen(target));
}

static void
test_learnt(void **state)
{
    char socket[PATH_MAX], expected[PATH_MAX];

    (void)state;
    unsetenv("LIBVFIO_DIR");
    make_device("a");
    make_device("b");
    assert_errno(lv_registry_socket(21, socket, sizeof(socket)), ENOENT);
    learn("a/iommu_group", "../x/21");
    assert_int_equal(lv_registry_socket(21, socket, sizeof(socket)), 0);
    path_in(expected, sizeof(expected), "a/cntrl");
    assert_string_equal(socket, expected);
    assert_errno(lv_registry_socket(21, socket, 5), ENAMETOOLONG);
    /* The latest counts: a directory may be made anew elsewhere. */
    learn("b/iommu_group", "21");
    assert_int_equal(lv_registry_socket(21, socket, sizeof(socket)), 0);
    path_in(expected, sizeof(expected), "b/cntrl");
    assert_string_equal(socket, expected);
    /* So does one of the host's own with that number, which is not ours. */
    learn("host/iommu_group", "21");
    assert_errno(lv_registry_socket(21, socket, sizeof(socket)), ENOENT);
    learn("host/iommu_group", "21");
    learn("b/iommu_group", "21");
    assert_int_equal(lv_registry_socket(21, socket, sizeof(socket)), 0);
}

/* A real device's directory, other links, other targets: nothing is learnt. */
static void
test_not_learnt(void **state)
{
    char socket[PATH_MAX], path[PATH_MAX];

    (void)state;
    path_in(path, sizeof(path), "real");
    assert_int_equal(mkdir(path, 0700), 0);
    learn("real/iommu_group", "../../kernel/iommu_groups/31");
    learn("a/iommu_groupx", "31");
    learn("a/driver", "31");
    learn("a/iommu_group", "31x");
    learn("a/iommu_group", "");
    learn("a/iommu_group", "31/");
    lv_registry_learn("/iommu_group", "31", 2);
    assert_errno(lv_registry_socket(31, socket, sizeof(socket)), ENOENT);
}

static void
test_directory_by_environment(void **state)
{
    char socket[PATH_MAX], expected[PATH_MAX], buffer[PATH_MAX];
    const char *path;

    (void)state;
    make_device("41");
    setenv("LIBVFIO_DIR", root, 1);
    assert_int_equal(lv_registry_socket(41, socket, sizeof(socket)), 0);
    path_in(expected, sizeof(expected), "41/cntrl");
    assert_string_equal(socket, expected);
    assert_errno(lv_registry_socket(42, socket, sizeof(socket)), ENOENT);

    path = lv_registry_translate("/dev/vfio/41", buffer, sizeof(buffer));
    path_in(expected, sizeof(expected), "41");
    assert_string_equal(path, expected);
    path = lv_registry_translate("/dev/vfio/41/iommu_group", buffer, sizeof(buffer));
    path_in(expected, sizeof(expected), "41/iommu_group");
    assert_string_equal(path, expected);
    path = lv_registry_translate("/dev/vfio/42", buffer, sizeof(buffer));
    assert_string_equal(path, "/dev/vfio/42");
    path = lv_registry_translate("/dev/vfio/411", buffer, sizeof(buffer));
    assert_string_equal(path, "/dev/vfio/411");
    path = lv_registry_translate("/dev/null", buffer, sizeof(buffer));
    assert_string_equal(path, "/dev/null");
    unsetenv("LIBVFIO_DIR");
    path = lv_registry_translate("/dev/vfio/41", buffer, sizeof(buffer));
    assert_string_equal(path, "/dev/vfio/41");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_learnt),
        cmocka_unit_test(test_not_learnt),
        cmocka_unit_test(test_directory_by_environment),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
