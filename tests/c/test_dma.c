/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dma.h"
#include "test.h"

#define RW (LV_DMA_READ | LV_DMA_WRITE)

static char memory[0x8000] __attribute__((aligned(4096)));

static int
add(struct lv_dma_table *t, uint64_t iova, uint64_t size, size_t offset,
    uint32_t flags)
{
    struct lv_mapping m = { iova, size, memory + offset, flags };

    return lv_dma_add(t, &m);
}

static void
test_errno_of_add(void **state)
{
    struct lv_dma_table t = { 0 };

    (void)state;
    assert_errno(add(&t, 0, 0, 0, RW), EINVAL);
    assert_errno(add(&t, 0x800, 0x1000, 0, RW), EINVAL);
    assert_errno(add(&t, 0x1000, 0x800, 0, RW), EINVAL);
    assert_errno(add(&t, 0x1000, 0x1000, 0x10, RW), EINVAL);
    assert_errno(add(&t, 0x1000, 0x1000, 0, 0), EINVAL);
    assert_errno(add(&t, 0x1000, 0x1000, 0, 4), EINVAL);
    assert_errno(add(&t, UINT64_MAX - 0xfff, 0x2000, 0, RW), EINVAL);
    assert_int_equal(add(&t, UINT64_MAX - 0xfff, 0x1000, 0, RW), 0);
    assert_int_equal(add(&t, 0x1000, 0x3000, 0, RW), 0);
    assert_errno(add(&t, 0x3000, 0x1000, 0, RW), EEXIST);
    assert_errno(add(&t, 0x0000, 0x2000, 0, RW), EEXIST);
    assert_errno(add(&t, 0x0000, 0x8000, 0, RW), EEXIST);
    assert_errno(add(&t, 0x1000, 0x3000, 0, RW), EEXIST);
    assert_errno(add(&t, UINT64_MAX - 0xfff, 0x1000, 0, RW), EEXIST);
    assert_int_equal(add(&t, 0x4000, 0x1000, 0, RW), 0);
    assert_int_equal(add(&t, 0x0000, 0x1000, 0, RW), 0);
    assert_int_equal(t.nr, 4);
    lv_dma_fini(&t);
}

static void
test_find(void **state)
{
    struct lv_dma_table t = { 0 };
    size_t first, nr;

    (void)state;
    assert_int_equal(add(&t, 0x1000, 0x2000, 0, RW), 0);
    assert_int_equal(add(&t, 0x4000, 0x1000, 0, RW), 0);
    assert_int_equal(add(&t, 0x8000, 0x1000, 0, RW), 0);
    assert_int_equal(lv_dma_find(&t, 0x0, 0x6000, &first, &nr), 0);
    assert_int_equal(first, 0);
    assert_int_equal(nr, 2);
    assert_int_equal(lv_dma_find(&t, 0x5000, 0x3000, &first, &nr), 0);
    assert_int_equal(nr, 0);
    /* A mapping is not cut, at either end. */
    assert_errno(lv_dma_find(&t, 0x1000, 0x1000, &first, &nr), EINVAL);
    assert_errno(lv_dma_find(&t, 0x2000, 0x8000, &first, &nr), EINVAL);
    assert_errno(lv_dma_find(&t, 0x1000, 0, &first, &nr), EINVAL);
    assert_errno(lv_dma_find(&t, 0x1001, 0x1000, &first, &nr), EINVAL);
    assert_int_equal(lv_dma_find(&t, 0x1000, 0x4000, &first, &nr), 0);
    lv_dma_remove(&t, first, nr);
    assert_int_equal(t.nr, 1);
    assert_int_equal(t.mappings[0].iova, 0x8000);
    lv_dma_fini(&t);
}

static void
test_access(void **state)
{
    struct lv_dma_table t = { 0 };
    char data[0x2000];

    (void)state;
    /* Adjacent in IOVA, apart and in reverse order in memory. */
    assert_int_equal(add(&t, 0x1000, 0x1000, 0x4000, RW), 0);
    assert_int_equal(add(&t, 0x2000, 0x1000, 0x1000, RW), 0);
    assert_int_equal(add(&t, 0x3000, 0x1000, 0x7000, LV_DMA_READ), 0);
    memset(memory, 0, sizeof(memory));
    memset(data, 0x5a, sizeof(data));
    assert_int_equal(lv_dma_write(&t, 0x1ffe, data, 4), 0);
    assert_int_equal(memory[0x4ffe], 0x5a);
    assert_int_equal(memory[0x4ffd], 0);
    assert_int_equal(memory[0x1001], 0x5a);
    assert_int_equal(memory[0x1002], 0);
    memory[0x7000] = 1;
    assert_int_equal(lv_dma_read(&t, 0x2fff, data, 2), 0);
    assert_int_equal(data[1], 1);
    /* All or nothing. */
    memory[0x1fff] = 0;
    memset(data, 0x77, sizeof(data));
    assert_errno(lv_dma_write(&t, 0x2fff, data, 2), EPERM);
    assert_int_equal(memory[0x1fff], 0);
    assert_errno(lv_dma_read(&t, 0x3fff, data, 2), EFAULT);
    assert_errno(lv_dma_read(&t, 0x0fff, data, 2), EFAULT);
    assert_errno(lv_dma_read(&t, UINT64_MAX, data, 2), EFAULT);
    assert_errno(lv_dma_read(&t, 0x9000, data, 1), EFAULT);
    lv_dma_fini(&t);
}

/* Random changes against a map of pages kept beside. */
static void
test_against_a_page_map(void **state)
{
    enum { PAGES = 64 };
    struct lv_dma_table t = { 0 };
    int owner[PAGES] = { 0 }, serial = 0;
    unsigned int seed = 20261122;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        size_t start = (size_t)rand_r(&seed) % PAGES, first, nr, pages = 0;
        size_t count = 1 + (size_t)rand_r(&seed) % 8;
        bool taken = false, cut = false;

        if (start + count > PAGES) {
            continue;
        }
        for (size_t i = start; i < start + count; i++) {
            taken = taken || owner[i] != 0;
            pages += owner[i] != 0;
        }
        cut = (start > 0 && owner[start] != 0 && owner[start - 1] == owner[start]) ||
              (start + count < PAGES && owner[start + count - 1] != 0 &&
               owner[start + count - 1] == owner[start + count]);
        if (rand_r(&seed) % 2 == 0) {
            assert_int_equal(add(&t, start << 12, count << 12, 0, RW), taken ? -1 : 0);
            serial++;
            for (size_t i = start; i < start + count && !taken; i++) {
                owner[i] = serial;
            }
        } else if (lv_dma_find(&t, start << 12, count << 12, &first, &nr) != 0) {
            assert_true(cut);
        } else {
            assert_false(cut);
            for (size_t i = first; i < first + nr; i++) {
                pages -= t.mappings[i].size >> 12;
            }
            assert_int_equal(pages, 0);
            lv_dma_remove(&t, first, nr);
            memset(&owner[start], 0, count * sizeof(owner[0]));
        }
        for (size_t i = 1; i < t.nr; i++) {
            assert_true(t.mappings[i - 1].iova + t.mappings[i - 1].size <=
                        t.mappings[i].iova);
        }
    }
    lv_dma_fini(&t);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errno_of_add),
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_access),
        cmocka_unit_test(test_against_a_page_map),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
