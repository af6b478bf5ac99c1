/* SPDX-License-Identifier: BSD-3-Clause */
/* cmocka with the headers that it wants before it. */
#ifndef TEST_H
#define TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define assert_errno(expression, number)        \
    do {                                        \
        errno = 0;                              \
        assert_int_equal((expression), -1);     \
        assert_int_equal(errno, (number));      \
    } while (0)

#endif /* TEST_H */
