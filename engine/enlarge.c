/*
 * Every kind weighs at most four pixels along each axis, rows and columns by themselves; beyond the
 * edge stands the pixel at the edge. Places and weights are f32, as torch has them on a CPU
 * (ATen/native/UpSample.h). The cubic is Keys 1981, "Cubic Convolution Interpolation for Digital
 * Image Processing", with a = -0.75.
 */
#include "engine/enlarge.h"

#include <math.h>
#include <string.h>

#define TAPS_MAX 4
#define CUBIC_A (-0.75f)

struct tap {
    int count;
    int at[TAPS_MAX];
    float weights[TAPS_MAX];
};

static const char *const names[ENLARGE_COUNT] = {
    [ENLARGE_BILINEAR] = "latent",
    [ENLARGE_NEAREST] = "latent-nearest",
    [ENLARGE_NEAREST_EXACT] = "latent-nearest-exact",
    [ENLARGE_BICUBIC] = "latent-bicubic",
};

int enlargement_by_name(const char *name)
{
    for (int i = 0; i < ENLARGE_COUNT; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

/* Keys' kernel at a distance of at most 1, and of 1 to 2. */
static float cubic_near(float x)
{
    return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1;
}

static float cubic_far(float x)
{
    return ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A;
}

static int clamp(int at, int size)
{
    return at < 0 ? 0 : at >= size ? size - 1 : at;
}

/* What pixel `i` of `to` is made of, out of `from` pixels. */
static struct tap tap_of(enum enlargement kind, int i, int from, int to)
{
    float scale = (float)from / (float)to;
    float place = ((float)i + 0.5f) * scale - 0.5f;
    struct tap tap = {.count = 1, .weights = {1}};
    int first = 0;

    switch (kind) {
    case ENLARGE_NEAREST:
        first = (int)floorf((float)i * scale);
        break;
    case ENLARGE_NEAREST_EXACT:
        first = (int)floorf(((float)i + 0.5f) * scale);
        break;
    case ENLARGE_BICUBIC: {
        float part = place - floorf(place);
        first = (int)floorf(place) - 1;
        tap = (struct tap){.count = 4,
                           .weights = {cubic_far(part + 1), cubic_near(part), cubic_near(1 - part),
                                       cubic_far(2 - part)}};
        break;
    }
    default: {
        place = fmaxf(place, 0);
        first = (int)place;
        float part = place - (float)first;
        tap = (struct tap){.count = 2, .weights = {1 - part, part}};
        break;
    }
    }
    for (int j = 0; j < tap.count; j++)
        tap.at[j] = clamp(first + j, from);
    return tap;
}

static float weigh(const struct tap *row, const struct tap *column, const float *plane, int width)
{
    float sum = 0;

    for (int y = 0; y < row->count; y++) {
        const float *line = plane + (size_t)row->at[y] * (size_t)width;
        float part = 0;
        for (int x = 0; x < column->count; x++)
            part += column->weights[x] * line[column->at[x]];
        sum += row->weights[y] * part;
    }
    return sum;
}

void latents_enlarge(enum enlargement kind, const float *from, int from_h, int from_w, float *to,
                     int to_h, int to_w, int planes)
{
    struct tap columns[ENLARGE_SIZE_MAX];

    ASSERT(to_w <= ENLARGE_SIZE_MAX);
    for (int x = 0; x < to_w; x++)
        columns[x] = tap_of(kind, x, from_w, to_w);
    for (int p = 0; p < planes; p++, from += (size_t)from_h * (size_t)from_w)
        for (int y = 0; y < to_h; y++) {
            struct tap row = tap_of(kind, y, from_h, to_h);
            for (int x = 0; x < to_w; x++)
                *to++ = weigh(&row, &columns[x], from, from_w);
        }
}
