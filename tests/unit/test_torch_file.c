/* A file that torch.save wrote, whole, and damaged in every place. */
#include "engine/tensor_file.h"

#include "tests/unit/unit.h"

#include "common/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ODD "tests/golden/models/torch/odd.pt"
#define NAME "some.pt"

static void read_odd(struct buf *bytes)
{
    struct err err;

    buf_init(bytes, 1u << 20);
    assert_int_equal(file_read(bytes, ODD, &err), 0);
}

static const struct stored_tensor *find(const struct tensor_file *file, const char *name, int rank,
                                        int64_t count, const char *type)
{
    const struct stored_tensor *t = tensor_file_find(file, name);

    assert_non_null(t);
    assert_int_equal(t->rank, rank);
    assert_int_equal(t->count, count);
    assert_string_equal(t->type, type);
    return t;
}

static void assert_values(const struct stored_tensor *t, const float *expected)
{
    for (int64_t i = 0; i < t->count; i++)
        assert_true(element_to_f32(t->data, t->dtype, (size_t)i) == expected[i]);
}

/* x counts from 0 in the shape (2, 3, 4); tools/golden/make_torch_file.py. */
static void test_tensors_in_any_order(void **state)
{
    static const float CUT[] = {4, 5, 6, 7, 16, 17, 18, 19};
    float counted[24], turned[24];
    struct tensor_file *file;
    struct err err;

    (void)state;
    for (int i = 0; i < 24; i++) {
        counted[i] = (float)i;
        turned[i] = (float)(i % 2 * 12 + i / 2 % 3 * 4 + i / 6);
    }
    assert_int_equal(tensor_file_open(&file, ODD, &err), 0);
    assert_int_equal(tensor_file_count(file), 7); /* of the state_dict alone */
    assert_values(find(file, "plain", 3, 24, "F32"), counted);
    assert_values(find(file, "turned", 3, 24, "F32"), turned);
    assert_values(find(file, "cut", 2, 8, "F32"), CUT);
    assert_values(find(file, "parameter", 3, 24, "F16"), counted);
    assert_values(find(file, "shifted", 2, 12, "BF16"), counted + 12);
    find(file, "empty", 3, 0, "F32");
    assert_false(find(file, "number", 0, 1, "I64")->usable);
    tensor_file_close(file);
}

static void test_what_it_says_of_itself(void **state)
{
    struct tensor_file *file;
    int64_t number = 0;
    struct err err;

    (void)state;
    assert_int_equal(tensor_file_open(&file, ODD, &err), 0);
    assert_string_equal(tensor_file_metadata(file, "name"), "odd");
    assert_null(tensor_file_metadata(file, "global_step"));
    assert_true(tensor_file_number(file, "global_step", &number));
    assert_int_equal(number, 875000);
    assert_true(tensor_file_number(file, "number", &number));
    assert_int_equal(number, 7);
    assert_false(tensor_file_number(file, "plain", &number));
    tensor_file_close(file);
}

/* Opens a copy that ends where its memory does, and reads all that it hands out. */
static bool opens(const void *bytes, size_t len)
{
    static volatile float sum;
    struct tensor_file *file;
    void *copy = malloc(len + 1);
    struct err err;
    bool good;

    memcpy(copy, bytes, len);
    good = tensor_file_open_memory(&file, copy, len, NAME, &err) == 0;
    if (!good)
        assert_contains(err.message, NAME);
    for (size_t i = 0; good && i < tensor_file_count(file); i++) {
        const struct stored_tensor *t = tensor_file_at(file, i);
        for (int64_t k = 0; t->usable && k < t->count; k++)
            sum += element_to_f32(t->data, t->dtype, (size_t)k);
    }
    if (good)
        tensor_file_close(file);
    free(copy);
    return good;
}

static void test_truncated(void **state)
{
    struct buf bytes;

    (void)state;
    read_odd(&bytes);
    assert_true(opens(bytes.data, bytes.len));
    for (size_t len = 0; len < bytes.len; len++)
        assert_false(opens(bytes.data, len));
    buf_release(&bytes);
}

/* Whatever a byte becomes, what is handed out lies inside of the file. */
static void test_each_byte_changed(void **state)
{
    static const char CHANGES[] = {1, 0x10, (char)0x80, (char)0xff};
    size_t refused = 0;
    struct buf bytes;

    (void)state;
    read_odd(&bytes);
    for (size_t i = 0; i < bytes.len; i++)
        for (size_t k = 0; k < sizeof(CHANGES); k++) {
            bytes.data[i] ^= CHANGES[k];
            refused += !opens(bytes.data, bytes.len);
            bytes.data[i] ^= CHANGES[k];
        }
    assert_true(refused > bytes.len / 2);
    buf_release(&bytes);
}

static void assert_refused(const void *bytes, size_t len, const char *problem)
{
    struct tensor_file *file;
    struct err err;

    assert_int_equal(tensor_file_open_memory(&file, bytes, len, NAME, &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, NAME);
    assert_contains(err.message, problem);
}

static void test_what_is_not_read(void **state)
{
    static const unsigned char OLD[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                        0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};
    struct buf bytes;
    char *folder;

    (void)state;
    assert_refused(OLD, sizeof(OLD), "before 1.6");
    read_odd(&bytes);
    /* An archive whose pickle has another name. */
    while ((folder = memmem(bytes.data, bytes.len, "data.pkl", 8)) != NULL)
        memcpy(folder, "data.bin", 8);
    assert_refused(bytes.data, bytes.len, "no data.pkl");
    buf_release(&bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors_in_any_order),
        cmocka_unit_test(test_what_it_says_of_itself),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_each_byte_changed),
        cmocka_unit_test(test_what_is_not_read),
    };

    return cmocka_run_group_tests_name("torch_file", tests, NULL, NULL);
}
