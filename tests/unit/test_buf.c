#include "common/buf.h"

#include "tests/unit/unit.h"

#include <string.h>

static void test_grows_and_stays_a_string(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_string_equal(b.data, "");
    for (int i = 0; i < 1000; i++)
        buf_printf(&b, "%d,", i % 10);
    buf_char(&b, 'x');
    buf_str(&b, "yz");
    assert_int_equal(b.len, 2003);
    assert_int_equal(strlen(b.data), 2003);
    assert_string_equal(b.data + 1998, "9,xyz");
    assert_false(b.failed);
    buf_clear(&b);
    assert_string_equal(b.data, "");
    buf_release(&b);
    assert_string_equal(b.data, "");
}

static void test_the_maximum_holds_and_failure_sticks(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 10);
    buf_str(&b, "0123456789");
    assert_false(b.failed);
    buf_char(&b, 'x');
    assert_true(b.failed);
    assert_string_equal(b.data, "0123456789");
    buf_clear(&b);
    buf_str(&b, "again");
    assert_false(b.failed);
    buf_printf(&b, "%s", "too long for it");
    assert_true(b.failed);
    buf_str(&b, "x");
    assert_string_equal(b.data, "again");
    buf_release(&b);
}

static void test_reserve_is_the_callers_to_fill(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 100);
    memcpy(buf_reserve(&b, 3), "abc", 3);
    assert_string_equal(b.data, "abc");
    assert_null(buf_reserve(&b, 98));
    assert_true(b.failed);
    buf_release(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grows_and_stays_a_string),
        cmocka_unit_test(test_the_maximum_holds_and_failure_sticks),
        cmocka_unit_test(test_reserve_is_the_callers_to_fill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
