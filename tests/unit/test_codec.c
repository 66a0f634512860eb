#include "worker/codec.h"
#include "worker/exif.h"
#include "worker/input.h"

#include "tests/unit/unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct err err;

static struct image picture(int width, int height)
{
    struct image image;
    assert_int_equal(codec_image_make(&image, (size_t)width, (size_t)height, &err), 0);
    for (int i = 0; i < width * height; i++) {
        image.rgb[3 * i] = (uint8_t)(i % width * 255 / width);
        image.rgb[3 * i + 1] = (uint8_t)(i / width * 255 / height);
        image.rgb[3 * i + 2] = 128;
    }
    return image;
}

static double difference(const struct image *a, const struct image *b)
{
    double sum = 0;
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    for (int i = 0; i < a->width * a->height * 3; i++)
        sum += abs(a->rgb[i] - b->rgb[i]);
    return sum / (a->width * a->height * 3);
}

static const char *const formats[] = {"png", "jpeg", "webp"};

static void encode(const struct image *image, const char *format, const char *request,
                   struct buf *out)
{
    buf_init(out, CODEC_FILE_MAX_BYTES);
    if (codec_encode(image, format, 95, request, out, &err) != 0)
        fail_msg("%s: %s", format, err.message);
}

static void test_pictures_come_back(void **state)
{
    (void)state;
    static const int sizes[][2] = {{1, 1}, {7, 13}, {64, 64}, {200, 8}};
    for (size_t s = 0; s < 4; s++)
        for (size_t f = 0; f < 3; f++) {
            struct image image = picture(sizes[s][0], sizes[s][1]), back;
            struct buf out;
            encode(&image, formats[f], NULL, &out);
            assert_int_equal(codec_decode(&back, out.data, out.len, &err), 0);
            double d = difference(&image, &back);
            assert_true(f == 0 ? d == 0 : d < 12);
            buf_release(&out);
            image_release(&image);
            image_release(&back);
        }
}

static void test_the_request_travels_along(void **state)
{
    (void)state;
    char *request = malloc(200001);
    memset(request, 'q', 200000);
    request[200000] = '\0';
    memcpy(request, "{\"prompt\":\"caf\xC3\xA9\"}", 18);
    struct image image = picture(16, 16), back;
    for (size_t f = 0; f < 3; f++) {
        struct buf out;
        encode(&image, formats[f], request, &out);
        assert_non_null(memmem(out.data, out.len, "{\"prompt\":\"caf\xC3\xA9\"}", 18));
        if (f == 0)
            assert_non_null(memmem(out.data, out.len, "iTXtatelier", 12));
        assert_int_equal(codec_decode(&back, out.data, out.len, &err), 0);
        image_release(&back);
        buf_release(&out);
    }
    image_release(&image);
    free(request);
}

static void test_cut_files_are_errors(void **state)
{
    (void)state;
    struct image image = picture(64, 48), back;
    for (size_t f = 0; f < 3; f++) {
        struct buf out;
        encode(&image, formats[f], "{}", &out);
        /* The last bytes may be beyond what a picture needs: an end marker, padding. */
        for (size_t len = 0; len + 16 < out.len; len += 1 + len / 50) {
            if (codec_decode(&back, out.data, len, &err) == 0)
                fail_msg("%s cut at %zu of %zu was taken", formats[f], len, out.len);
            assert_int_equal(err.class, ERR_REJECT);
            assert_null(back.rgb);
        }
        buf_release(&out);
    }
    image_release(&image);
}

static void test_damaged_files_do_no_harm(void **state)
{
    (void)state;
    struct image image = picture(40, 40), back;
    srandom(7);
    for (size_t f = 0; f < 3; f++) {
        struct buf out;
        encode(&image, formats[f], "{}", &out);
        for (int i = 0; i < 1500; i++) {
            size_t at = (size_t)random() % out.len;
            char was = out.data[at];
            out.data[at] = (char)random();
            if (codec_decode(&back, out.data, out.len, &err) == 0)
                image_release(&back);
            else
                assert_null(back.rgb);
            out.data[at] = was;
        }
        buf_release(&out);
    }
    image_release(&image);
}

/* A picture of four corners, 16 × 8, as a JPEG that says how the camera was held. */
static void write_held(struct buf *out, int orientation, bool little)
{
    static const uint8_t CORNERS[4] = {10, 90, 170, 250};
    const unsigned char o = (unsigned char)orientation;
    const unsigned char big_endian[] = {0xff, 0xe1, 0, 34, 'E', 'x', 'i', 'f', 0, 0,    'M', 'M',
                                        0,    42,   0, 0,  0,   8,   0,   1,   1, 0x12, 0,   3,
                                        0,    0,    0, 1,  0,   o,   0,   0,   0, 0,    0,   0};
    const unsigned char little_endian[] = {0xff, 0xe1, 0, 34, 'E', 'x', 'i', 'f', 0,    0, 'I', 'I',
                                           42,   0,    8, 0,  0,   0,   1,   0,   0x12, 1, 3,   0,
                                           1,    0,    0, 0,  o,   0,   0,   0,   0,    0, 0,   0};
    struct image image = {.width = 16, .height = 8, .rgb = malloc(16 * 8 * 3)};
    struct buf plain;
    assert_non_null(image.rgb);
    for (int y = 0; y < 8; y++)
        for (int x = 0; x < 16; x++)
            memset(image.rgb + (y * 16 + x) * 3, CORNERS[y / 4 * 2 + x / 8], 3);
    buf_init(&plain, 1 << 20);
    assert_int_equal(codec_encode(&image, "jpeg", 100, NULL, &plain, &err), 0);
    image_release(&image);
    buf_append(out, plain.data, 2);
    buf_append(out, little ? little_endian : big_endian, 36);
    buf_append(out, plain.data + 2, plain.len - 2);
    buf_release(&plain);
}

static void test_photographs_come_upright(void **state)
{
    static const char *const UPRIGHT[9] = {"",     "abcd", "badc", "dcba", "cdab",
                                           "acbd", "cadb", "dbca", "bdac"};
    (void)state;
    for (int o = 1; o <= 8; o++) {
        struct image image;
        struct buf file;
        char corners[5] = "";
        buf_init(&file, 1 << 20);
        write_held(&file, o, o % 2);
        assert_int_equal(codec_decode(&image, file.data, file.len, &err), 0);
        assert_int_equal(image.width, o < 5 ? 16 : 8);
        assert_int_equal(image.height, o < 5 ? 8 : 16);
        for (int i = 0; i < 4; i++) {
            int x = image.width / 4 + i % 2 * image.width / 2;
            int y = image.height / 4 + i / 2 * image.height / 2;
            corners[i] = (char)('a' + image.rgb[(y * image.width + x) * 3] / 80);
        }
        assert_string_equal(corners, UPRIGHT[o]);
        image_release(&image);
        buf_release(&file);
    }
}

static void test_damaged_exif_is_passed_over(void **state)
{
    unsigned char bytes[] = {'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12,
                             1,   3,   0,  1, 0, 0, 0, 6, 0, 0, 0};
    (void)state;
    assert_int_equal(exif_orientation(bytes, sizeof(bytes)), 6);
    for (size_t len = 0; len < sizeof(bytes) - 2; len++)
        assert_in_range(exif_orientation(bytes, len), 1, 1);
    bytes[18] = 9;
    assert_int_equal(exif_orientation(bytes, sizeof(bytes)), 1);
    memset(bytes + 4, 0xff, 4);
    assert_int_equal(exif_orientation(bytes, sizeof(bytes)), 1);
}

static void test_bombs_are_refused(void **state)
{
    (void)state;
    struct image image = picture(8, 8), back;
    struct buf out;
    encode(&image, "png", NULL, &out);
    /* Width and height of the header, and its checksum. */
    static const unsigned char size[] = {0, 0, 0x30, 0, 0, 0, 0x30, 0, 8, 2, 0, 0, 0};
    memcpy(out.data + 16, size, sizeof(size));
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 12; i < 29; i++) {
        crc ^= (unsigned char)out.data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xEDB88320 & -(crc & 1));
    }
    crc = ~crc;
    for (int i = 0; i < 4; i++)
        out.data[29 + i] = (char)(crc >> (24 - 8 * i));
    assert_int_equal(codec_decode(&back, out.data, out.len, &err), -1);
    assert_int_equal(err.code, ERR_LIMIT);
    assert_contains(err.message, "12288×12288");
    buf_release(&out);
    image_release(&image);
}

static void test_other_files_are_named_as_such(void **state)
{
    (void)state;
    struct image image;
    assert_int_equal(codec_decode(&image, "", 0, &err), -1);
    assert_contains(err.message, "empty");
    assert_int_equal(codec_decode(&image, "GIF89a...", 9, &err), -1);
    assert_contains(err.message, "neither PNG, JPEG nor WebP");
}

static void test_inputs(void **state)
{
    (void)state;
    /* A PNG of one red pixel. */
    static const char uri[] =
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAF"
        "BQIAX8jx0gAAAABJRU5ErkJggg==";
    struct image image;
    if (input_image(&image, uri, ".", &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(image.width, 1);
    assert_true(image.rgb[0] > 200 && image.rgb[1] < 60);
    image_release(&image);
    assert_int_equal(input_image(&image, "data:image/png;base64,!!!", ".", &err), -1);
    assert_contains(err.message, "base64");
    assert_int_equal(input_image(&image, "no/such.png", "tests", &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_contains(err.message, "tests/no/such.png");
    assert_int_equal(input_image(&image, "unit", "tests", &err), -1);
    assert_int_equal(err.class, ERR_REJECT);
    assert_int_equal(input_image(&image, "unit/test_codec.c", "tests", &err), -1);
    assert_contains(err.message, "unit/test_codec.c: neither");
    assert_int_equal(input_image(&image, "s3://b/k", ".", &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pictures_come_back),
        cmocka_unit_test(test_the_request_travels_along),
        cmocka_unit_test(test_cut_files_are_errors),
        cmocka_unit_test(test_damaged_files_do_no_harm),
        cmocka_unit_test(test_photographs_come_upright),
        cmocka_unit_test(test_damaged_exif_is_passed_over),
        cmocka_unit_test(test_bombs_are_refused),
        cmocka_unit_test(test_other_files_are_named_as_such),
        cmocka_unit_test(test_inputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
