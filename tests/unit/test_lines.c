#include "cli/lines.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_BYTES 1000

static struct err err;

/* Reads back a file of lines of the given lengths; 'a' + i % 26 fills line i. */
static void check(const size_t lengths[], size_t count, bool last_newline)
{
    char path[] = "/tmp/atelier-lines-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < lengths[i]; j++)
            fputc('a' + (int)(i % 26), file);
        if (i + 1 < count || last_newline)
            fputc('\n', file);
    }
    fclose(file);
    struct lines lines;
    struct line line;
    assert_int_equal(lines_open(&lines, path, MAX_BYTES, &err), 0);
    assert_int_equal(lines.total, count);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(lines_next(&lines, &line, &err), 1);
        assert_int_equal(line.number, i + 1);
        assert_int_equal(line.len, lengths[i]);
        assert_int_equal(line.too_long, lengths[i] > MAX_BYTES);
        size_t kept = line.too_long ? 200 : line.len;
        for (size_t j = 0; j < kept; j++)
            assert_int_equal(line.text[j], 'a' + (int)(i % 26));
    }
    assert_int_equal(lines_next(&lines, &line, &err), 0);
    lines_close(&lines);
    unlink(path);
}

static void test_lines_of_every_length(void **state)
{
    (void)state;
    static const size_t few[] = {0, 1, 999, 1000, 1001, 5, 200000, 3, 64 << 10, 0, 7};
    check(few, sizeof(few) / sizeof(few[0]), true);
    check(few, sizeof(few) / sizeof(few[0]), false);
    static const size_t one[] = {300000};
    check(one, 1, true);
    check(one, 1, false);
    size_t many[3000];
    srandom(3);
    for (int round = 0; round < 5; round++) {
        for (size_t i = 0; i < 3000; i++)
            many[i] = random() % 40 == 0 ? (size_t)random() % 150000 : 1 + (size_t)random() % 1000;
        check(many, 3000, round % 2);
    }
}

static void test_an_empty_file(void **state)
{
    (void)state;
    struct lines lines;
    struct line line;
    assert_int_equal(lines_open(&lines, "/dev/null", MAX_BYTES, &err), 0);
    assert_int_equal(lines_next(&lines, &line, &err), 0);
    lines_close(&lines);
}

static void test_files_that_cannot_be_read(void **state)
{
    (void)state;
    struct lines lines;
    assert_int_equal(lines_open(&lines, "/no/such/jobs.jsonl", MAX_BYTES, &err), -1);
    assert_contains(err.message, "/no/such/jobs.jsonl");
    assert_int_equal(lines_open(&lines, "/tmp", MAX_BYTES, &err), -1);
    assert_contains(err.message, "is a directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines_of_every_length),
        cmocka_unit_test(test_an_empty_file),
        cmocka_unit_test(test_files_that_cannot_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
