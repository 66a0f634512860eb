#include "common/json.h"

#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct json_doc *parse(const char *text)
{
    struct json_doc *doc;
    struct err err;
    if (json_parse(&doc, text, strlen(text), NULL, &err) != 0)
        fail_msg("%s: %s", text, err.message);
    return doc;
}

static void assert_canonical(const char *text, const char *expected)
{
    struct buf out;
    struct json_doc *doc = parse(text);
    buf_init(&out, 1 << 20);
    json_write_canonical(&out, json_root(doc));
    assert_string_equal(out.data, expected);
    buf_release(&out);
    json_doc_free(doc);
}

static void test_reads_every_type(void **state)
{
    (void)state;
    struct json_doc *doc = parse(" {\"a\": [1, -2.5e3, true, false, null, \"x\"], \"b\": {}} ");
    const struct json *root = json_root(doc);
    assert_int_equal(root->count, 2);
    const struct json *item = json_get(root, "a")->child;
    int64_t integer;
    double number;
    assert_true(json_int64(item, &integer) && integer == 1);
    item = item->next;
    assert_true(json_double(item, &number) && number == -2500);
    item = item->next;
    assert_true(item->type == JSON_BOOL && item->boolean);
    item = item->next->next;
    assert_int_equal(item->type, JSON_NULL);
    assert_string_equal(item->next->text, "x");
    assert_null(item->next->next);
    assert_int_equal(json_get(root, "b")->count, 0);
    assert_null(json_get(root, "c"));
    assert_null(json_get(item, "c"));
    assert_null(json_get(NULL, "c"));
    json_doc_free(doc);
}

static void test_strings_decode(void **state)
{
    (void)state;
    struct json_doc *doc =
        parse("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\u20AC\\ud83d\\ude00 \xF0\x9F\x98\x80\"");
    assert_string_equal(json_root(doc)->text,
                        "\"\\/\b\f\n\r\t\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80 \xF0\x9F\x98\x80");
    assert_int_equal(json_root(doc)->text_len, strlen(json_root(doc)->text));
    json_doc_free(doc);
}

static void test_integers_lose_nothing(void **state)
{
    (void)state;
    struct json_doc *doc = parse("[9223372036854775807, -9223372036854775808, 9223372036854775808,"
                                 " 30.0, 3e1, 1.5, 1e300, 1e999]");
    const struct json *item = json_root(doc)->child;
    int64_t v;
    double d;
    assert_true(json_int64(item, &v) && v == INT64_MAX);
    item = item->next;
    assert_true(json_int64(item, &v) && v == INT64_MIN);
    item = item->next;
    assert_false(json_int64(item, &v));
    item = item->next;
    assert_true(json_int64(item, &v) && v == 30);
    item = item->next;
    assert_true(json_int64(item, &v) && v == 30);
    item = item->next;
    assert_false(json_int64(item, &v));
    item = item->next;
    assert_false(json_int64(item, &v));
    assert_true(json_double(item, &d) && d == 1e300);
    assert_false(json_double(item->next, &d));
    json_doc_free(doc);
}

static void test_errors_say_where_and_what(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "found nothing"},
        {"{\"a\" 1}", "byte 5: expected ':'"},
        {"{\"a\":1,}", "byte 7: expected a key"},
        {"{a:1}", "expected a key in double quotes"},
        {"[1 2]", "byte 3: expected ',' or ']'"},
        {"[1,]", "byte 3: expected a value"},
        {"{\"a\":1", "expected ',' or '}'"},
        {"\"abc", "without its closing quote"},
        {"\"abc\\", "without its closing quote"},
        {"\"a\nb\"", "control character"},
        {"\"\\x\"", "unknown escape"},
        {"\"\\u12g4\"", "four hexadecimal digits"},
        {"\"\\u0000\"", "\\u0000"},
        {"\"\\ud800\"", "low surrogate"},
        {"\"\\ud800\\u0041\"", "low surrogate"},
        {"\"\\udc00\"", "without its high one"},
        {"\"\xC0\x80\"", "byte 1: bytes that are not UTF-8"},
        {"\"\xED\xA0\x80\"", "not UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "not UTF-8"},
        {"\"ab\xE2\x82\"", "byte 3: bytes that are not UTF-8"},
        {"01", "leading zero"},
        {"-", "expected a value"},
        {"1.", "after the decimal point"},
        {"1e", "digits in the exponent"},
        {"tru", "expected a value"},
        {"{} x", "byte 3: expected the end"},
        {"{\"a\":1,\"b\":2,\"a\":3}", "\"a\" appears twice"},
        {"{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,\"i\":9,\"c\":0}",
         "\"c\" appears twice"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct json_doc *doc;
        struct err err;
        assert_int_equal(json_parse(&doc, cases[i].text, strlen(cases[i].text), NULL, &err), -1);
        assert_null(doc);
        assert_int_equal(err.code, ERR_FORMAT);
        assert_int_equal(err.class, ERR_REJECT);
        assert_contains(err.message, cases[i].message);
    }
}

static void test_limits(void **state)
{
    (void)state;
    struct json_limits limits = {.bytes = 100, .depth = 3, .nodes = 5};
    struct json_doc *doc;
    struct err err;
    assert_int_equal(json_parse(&doc, "[[[1]]]", 7, &limits, &err), 0);
    json_doc_free(doc);
    assert_int_equal(json_parse(&doc, "[[[[1]]]]", 9, &limits, &err), -1);
    assert_contains(err.message, "deeper than 3");
    assert_int_equal(json_parse(&doc, "[1,2,3,4,5]", 11, &limits, &err), -1);
    assert_contains(err.message, "more than 5 values");
    char text[200];
    memset(text, ' ', sizeof(text));
    assert_int_equal(json_parse(&doc, text, sizeof(text), &limits, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
}

static void test_large_objects_are_found_by_key(void **state)
{
    (void)state;
    struct buf text;
    char key[32];
    buf_init(&text, 1 << 24);
    buf_char(&text, '{');
    for (int i = 0; i < 50000; i++)
        buf_printf(&text, "%s\"k%d\":%d", i ? "," : "", i * 7919 % 50000, i * 7919 % 50000);
    buf_char(&text, '}');
    struct json_doc *doc = parse(text.data);
    for (int i = 0; i < 50000; i++) {
        snprintf(key, sizeof(key), "k%d", i);
        assert_int_equal(json_int_or(json_get(json_root(doc), key), -1), i);
    }
    assert_null(json_get(json_root(doc), "k50000"));
    json_doc_free(doc);
    buf_release(&text);
}

static void test_canonical_form(void **state)
{
    (void)state;
    assert_canonical(" { \"b\" : 1.50 , \"a\" : [ 1e2 , \"\\u00e9\\n\" , null ] } ",
                     "{\"a\":[100,\"\xC3\xA9\\n\",null],\"b\":1.5}");
    assert_canonical(
        "{\"j\":0,\"i\":1,\"h\":2,\"g\":3,\"f\":4,\"e\":5,\"d\":6,\"c\":7,\"b\":8,\"a\":9}",
        "{\"a\":9,\"b\":8,\"c\":7,\"d\":6,\"e\":5,\"f\":4,\"g\":3,\"h\":2,\"i\":1,\"j\":0}");
    assert_canonical("18446744073709551615", "18446744073709551615");
    assert_canonical("9223372036854775807", "9223372036854775807");
}

static void test_doubles_are_short_and_exact(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } cases[] = {{7.5, "7.5"},
                 {0.1, "0.1"},
                 {1e-7, "1e-07"},
                 {100000, "100000"},
                 {1.0 / 3, "0.3333333333333333"},
                 {NAN, "null"},
                 {1e300, "1e+300"}};
    struct buf out;
    buf_init(&out, 1000);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        buf_clear(&out);
        json_write_double(&out, cases[i].value);
        assert_string_equal(out.data, cases[i].text);
    }
    for (int i = 0; i < 20000; i++) {
        double value = ldexp((double)random() / 3.0, (int)(random() % 200) - 100);
        buf_clear(&out);
        json_write_double(&out, value);
        assert_true(strtod(out.data, NULL) == value);
    }
    buf_release(&out);
}

static void test_written_strings_read_back(void **state)
{
    (void)state;
    static const char text[] = "a\"\\\x01\x1F\x7F\n\t\xC3\xA9\xF0\x9F\x98\x80";
    struct buf out;
    buf_init(&out, 1000);
    json_write_string(&out, text, sizeof(text) - 1);
    struct json_doc *doc = parse(out.data);
    assert_string_equal(json_root(doc)->text, text);
    json_doc_free(doc);
    buf_clear(&out);
    json_write_string(&out, "a\xFF\xC3", 3);
    assert_string_equal(out.data, "\"a\xEF\xBF\xBD\xEF\xBF\xBD\"");
    buf_release(&out);
}

static void test_lenient_reads(void **state)
{
    (void)state;
    struct json_doc *doc = parse("{\"i\":3,\"d\":0.5,\"b\":true,\"s\":\"x\"}");
    const struct json *root = json_root(doc);
    assert_int_equal(json_int_or(json_get(root, "i"), 9), 3);
    assert_int_equal(json_int_or(json_get(root, "d"), 9), 9);
    assert_true(json_double_or(json_get(root, "d"), 9) == 0.5);
    assert_true(json_bool_or(json_get(root, "b"), false));
    assert_string_equal(json_string_or(json_get(root, "s"), "y"), "x");
    assert_string_equal(json_string_or(json_get(root, "i"), "y"), "y");
    json_doc_free(doc);
}

static void test_files(void **state)
{
    (void)state;
    struct json_doc *doc;
    struct err err;
    assert_int_equal(json_parse_file(&doc, "no/such/file.json", NULL, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_contains(err.message, "no/such/file.json");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_every_type),
        cmocka_unit_test(test_strings_decode),
        cmocka_unit_test(test_integers_lose_nothing),
        cmocka_unit_test(test_errors_say_where_and_what),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_large_objects_are_found_by_key),
        cmocka_unit_test(test_canonical_form),
        cmocka_unit_test(test_doubles_are_short_and_exact),
        cmocka_unit_test(test_written_strings_read_back),
        cmocka_unit_test(test_lenient_reads),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
