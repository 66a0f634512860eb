#include "engine/tensor_file.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NAME "some.safetensors"
#define ENTRY(name, dtype, shape, offsets)                                                         \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

/* A file with this header and `data_len` bytes 0, 1, 2, …; on the heap, to its last byte, so that a
 * sanitizer sees a read beyond it. */
static unsigned char *make_file(const char *header, size_t data_len, size_t *len)
{
    size_t header_len = strlen(header);
    unsigned char *bytes = malloc(8 + header_len + data_len);

    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)header_len >> 8 * i);
    memcpy(bytes + 8, header, header_len);
    for (size_t i = 0; i < data_len; i++)
        bytes[8 + header_len + i] = (unsigned char)i;
    *len = 8 + header_len + data_len;
    return bytes;
}

static int open_header(const char *header, size_t data_len, struct err *err)
{
    struct tensor_file *file;
    size_t len;
    unsigned char *bytes = make_file(header, data_len, &len);
    int rc = tensor_file_open_memory(&file, bytes, len, NAME, err);

    if (rc == 0)
        tensor_file_close(file);
    free(bytes);
    return rc;
}

/* Refused with a message that names the file, `tensor` (unless NULL) and the problem. */
static void assert_refused(const char *header, size_t data_len, const char *tensor,
                           const char *problem)
{
    char quoted[64];
    struct err err;

    assert_int_equal(open_header(header, data_len, &err), -1);
    assert_true(err.code == ERR_FORMAT || err.code == ERR_LIMIT);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, NAME);
    assert_contains(err.message, problem);
    if (tensor == NULL)
        return;
    snprintf(quoted, sizeof(quoted), "'%s'", tensor);
    assert_contains(err.message, quoted);
}

static void assert_taken(const char *header, size_t data_len)
{
    struct err err;

    if (open_header(header, data_len, &err) != 0)
        fail_msg("%s", err.message);
}

static void test_what_a_file_holds(void **state)
{
    (void)state;
    const char *header =
        "{\"__metadata__\":{\"format\":\"pt\"}," ENTRY("w", "F16", "[2,3]", "[4,16]") "," ENTRY(
            "b", "F32", "[]", "[0,4]") "," ENTRY("ids", "I64", "[1,1]", "[16,24]") "}";
    struct tensor_file *file;
    struct err err;
    size_t len;
    unsigned char *bytes = make_file(header, 24, &len);

    assert_int_equal(tensor_file_open_memory(&file, bytes, len, NAME, &err), 0);
    assert_int_equal(tensor_file_count(file), 3);
    const struct stored_tensor *w = tensor_file_find(file, "w");
    assert_int_equal(w->dtype, DTYPE_F16);
    assert_true(w->usable);
    assert_int_equal(w->rank, 2);
    assert_int_equal(w->dims[0], 2);
    assert_int_equal(w->dims[1], 3);
    assert_int_equal(w->count, 6);
    assert_int_equal(*(const unsigned char *)w->data, 4);
    assert_ptr_equal(tensor_file_at(file, tensor_file_index(file, w)), w);
    assert_int_equal(tensor_file_find(file, "b")->count, 1);
    assert_false(tensor_file_find(file, "ids")->usable);
    assert_null(tensor_file_find(file, "__metadata__"));
    assert_null(tensor_file_find(file, "nothing"));
    assert_string_equal(tensor_file_metadata(file, "format"), "pt");
    assert_null(tensor_file_metadata(file, "else"));
    tensor_file_close(file);
    free(bytes);
}

static void test_odd_but_right(void **state)
{
    (void)state;
    assert_taken("{}", 0);
    assert_taken("{}   ", 4);
    assert_taken("{" ENTRY("empty", "F32", "[0,7]", "[0,0]") "}", 0);
    /* A hole between tensors hurts nobody. */
    assert_taken("{" ENTRY("a", "F16", "[1]", "[0,2]") "," ENTRY("b", "F16", "[1]", "[6,8]") "}",
                 8);
}

static void test_too_short(void **state)
{
    (void)state;
    unsigned char *bytes;
    struct tensor_file *file;
    struct err err;
    size_t len;

    for (size_t cut = 0; cut < 8; cut++) {
        bytes = calloc(1, cut + 1);
        assert_int_equal(tensor_file_open_memory(&file, bytes, cut, NAME, &err), -1);
        assert_contains(err.message, NAME);
        free(bytes);
    }
    /* Whatever is cut off a whole file, it is refused, in the header without a tensor's name. */
    bytes = make_file("{" ENTRY("w", "F32", "[2]", "[0,8]") "}", 8, &len);
    for (size_t cut = 1; cut < len; cut++) {
        unsigned char *part = malloc(len - cut);
        memcpy(part, bytes, len - cut);
        assert_int_equal(tensor_file_open_memory(&file, part, len - cut, NAME, &err), -1);
        assert_int_equal(err.class, ERR_REJECT);
        assert_contains(err.message, NAME);
        if (cut <= 8)
            assert_contains(err.message, "'w': lies outside of the file");
        free(part);
    }
    free(bytes);
}

static void test_header_lengths_that_lie(void **state)
{
    (void)state;
    static const uint64_t LENGTHS[] = {
        3, 100, 1ull << 31, 1ull << 32, (1ull << 63) - 1, 1ull << 63, UINT64_MAX - 7, UINT64_MAX};

    for (size_t i = 0; i < sizeof(LENGTHS) / sizeof(LENGTHS[0]); i++) {
        unsigned char bytes[10] = {0};
        struct tensor_file *file;
        struct err err;
        memcpy(bytes, &LENGTHS[i], 8);
        assert_int_equal(tensor_file_open_memory(&file, bytes, sizeof(bytes), NAME, &err), -1);
        assert_int_equal(err.code, ERR_FORMAT);
        assert_contains(err.message, NAME);
        assert_contains(err.message, "header is longer than the file");
    }
}

static void test_broken_json(void **state)
{
    (void)state;
    static const char *HEADERS[] = {
        "", "{", "{\"a\"}", "not json", "{\"a\":{}} x", "{\"\xff\":1}", "{'a':1}"};

    for (size_t i = 0; i < sizeof(HEADERS) / sizeof(HEADERS[0]); i++)
        assert_refused(HEADERS[i], 0, NULL, "header");
    assert_refused("[1]", 0, NULL, "header is not an object");
    assert_refused("7", 0, NULL, "header is not an object");
}

static void test_nesting_is_limited(void **state)
{
    (void)state;
    char header[4096] = "{\"a\":";

    memset(header + 5, '[', 3000);
    assert_refused(header, 0, NULL, "header");
}

static void test_twice_the_same_name(void **state)
{
    (void)state;
    assert_refused("{" ENTRY("w", "F32", "[1]", "[0,4]") "," ENTRY("w", "F32", "[1]", "[4,8]") "}",
                   8, NULL, "w");
}

static void test_overlap(void **state)
{
    (void)state;
    assert_refused("{" ENTRY("a", "F32", "[2]", "[0,8]") "," ENTRY("b", "F32", "[2]", "[4,12]") "}",
                   12, "b", "overlaps");
    assert_refused("{" ENTRY("b", "F32", "[1]", "[4,8]") "," ENTRY("a", "F32", "[3]", "[0,12]") "}",
                   12, "b", "overlaps");
    assert_refused("{" ENTRY("a", "F32", "[1]", "[0,4]") "," ENTRY("b", "F32", "[1]", "[0,4]") "}",
                   4, NULL, "overlaps");
}

static void test_outside_of_the_file(void **state)
{
    (void)state;
    assert_refused("{" ENTRY("w", "F32", "[2]", "[0,8]") "}", 7, "w", "truncated");
    assert_refused("{" ENTRY("w", "F32", "[2]", "[8,16]") "}", 8, "w", "truncated");
    assert_refused("{" ENTRY("w", "F32", "[2]", "[8,0]") "}", 8, "w", "outside");
    assert_refused("{" ENTRY("w", "F32", "[2]", "[-8,0]") "}", 8, "w", "outside");
    assert_refused("{" ENTRY("w", "F32", "[2]", "[0,9223372036854775807]") "}", 8, "w", "outside");
}

static void test_offsets_that_are_none(void **state)
{
    (void)state;
    static const char *VALUES[] = {"null",     "8",         "[]",      "[0]",
                                   "[0,4,8]",  "[0,\"4\"]", "[0.5,4]", "[0,9223372036854775808]",
                                   "{\"0\":4}"};

    assert_refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "w", "data_offsets");
    for (size_t i = 0; i < sizeof(VALUES) / sizeof(VALUES[0]); i++) {
        char header[160];
        snprintf(header, sizeof(header),
                 "{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":%s}}", VALUES[i]);
        assert_refused(header, 4, "w", "data_offsets");
    }
}

static void test_shapes_that_lie(void **state)
{
    (void)state;
    assert_refused("{" ENTRY("w", "F32", "[3]", "[0,8]") "}", 8, "w", "do not match");
    assert_refused("{" ENTRY("w", "F32", "[1]", "[0,8]") "}", 8, "w", "do not match");
    assert_refused("{" ENTRY("w", "F32", "[0]", "[0,8]") "}", 8, "w", "do not match");
    assert_refused("{" ENTRY("w", "F16", "[2]", "[0,8]") "}", 8, "w", "do not match");
    assert_refused("{" ENTRY("w", "F64", "[2]", "[0,8]") "}", 8, "w", "do not match");
    assert_refused("{" ENTRY("w", "F32", "[-2]", "[0,8]") "}", 8, "w", "dimension");
    assert_refused("{" ENTRY("w", "F32", "[2.5]", "[0,8]") "}", 8, "w", "dimension");
    assert_refused("{" ENTRY("w", "F32", "[\"2\"]", "[0,8]") "}", 8, "w", "dimension");
    assert_refused("{" ENTRY("w", "F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]") "}", 8, "w",
                   "8 dimensions");
    assert_refused("{" ENTRY("w", "F32", "2", "[0,8]") "}", 8, "w", "no shape");
    assert_refused("{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "w", "no shape");
}

/* Products that come out right again once they have overflowed. */
static void test_shapes_that_overflow(void **state)
{
    (void)state;
    assert_refused("{" ENTRY("w", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0, "w",
                   "overflows");
    assert_refused("{" ENTRY("w", "F32", "[3,6148914691236517206]", "[0,8]") "}", 8, "w",
                   "overflows");
    /* The elements fit, their bits do not: 2^59 · 32 = 2^64. */
    assert_refused("{" ENTRY("w", "F32", "[576460752303423488]", "[0,0]") "}", 0, "w",
                   "do not match");
    assert_refused("{" ENTRY("w", "F32", "[9223372036854775808]", "[0,8]") "}", 8, "w",
                   "dimension");
}

static void test_dtypes_that_lie(void **state)
{
    (void)state;
    assert_refused("{" ENTRY("w", "F33", "[1]", "[0,4]") "}", 4, "w", "dtype");
    assert_refused("{" ENTRY("w", "", "[1]", "[0,4]") "}", 4, "w", "dtype");
    assert_refused("{\"w\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "w", "dtype");
    assert_refused("{\"w\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "w", "dtype");
    assert_refused("{\"w\":7}", 4, "w", "not described by an object");
    assert_refused("{\"w\":null}", 4, "w", "not described by an object");
}

static void test_paths(void **state)
{
    (void)state;
    struct tensor_file *file;
    struct err err;

    assert_int_equal(tensor_file_open(&file, "/nowhere/a.safetensors", &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_contains(err.message, "/nowhere/a.safetensors");
    assert_int_equal(tensor_file_open(&file, "/dev/null", &err), -1);
    assert_contains(err.message, "/dev/null");
    assert_int_equal(tensor_file_open(&file, "/", &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_a_file_holds),   cmocka_unit_test(test_odd_but_right),
        cmocka_unit_test(test_too_short),           cmocka_unit_test(test_header_lengths_that_lie),
        cmocka_unit_test(test_broken_json),         cmocka_unit_test(test_nesting_is_limited),
        cmocka_unit_test(test_twice_the_same_name), cmocka_unit_test(test_overlap),
        cmocka_unit_test(test_outside_of_the_file), cmocka_unit_test(test_offsets_that_are_none),
        cmocka_unit_test(test_shapes_that_lie),     cmocka_unit_test(test_shapes_that_overflow),
        cmocka_unit_test(test_dtypes_that_lie),     cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
