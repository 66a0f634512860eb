#include "worker/exif.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TAG_ORIENTATION 0x0112
#define TYPE_SHORT 3
#define ENTRY_BYTES 12

struct tiff {
    const unsigned char *bytes;
    size_t len;
    bool little;
};

/* `size` bytes at `at`, which are there. */
static uint32_t number_at(const struct tiff *t, size_t at, int size)
{
    uint32_t value = 0;
    for (int i = 0; i < size; i++)
        value = value << 8 | t->bytes[at + (size_t)(t->little ? size - 1 - i : i)];
    return value;
}

int exif_orientation(const unsigned char *bytes, size_t len)
{
    struct tiff t = {.bytes = bytes, .len = len, .little = len > 0 && bytes[0] == 'I'};
    if (len < 8 || (memcmp(bytes, "II", 2) != 0 && memcmp(bytes, "MM", 2) != 0))
        return 1;
    size_t at = number_at(&t, 4, 4);
    if (at > len || len - at < 2)
        return 1;
    size_t count = number_at(&t, at, 2);
    for (at += 2; count > 0 && len - at >= ENTRY_BYTES; count--, at += ENTRY_BYTES) {
        if (number_at(&t, at, 2) != TAG_ORIENTATION || number_at(&t, at + 2, 2) != TYPE_SHORT)
            continue;
        int value = (int)number_at(&t, at + 8, 2);
        return value >= 1 && value <= 8 ? value : 1;
    }
    return 1;
}

/* From 5 on rows become columns; the mirrored ones are told by where the first pixel goes. */
int image_upright(struct image *image, int orientation, struct err *err)
{
    const int w = image->width, h = image->height;
    const bool turned = orientation >= 5;
    const bool from_right =
        orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_below =
        orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    struct image upright = {.width = turned ? h : w, .height = turned ? w : h};
    if (orientation <= 1)
        return 0;
    upright.rgb = malloc((size_t)w * (size_t)h * 3);
    if (!upright.rgb)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to turn a picture");
    uint8_t *to = upright.rgb;
    for (int y = 0; y < upright.height; y++)
        for (int x = 0; x < upright.width; x++, to += 3) {
            int column = turned ? y : x, row = turned ? x : y;
            column = from_right ? w - 1 - column : column;
            row = from_below ? h - 1 - row : row;
            memcpy(to, image->rgb + ((size_t)row * (size_t)w + (size_t)column) * 3, 3);
        }
    image_release(image);
    *image = upright;
    return 0;
}
