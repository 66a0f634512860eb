/*
 * Two passes, each rounded to bytes. A pixel's weights are the filter's values at the
 * pixels within its support, normalized, in fixed point of 22 bits: what Pillow's Resample.c does
 * with 8-bit pictures, whose results diffusers feeds its networks. Which pass goes first shows in
 * the last bit: that of the rows, but, from Pillow 13 on, not where the height loses more than
 * twice as many pixels as the width. Source: Duchon 1979, "Lanczos Filtering in One and Two
 * Dimensions", for the filter.
 */
#include "engine/resize.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define LOBES 3.0
#define PRECISION_BITS 22 /* 32 less 8 of a sample and 2 of headroom */

/* From which pixels one is made, and by how much of each. */
struct tap {
    int first, count;
    const int32_t *weights; /* [count] */
};

struct taps {
    struct tap *taps; /* one per pixel of the result */
    int32_t *weights; /* `most` each */
};

static double sinc(double x)
{
    return x == 0 ? 1 : sin(x * M_PI) / (x * M_PI);
}

static double lanczos(double x)
{
    return x >= -LOBES && x < LOBES ? sinc(x) * sinc(x / LOBES) : 0;
}

static int32_t to_fixed(double weight)
{
    return (int32_t)(weight < 0 ? weight * (1 << PRECISION_BITS) - 0.5
                                : weight * (1 << PRECISION_BITS) + 0.5);
}

/* Pixel `i` of a size that is `scale` times smaller than `from`, which is shrunk where scale > 1.
 */
static void make_tap(struct tap *tap, int32_t *weights, double *values, int i, int from,
                     double scale)
{
    double stretch = scale < 1 ? 1 : scale, support = LOBES * stretch;
    double center = (i + 0.5) * scale, sum = 0;
    int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);

    first = first < 0 ? 0 : first;
    end = end > from ? from : end;
    *tap = (struct tap){.first = first, .count = end - first, .weights = weights};
    for (int j = 0; j < tap->count; j++) {
        values[j] = lanczos((j + first - center + 0.5) * (1 / stretch));
        sum += values[j];
    }
    for (int j = 0; j < tap->count; j++)
        weights[j] = to_fixed(sum != 0 ? values[j] / sum : values[j]);
}

static void taps_release(struct taps *taps)
{
    free(taps->taps);
    free(taps->weights);
}

static int taps_make(struct taps *taps, int from, int to)
{
    double scale = (double)from / to, stretch = scale < 1 ? 1 : scale;
    size_t most = 2 * (size_t)ceil(LOBES * stretch) + 1;
    double *values = malloc(most * sizeof(*values));

    taps->taps = malloc((size_t)to * sizeof(*taps->taps));
    taps->weights = malloc((size_t)to * most * sizeof(*taps->weights));
    if (values == NULL || taps->taps == NULL || taps->weights == NULL) {
        free(values);
        taps_release(taps);
        return -1;
    }
    for (int i = 0; i < to; i++)
        make_tap(&taps->taps[i], taps->weights + (size_t)i * most, values, i, from, scale);
    free(values);
    return 0;
}

/* One sample out of those at `from`, `stride` bytes apart. */
static uint8_t resample(const struct tap *tap, const uint8_t *from, size_t stride)
{
    int32_t sum = 1 << (PRECISION_BITS - 1);

    for (int j = 0; j < tap->count; j++)
        sum += tap->weights[j] * from[(size_t)j * stride];
    sum >>= PRECISION_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* Every row in another width. */
static int resize_rows(const struct image *from, struct image *to)
{
    struct taps taps;

    if (taps_make(&taps, from->width, to->width) != 0)
        return -1;
    for (int y = 0; y < to->height; y++)
        for (int x = 0; x < to->width; x++)
            for (int c = 0; c < 3; c++) {
                const struct tap *tap = &taps.taps[x];
                size_t at = (size_t)y * (size_t)from->width + (size_t)tap->first;
                to->rgb[((size_t)y * (size_t)to->width + (size_t)x) * 3 + (size_t)c] =
                    resample(tap, from->rgb + at * 3 + c, 3);
            }
    taps_release(&taps);
    return 0;
}

/* Every column in another height. */
static int resize_columns(const struct image *from, struct image *to)
{
    size_t row = 3 * (size_t)to->width;
    struct taps taps;

    if (taps_make(&taps, from->height, to->height) != 0)
        return -1;
    for (int y = 0; y < to->height; y++)
        for (size_t i = 0; i < row; i++) {
            const struct tap *tap = &taps.taps[y];
            to->rgb[(size_t)y * row + i] =
                resample(tap, from->rgb + (size_t)tap->first * row + i, row);
        }
    taps_release(&taps);
    return 0;
}

static int resize_pass(const struct image *from, int width, int height, struct image *to)
{
    *to = (struct image){
        .width = width, .height = height, .rgb = malloc((size_t)width * (size_t)height * 3)};
    if (to->rgb == NULL)
        return -1;
    if (width != from->width)
        return resize_rows(from, to);
    if (height != from->height)
        return resize_columns(from, to);
    memcpy(to->rgb, from->rgb, (size_t)width * (size_t)height * 3);
    return 0;
}

int image_resize(const struct image *from, int width, int height, struct image *to, struct err *err)
{
    int lost = from->height - height;
    bool columns_first = lost > 0 && lost > 2 * (from->width - width);
    struct image between = {0};

    *to = (struct image){0};
    if (resize_pass(from, columns_first ? from->width : width,
                    columns_first ? height : from->height, &between) == 0 &&
        resize_pass(&between, width, height, to) == 0) {
        image_release(&between);
        return 0;
    }
    image_release(&between);
    image_release(to);
    return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to resize a picture to %d × %d", width,
                   height);
}
