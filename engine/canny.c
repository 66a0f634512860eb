/*
 * Canny 1986, "A Computational Approach to Edge Detection", in whole numbers, to the bit as OpenCV
 * does it with an 8-bit gray picture: Sobel's 3×3 gradients with the border's pixels repeated,
 * their sum of magnitudes, only ridges across the gradient's direction kept, and of these what is
 * steeper than `high` or connected to such over neighbours that are steeper than `low`.
 */
#include "engine/canny.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* tan(22.5°) in 15 bits: directions are told apart in four sectors. */
#define TAN_BITS 15
#define TAN_22 13573

enum mark { MARK_NONE, MARK_WEAK, MARK_EDGE };

struct canny {
    int width, height;
    uint8_t *gray;
    int16_t *dx, *dy;
    int32_t *magnitude; /* with a border of one pixel of zeros */
    uint8_t *marks;
    int32_t *stack; /* pixels that are edges and whose neighbours were not looked at */
    size_t stacked;
};

static void canny_release(struct canny *c)
{
    free(c->gray);
    free(c->dx);
    free(c->dy);
    free(c->magnitude);
    free(c->marks);
    free(c->stack);
}

static int canny_init(struct canny *c, const struct image *image)
{
    size_t pixels = (size_t)image->width * (size_t)image->height;

    *c = (struct canny){.width = image->width, .height = image->height};
    c->gray = malloc(pixels);
    c->dx = malloc(pixels * sizeof(c->dx[0]));
    c->dy = malloc(pixels * sizeof(c->dy[0]));
    c->magnitude =
        calloc(((size_t)c->width + 2) * ((size_t)c->height + 2), sizeof(c->magnitude[0]));
    c->marks = calloc(pixels, 1);
    c->stack = malloc(pixels * sizeof(c->stack[0]));
    return c->gray && c->dx && c->dy && c->magnitude && c->marks && c->stack ? 0 : -1;
}

/* ITU-R 601-2 in 15 bits, as OpenCV rounds it. */
static void to_gray(struct canny *c, const struct image *image)
{
    size_t pixels = (size_t)c->width * (size_t)c->height;

    for (size_t i = 0; i < pixels; i++) {
        const uint8_t *p = image->rgb + 3 * i;
        c->gray[i] = (uint8_t)((p[0] * 9798u + p[1] * 19235u + p[2] * 3735u + (1u << 14)) >> 15);
    }
}

static int clamp(int v, int count)
{
    return v < 0 ? 0 : v >= count ? count - 1 : v;
}

static int gray_at(const struct canny *c, int y, int x)
{
    return c->gray[(size_t)clamp(y, c->height) * (size_t)c->width + (size_t)clamp(x, c->width)];
}

/* The magnitude's place; one step to each side is within the border. */
static int32_t *magnitude_at(const struct canny *c, int y, int x)
{
    return c->magnitude + (ptrdiff_t)(y + 1) * (c->width + 2) + x + 1;
}

static void find_gradients(struct canny *c)
{
    for (int y = 0; y < c->height; y++)
        for (int x = 0; x < c->width; x++) {
            size_t at = (size_t)y * (size_t)c->width + (size_t)x;
            int dx = 0, dy = 0;
            for (int i = -1; i <= 1; i++) {
                int weight = i == 0 ? 2 : 1;
                dx += weight * (gray_at(c, y + i, x + 1) - gray_at(c, y + i, x - 1));
                dy += weight * (gray_at(c, y + 1, x + i) - gray_at(c, y - 1, x + i));
            }
            c->dx[at] = (int16_t)dx;
            c->dy[at] = (int16_t)dy;
            *magnitude_at(c, y, x) = abs(dx) + abs(dy);
        }
}

/* Whether a pixel is the steepest across the edge; of two that are alike the first one is. */
static bool is_ridge(const struct canny *c, int y, int x)
{
    size_t at = (size_t)y * (size_t)c->width + (size_t)x;
    const int32_t *m = magnitude_at(c, y, x), row = c->width + 2;
    int dx = abs(c->dx[at]), dy = abs(c->dy[at]) << TAN_BITS;
    int flat = dx * TAN_22, steep = flat + (dx << (TAN_BITS + 1));
    int side = (c->dx[at] ^ c->dy[at]) < 0 ? -1 : 1;

    if (dy < flat)
        return *m > m[-1] && *m >= m[1];
    if (dy > steep)
        return *m > m[-row] && *m >= m[row];
    return *m > m[-row - side] && *m > m[row + side];
}

static void mark_edge(struct canny *c, size_t at)
{
    c->marks[at] = MARK_EDGE;
    c->stack[c->stacked++] = (int32_t)at;
}

static void find_ridges(struct canny *c, int low, int high)
{
    for (int y = 0; y < c->height; y++)
        for (int x = 0; x < c->width; x++) {
            size_t at = (size_t)y * (size_t)c->width + (size_t)x;
            int m = *magnitude_at(c, y, x);
            if (m <= low || !is_ridge(c, y, x))
                continue;
            c->marks[at] = MARK_WEAK;
            if (m > high)
                mark_edge(c, at);
        }
}

/* What is weak beside an edge becomes one. */
static void follow_edges(struct canny *c)
{
    while (c->stacked > 0) {
        int at = c->stack[--c->stacked], y = at / c->width, x = at % c->width;
        for (int i = y > 0 ? y - 1 : 0; i <= y + 1 && i < c->height; i++)
            for (int j = x > 0 ? x - 1 : 0; j <= x + 1 && j < c->width; j++) {
                size_t beside = (size_t)i * (size_t)c->width + (size_t)j;
                if (c->marks[beside] == MARK_WEAK)
                    mark_edge(c, beside);
            }
    }
}

int canny_apply(struct image *image, double low, double high, struct err *err)
{
    size_t pixels = (size_t)image->width * (size_t)image->height;
    struct canny c;

    if (canny_init(&c, image) != 0) {
        canny_release(&c);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to find a picture's edges");
    }
    to_gray(&c, image);
    find_gradients(&c);
    find_ridges(&c, (int)floor(fmin(low, high)), (int)floor(fmax(low, high)));
    follow_edges(&c);
    for (size_t i = 0; i < 3 * pixels; i++)
        image->rgb[i] = c.marks[i / 3] == MARK_EDGE ? 255 : 0;
    canny_release(&c);
    return 0;
}
