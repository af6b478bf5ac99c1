/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <string.h>

#include "test.h"
#include "version.h"

static int
parse(const char *json, struct lv_limits *limits)
{
    return lv_version_parse(json, strlen(json), limits);
}

static void
test_defaults(void **state)
{
    struct lv_limits l;

    (void)state;
    assert_int_equal(parse("", &l), 0);
    assert_int_equal(l.max_msg_fds, 1);
    assert_int_equal(l.max_data_xfer_size, 1 << 20);
    assert_int_equal(l.max_dma_maps, 65535);
    assert_false(l.twin_socket);
    assert_int_equal(parse("{}", &l), 0);
    assert_int_equal(parse(" { \"capabilities\" : { } } ", &l), 0);
    assert_int_equal(l.max_msg_fds, 1);
}

static void
test_values(void **state)
{
    struct lv_limits l;

    (void)state;
    assert_int_equal(parse("{\"capabilities\":{\"max_msg_fds\":3,"
                           "\"max_data_xfer_size\":4096,\"max_dma_maps\":7,"
                           "\"twin_socket\":{\"supported\":true,\"fd_index\":2}}}",
                           &l), 0);
    assert_int_equal(l.max_msg_fds, 3);
    assert_int_equal(l.max_data_xfer_size, 4096);
    assert_int_equal(l.max_dma_maps, 7);
    assert_true(l.twin_socket);
    assert_int_equal(l.twin_fd_index, 2);
}

/* What we cannot use more of than we have ourselves. */
static void
test_clamped(void **state)
{
    struct lv_limits l;

    (void)state;
    assert_int_equal(parse("{\"capabilities\":{\"max_msg_fds\":4096,"
                           "\"max_data_xfer_size\":1099511627776}}", &l), 0);
    assert_int_equal(l.max_msg_fds, 8);
    assert_int_equal(l.max_data_xfer_size, 1 << 20);
}

/* The same keys elsewhere mean nothing; unknown ones are skipped. */
static void
test_only_the_right_place(void **state)
{
    struct lv_limits l;

    (void)state;
    assert_int_equal(parse("{\"max_msg_fds\":5,\"x\":[1,{\"max_msg_fds\":6},\"}\"],"
                           "\"capabilities\":{\"migration\":{\"max_msg_fds\":9,"
                           "\"pgsize\":4096},\"y\":-1.5e3,\"z\":null,"
                           "\"s\":\"a\\\"b\"}}", &l), 0);
    assert_int_equal(l.max_msg_fds, 1);
    assert_int_equal(parse("{\"capabilities\":{\"twin_socket\":"
                           "{\"supported\":false}}}", &l), 0);
    assert_false(l.twin_socket);
}

static void
test_refused(void **state)
{
    static const char *const bad[] = {
        "{", "}", "{\"a\"}", "{\"a\":}", "[1,]", "{\"a\":1}x", "\"open", "{\"a\":1,}",
        "nul", "{\"capabilities\":{\"max_data_xfer_size\":0}}",
        "{\"capabilities\":{\"twin_socket\":{\"supported\":true}}}",
        "[[[[[[[[[[[[1]]]]]]]]]]]]",
    };
    struct lv_limits l;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_errno(parse(bad[i], &l), EPROTO);
    }
}

/* Every beginning of a valid text is either refused or harmless. */
static void
test_cut_anywhere(void **state)
{
    const char *whole = "{\"capabilities\":{\"max_msg_fds\":8,\"t\":\"\\\\\\\"\","
                        "\"twin_socket\":{\"supported\":true,\"fd_index\":0}}}";
    struct lv_limits l;

    (void)state;
    for (size_t n = 1; n < strlen(whole); n++) {
        char *exact = test_malloc(n);

        memcpy(exact, whole, n);
        assert_int_equal(lv_version_parse(exact, n, &l), -1);
        test_free(exact);
    }
}

static void
test_request_is_understood(void **state)
{
    struct lv_limits l;

    (void)state;
    assert_int_equal(parse("{\"capabilities\":{\"twin_socket\":{\"fd_index\":0,"
                           "\"supported\":true}}}", &l), 0);
    assert_non_null(strstr(lv_version_request(), "\"twin_socket\""));
    /* Ours offers a twin socket without an index, as the specification has it. */
    assert_errno(parse(lv_version_request(), &l), EPROTO);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_clamped),
        cmocka_unit_test(test_only_the_right_place),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_request_is_understood),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
