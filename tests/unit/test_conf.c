#include "common/conf.h"
#include "common/file.h"
#include "common/nearest.h"

#include "tests/unit/unit.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct options {
    bool flag;
    int64_t count;
    double part;
    const char *text, *choice, *word;
    uint64_t size;
};

static const char *const choices[] = {"red", "blue", "shade:N", NULL};

static const struct conf_row rows[] = {
    {"flag", CONF_FLAG, offsetof(struct options, flag), NULL, NULL, 0, 0, NULL, "a flag"},
    {"count", CONF_INT, offsetof(struct options, count), "N", "3", 1, 10, NULL, "a count"},
    {"part", CONF_NUMBER, offsetof(struct options, part), "X", NULL, 0, 1, NULL, "a part"},
    {"some-text", CONF_STRING, offsetof(struct options, text), "TEXT", NULL, 0, 0, NULL, "text"},
    {"choice", CONF_CHOICE, offsetof(struct options, choice), "NAME", "red", 0, 0, choices, "one"},
    {"size", CONF_BYTES, offsetof(struct options, size), "SIZE", "1K", 0, 0, NULL, "a size"},
    {"some-text-file", CONF_FILE, offsetof(struct options, text), "FILE", NULL, 0, 0, NULL, "text"},
};

/* Of the same program's other command. */
static const struct conf_row other_rows[] = {
    {"depth", CONF_INT, 0, "N", NULL, 0, 9, NULL, "a depth"},
};
static const struct conf_table other = {
    .command = "atelier other", .rows = other_rows, .row_count = 1};

static const struct conf_table table;
static const struct conf_table *const family[] = {&table, &other, NULL};

static const struct conf_table table = {
    .command = "atelier test",
    .usage = "atelier test WORD",
    .summary = "A test.",
    .rows = rows,
    .row_count = sizeof(rows) / sizeof(rows[0]),
    .positional = "WORD",
    .positional_offset = offsetof(struct options, word),
    .family = family,
};

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
    assert_int_equal(parse("--choice shade:12"), 0);
    assert_string_equal(options.choice, "shade:12");
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
        {"--choice green", "one of red, blue, shade:N"},
        {"--choice shade:", "one of red, blue, shade:N"},
        {"--choice shade:x", "one of red, blue, shade:N"},
        {"--choice shade:1x", "one of red, blue, shade:N"},
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

/* ---- the configuration file ---- */

static char path[200], secret[220];

static void write_text(const char *to, const char *text)
{
    assert_int_equal(file_write(to, text, strlen(text), FILE_REPLACE, &err), 0);
}

static int make_dir(void **state)
{
    (void)state;
    strcpy(path, "/tmp/atelier-conf-XXXXXX");
    if (!mkdtemp(path))
        return -1;
    snprintf(secret, sizeof(secret), "%s/secret", path);
    strcat(path, "/conf");
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    unlink(secret);
    *strrchr(path, '/') = '\0';
    return rmdir(path);
}

/* Parses `words` with a configuration file of `text`. */
static int parse_with(const char *text, const char *words)
{
    char all[400];
    write_text(path, text);
    snprintf(all, sizeof(all), "--config %s %s", path, words);
    return parse(all);
}

static void test_file_is_below_flag_and_environment(void **state)
{
    (void)state;
    static const char text[] = "# a comment\n\ncount = 5\r\n  some-text =  a = b # c \nsize=2M\n"
                               "flag = yes\n";
    assert_int_equal(parse_with(text, ""), 0);
    assert_int_equal(options.count, 5);
    assert_string_equal(options.text, "a = b # c");
    assert_int_equal(options.size, 2 << 20);
    assert_true(options.flag);
    assert_string_equal(options.choice, "red"); /* the default */
    setenv("ATELIER_COUNT", "6", 1);
    assert_int_equal(parse_with(text, "--size 3K"), 0);
    assert_int_equal(options.count, 6);
    assert_int_equal(options.size, 3 << 10);
    assert_int_equal(parse_with(text, "--count=7"), 0);
    assert_int_equal(options.count, 7);
    unsetenv("ATELIER_COUNT");
    setenv("ATELIER_CONFIG", path, 1);
    assert_int_equal(parse("w"), 0);
    assert_int_equal(options.count, 5);
    assert_string_equal(options.word, "w");
    unsetenv("ATELIER_CONFIG");
    assert_int_equal(parse("w"), 0);
    assert_int_equal(options.count, 3);
}

static void test_file_has_sections(void **state)
{
    (void)state;
    assert_int_equal(parse_with("count=4\ndepth=2\n[atelier-worker]\nthreads=1\ncount=8\n"
                                "[atelier]\ncount=5\n",
                                ""),
                     0);
    assert_int_equal(options.count, 5);
    assert_int_equal(parse_with("count = 4\n[ atelier-coordinator ]\ncount = 8", ""), 0);
    assert_int_equal(options.count, 4);
}

static void test_file_errors_name_the_line(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"count = 4\n\ncuont = 5\n", "conf:3: unknown key \"cuont\"; did you mean \"count\"?"},
        {"[atelier]\ndetph = 5\n", "conf:2: unknown key \"detph\"; did you mean \"depth\"?"},
        {"count = many", "conf:1: count: \"many\" is not a whole number from 1 to 10"},
        {"\n[atelier-wroker]\n", "conf:2: \"[atelier-wroker]\" is no program"},
        {"[atelier\n", "conf:1: a section is [program]"},
        {"count\n", "conf:1: a line is `key = value`"},
        {"= 3\n", "conf:1: a line is `key = value`"},
        {"some-text-file = /no/such\n", "conf:1: some-text-file: "},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(parse_with(bad[i][0], ""), -1);
        assert_contains(err.message, bad[i][1]);
        assert_int_equal(err.class, ERR_FATAL);
    }
    assert_int_equal(parse("--config /no/such/file"), -1);
    assert_contains(err.message, "the configuration file: ");
    assert_contains(err.message, "/no/such/file");
    assert_int_equal(parse("--config"), -1);
    assert_contains(err.message, "--config needs a value");
    assert_int_equal(parse("--cofnig x"), -1);
    assert_contains(err.message, "did you mean \"config\"");
}

static void test_secrets_come_from_files(void **state)
{
    (void)state;
    char words[300], text[300];
    write_text(secret, "redis://:s3cret@host\n");
    snprintf(words, sizeof(words), "--some-text-file %s", secret);
    assert_int_equal(parse(words), 0);
    assert_string_equal(options.text, "redis://:s3cret@host");
    snprintf(text, sizeof(text), "some-text-file = %s", secret);
    assert_int_equal(parse_with(text, ""), 0);
    assert_string_equal(options.text, "redis://:s3cret@host");
    assert_int_equal(parse_with(text, "--some-text other"), 0);
    assert_string_equal(options.text, "other");
    write_text(secret, "first\nsecond\r\n\n");
    assert_int_equal(parse(words), 0);
    assert_string_equal(options.text, "first\nsecond");
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
        cmocka_unit_test(test_file_is_below_flag_and_environment),
        cmocka_unit_test(test_file_has_sections),
        cmocka_unit_test(test_file_errors_name_the_line),
        cmocka_unit_test(test_secrets_come_from_files),
        cmocka_unit_test(test_nearest),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
