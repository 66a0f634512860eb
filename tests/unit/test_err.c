#include "common/err.h"

#include "tests/unit/unit.h"

#include <string.h>

static void test_set_fills_in_everything(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(err_set(&err, ERR_LIMIT, ERR_REJECT, "%d is over %d", 7, 5), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    assert_int_equal(err.class, ERR_REJECT);
    assert_string_equal(err.message, "7 is over 5");
    assert_int_equal(err_set(NULL, ERR_IO, ERR_FATAL, "nobody listens"), -1);
}

static void test_prefix_goes_before(void **state)
{
    (void)state;
    struct err err;
    err_set(&err, ERR_IO, ERR_FATAL, "no space");
    assert_int_equal(err_prefix(&err, "line %d", 3), -1);
    assert_string_equal(err.message, "line 3: no space");
    assert_int_equal(err.code, ERR_IO);
}

static void test_long_messages_are_cut_between_characters(void **state)
{
    (void)state;
    char text[2000];
    struct err err;
    for (int lead = 0; lead < 4; lead++) {
        memset(text, 'a', (size_t)lead);
        for (size_t i = (size_t)lead; i + 3 < sizeof(text); i += 3)
            memcpy(text + i, "\xE2\x82\xAC", 4);
        err_set(&err, ERR_IO, ERR_FATAL, "%s", text);
        size_t len = strlen(err.message);
        assert_true(len > ERR_MESSAGE_MAX_BYTES - 5 && len < ERR_MESSAGE_MAX_BYTES);
        assert_int_equal((len - (size_t)lead) % 3, 0);
        err_prefix(&err, "context");
        assert_int_equal((strlen(err.message) - 9 - (size_t)lead) % 3, 0);
    }
}

static void test_messages_are_one_line_and_may_quote_themselves(void **state)
{
    (void)state;
    struct err err;
    err_set(&err, ERR_IO, ERR_FATAL, "two\nlines");
    err_set(&err, ERR_IO, ERR_RETRY, "again: %s", err.message);
    assert_string_equal(err.message, "again: two lines");
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(err_code_name(ERR_NOT_FOUND), "not_found");
    assert_string_equal(err_class_name(ERR_RETRY), "retry");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_fills_in_everything),
        cmocka_unit_test(test_prefix_goes_before),
        cmocka_unit_test(test_long_messages_are_cut_between_characters),
        cmocka_unit_test(test_messages_are_one_line_and_may_quote_themselves),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
