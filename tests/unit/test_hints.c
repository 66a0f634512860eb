/* Pictures that guide: in another size as Pillow makes them, and their edges as OpenCV finds them,
 * to the byte. tools/golden/make_hints.py made what they are held against. */
#include "engine/canny.h"
#include "engine/resize.h"
#include "engine/tensor_file.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/golden/hints.safetensors"

static struct tensor_file *golden;

static int open_golden(void **state)
{
    struct err err;

    (void)state;
    return tensor_file_open(&golden, GOLDEN, &err);
}

static int close_golden(void **state)
{
    (void)state;
    tensor_file_close(golden);
    return 0;
}

static uint8_t value(const struct stored_tensor *t, size_t i)
{
    return (uint8_t)element_to_f32(t->data, t->dtype, i);
}

static struct image picture(void)
{
    const struct stored_tensor *t = tensor_file_find(golden, "picture");
    struct image image = {
        .width = (int)t->dims[1], .height = (int)t->dims[0], .rgb = malloc((size_t)t->count)};

    for (size_t i = 0; i < (size_t)t->count; i++)
        image.rgb[i] = value(t, i);
    return image;
}

/* Tensors whose names begin with `kind`. */
static const struct stored_tensor *next(const char *kind, size_t *at)
{
    while (*at < tensor_file_count(golden)) {
        const struct stored_tensor *t = tensor_file_at(golden, (*at)++);
        if (strncmp(t->name, kind, strlen(kind)) == 0)
            return t;
    }
    return NULL;
}

static void test_other_sizes(void **state)
{
    const struct stored_tensor *t;
    struct image from = picture(), to;
    size_t at = 0, sizes = 0;
    struct err err;

    (void)state;
    for (; (t = next("resize.", &at)) != NULL; sizes++) {
        assert_int_equal(image_resize(&from, (int)t->dims[1], (int)t->dims[0], &to, &err), 0);
        for (size_t i = 0; i < (size_t)t->count; i++)
            if (to.rgb[i] != value(t, i))
                fail_msg("%s: value %zu is %d, Pillow has %d", t->name, i, to.rgb[i], value(t, i));
        image_release(&to);
    }
    assert_int_equal(sizes, 6);
    image_release(&from);
}

static void test_the_same_size(void **state)
{
    struct image from = picture(), to;
    struct err err;

    (void)state;
    assert_int_equal(image_resize(&from, from.width, from.height, &to, &err), 0);
    assert_memory_equal(from.rgb, to.rgb, (size_t)(3 * from.width * from.height));
    image_release(&to);
    image_release(&from);
}

static void test_edges(void **state)
{
    const struct stored_tensor *t;
    size_t at = 0, sets = 0;
    double low, high;
    struct err err;

    (void)state;
    for (; (t = next("canny.", &at)) != NULL; sets++) {
        struct image image = picture();
        int edges = 0;
        assert_int_equal(sscanf(t->name, "canny.%lf-%lf", &low, &high), 2);
        assert_int_equal(canny_apply(&image, low, high, &err), 0);
        for (size_t i = 0; i < (size_t)t->count; i++) {
            for (size_t c = 0; c < 3; c++)
                if (image.rgb[3 * i + c] != value(t, i))
                    fail_msg("%s: pixel %zu is %d, OpenCV has %d", t->name, i, image.rgb[3 * i + c],
                             value(t, i));
            edges += image.rgb[3 * i] == 255;
        }
        assert_true(edges > 20);
        image_release(&image);
    }
    assert_int_equal(sets, 4);
}

static void test_small_pictures(void **state)
{
    uint8_t pixels[] = {0, 0, 0, 255, 255, 255, 0, 9, 3};
    struct err err;

    (void)state;
    for (int width = 1; width <= 3; width++) {
        struct image image = {.width = width, .height = 1, .rgb = malloc(9)}, large;
        memcpy(image.rgb, pixels, 9);
        assert_int_equal(image_resize(&image, 64, 72, &large, &err), 0);
        assert_int_equal(canny_apply(&image, 100, 200, &err), 0);
        image_release(&large);
        image_release(&image);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_other_sizes),
        cmocka_unit_test(test_the_same_size),
        cmocka_unit_test(test_edges),
        cmocka_unit_test(test_small_pictures),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
