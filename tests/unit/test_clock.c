#include "common/clock.h"

#include "tests/unit/unit.h"

#include <string.h>

static void test_format_and_parse_agree(void **state)
{
    (void)state;
    static const int64_t times[] = {0,
                                    1,
                                    999999,
                                    1000000,
                                    1772366400250000000,
                                    -1,
                                    -1000000,
                                    -86400000000000,
                                    4102444800000000000};
    for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
        char text[CLOCK_RFC3339_BYTES];
        int64_t back;
        clock_format_rfc3339(times[i], text);
        assert_true(clock_parse_rfc3339(text, &back));
        assert_true(back <= times[i] && times[i] - back < 1000000);
    }
    char text[CLOCK_RFC3339_BYTES];
    clock_format_rfc3339(1772366400250000000, text);
    assert_string_equal(text, "2026-03-01T12:00:00.250Z");
}

static void test_offsets_and_decimals(void **state)
{
    (void)state;
    int64_t a, b;
    assert_true(clock_parse_rfc3339("2026-03-01T12:00:00Z", &a));
    assert_true(clock_parse_rfc3339("2026-03-01t14:30:00.000000000+02:30", &b));
    assert_true(a == b);
    assert_true(clock_parse_rfc3339("2026-03-01 07:00:00.5-05:00", &b));
    assert_true(b - a == 500000000);
    assert_true(clock_parse_rfc3339("2024-02-29T00:00:00Z", &a));
    assert_true(clock_parse_rfc3339("2016-12-31T23:59:60Z", &a));
    assert_true(clock_parse_rfc3339("2017-01-01T00:00:00Z", &b));
    assert_true(a == b);
}

static void test_everything_else_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "now",
                                      "2026-03-01",
                                      "2026-03-01T12:00:00",
                                      "2026-13-01T12:00:00Z",
                                      "2026-02-29T12:00:00Z",
                                      "2026-00-01T12:00:00Z",
                                      "2026-03-00T12:00:00Z",
                                      "2026-03-01T24:00:00Z",
                                      "2026-03-01T12:60:00Z",
                                      "2026-03-01T12:00:61Z",
                                      "2026-03-01T12:00:00.Z",
                                      "2026-03-01T12:00:00.1234567890Z",
                                      "2026-03-01T12:00:00+24:00",
                                      "2026-03-01T12:00:00+0100",
                                      "2026-03-01T12:00:00Z ",
                                      "0001-01-01T00:00:00Z"};
    int64_t ns;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (clock_parse_rfc3339(bad[i], &ns))
            fail_msg("\"%s\" was taken", bad[i]);
}

static void test_the_system_clock_moves_on(void **state)
{
    (void)state;
    int64_t a = clock_monotonic_ns(clock_system());
    assert_true(clock_monotonic_ns(clock_system()) >= a);
    assert_true(clock_wall_ns(clock_system()) > 1700000000000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_format_and_parse_agree),
        cmocka_unit_test(test_offsets_and_decimals),
        cmocka_unit_test(test_everything_else_is_refused),
        cmocka_unit_test(test_the_system_clock_moves_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
