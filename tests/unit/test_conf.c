#include "common/conf.h"
#include "common/nearest.h"

#include "tests/unit/unit.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct options {
    bool flag;
    int64_t count;
    double part;
    const char *text, *choice, *word;
    uint64_t size;
};

static const char *const choices[] = {"red", "blue", NULL};

static const struct conf_row rows[] = {
    {"flag", CONF_FLAG, offsetof(struct options, flag), NULL, NULL, 0, 0, NULL, "a flag"},
    {"count", CONF_INT, offsetof(struct options, count), "N", "3", 1, 10, NULL, "a count"},
    {"part", CONF_NUMBER, offsetof(struct options, part), "X", NULL, 0, 1, NULL, "a part"},
    {"some-text", CONF_STRING, offsetof(struct options, text), "TEXT", NULL, 0, 0, NULL, "text"},
    {"choice", CONF_CHOICE, offsetof(struct options, choice), "NAME", "red", 0, 0, choices, "one"},
    {"size", CONF_BYTES, offsetof(struct options, size), "SIZE", "1K", 0, 0, NULL, "a size"},
};

static const struct conf_table table = {"test",
                                        "test WORD",
                                        "A test.",
                                        rows,
                                        sizeof(rows) / sizeof(rows[0]),
                                        "WORD",
                                        offsetof(struct options, word)};

static struct options options;
static struct err err;

static int parse(const char *words)
{
    static char text[500];
    char *argv[20];
    int argc = 0;
    strcpy(text, words);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    options = (struct options){0};
    return conf_parse(&table, &options, argc, argv, &err);
}

static void test_defaults_and_flags(void **state)
{
    (void)state;
    assert_int_equal(parse(""), 0);
    assert_int_equal(options.count, 3);
    assert_string_equal(options.choice, "red");
    assert_int_equal(options.size, 1024);
    assert_null(options.text);
    assert_int_equal(parse("--flag w --count 7 --part=0.5 --some-text=a=b --choice blue --size 2G"),
                     0);
    assert_true(options.flag);
    assert_int_equal(options.count, 7);
    assert_true(options.part == 0.5);
    assert_string_equal(options.text, "a=b");
    assert_string_equal(options.word, "w");
    assert_int_equal(options.size, 2147483648);
    assert_int_equal(parse("--flag=no -- --count"), 0);
    assert_false(options.flag);
    assert_string_equal(options.word, "--count");
    assert_int_equal(parse("w --help"), 1);
}

static void test_environment_is_between(void **state)
{
    (void)state;
    setenv("ATELIER_SOME_TEXT", "env", 1);
    setenv("ATELIER_COUNT", "9", 1);
    assert_int_equal(parse("--count 4"), 0);
    assert_string_equal(options.text, "env");
    assert_int_equal(options.count, 4);
    setenv("ATELIER_COUNT", "99", 1);
    assert_int_equal(parse(""), -1);
    assert_contains(err.message, "ATELIER_COUNT");
    unsetenv("ATELIER_COUNT");
    unsetenv("ATELIER_SOME_TEXT");
}

static void test_errors(void **state)
{
    (void)state;
    static const struct {
        const char *words, *message;
    } cases[] = {
        {"--cuont 3", "did you mean \"count\"?"},
        {"--count", "needs a value"},
        {"--count 11", "whole number from 1 to 10"},
        {"--count 1.5", "whole number"},
        {"--count x", "--count: \"x\""},
        {"--part 2", "from 0 to 1"},
        {"--choice green", "one of red, blue"},
        {"--size lots", "800M"},
        {"--flag=maybe", "yes or no"},
        {"a b", "one word too many: \"b\""},
        {"-x", "unknown option -x"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(parse(cases[i].words), -1);
        assert_contains(err.message, cases[i].message);
    }
}

static void test_help(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, 10000);
    conf_help(&table, &out);
    for (size_t i = 0; i < table.row_count; i++)
        assert_contains(out.data, rows[i].key);
    buf_clear(&out);
    conf_markdown(&table, &out);
    assert_contains(out.data, "`ATELIER_SOME_TEXT`");
    assert_contains(out.data, "1 … 10");
    buf_release(&out);
}

static void test_nearest(void **state)
{
    (void)state;
    static const char *const names[] = {"tiny-shapes", "sd15", "sdxl-base", "dream"};
    char hint[NEAREST_HINT_BYTES];
    nearest_hint(hint, "tiny_shapes", names, 4);
    assert_string_equal(hint, "; did you mean \"tiny-shapes\"?");
    nearest_hint(hint, "tinyshape", names, 4);
    assert_contains(hint, "tiny-shapes");
    nearest_hint(hint, "sdxl", names, 4);
    assert_contains(hint, "\"sdxl-base\"");
    nearest_hint(hint, "", names, 4);
    assert_string_equal(hint, "");
    nearest_hint(hint, "something else", names, 4);
    assert_string_equal(hint, "");
    assert_int_equal(nearest_distance("abcd", "abdc"), 2);
    assert_int_equal(nearest_distance("abcd", "ABCD"), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults_and_flags),
        cmocka_unit_test(test_environment_is_between),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_nearest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
