/*
 * product_copy.h: how x and w come to shared memory for the products on tensor cores, a stage of
 * DEPTH elements of k at a time.
 *
 * Each thread copies one 16-byte part of every APART-th row. What does not change from stage to
 * stage is found before the first one, since these few instructions stand between two stages'
 * products.
 */
#ifndef ATELIER_ENGINE_CUDA_PRODUCT_COPY_H
#define ATELIER_ENGINE_CUDA_PRODUCT_COPY_H

#include "engine/cuda/product.h"

#define NOWHERE (-16) /* the y of a row past the end: above its picture under every tap */

/* Where in k a stage begins: channel c of tap (ky, kx), which is `base` elements into a row of w.
 * One tap comes after another, and then the next channels: neighbouring taps read nearly the same
 * of x, which is then still in the first cache. */
struct walk {
    int ky, kx, c, base;
};

/* At its `stage`-th step. */
static __device__ __forceinline__ struct walk walk_from(const struct product *p, int stage,
                                                        int depth)
{
    int taps = p->kernel * p->kernel, tap = stage % taps;

    return {tap / p->kernel, tap % p->kernel, stage / taps * depth, tap * p->in};
}

static __device__ __forceinline__ void walk_on(const struct product *p, struct walk *w, int depth)
{
    w->base += p->in;
    if (++w->kx < p->kernel)
        return;
    w->kx = 0;
    if (++w->ky < p->kernel)
        return;
    w->ky = 0;
    w->base = 0;
    w->c += depth;
}

/* `Layout::at(row, part)` is where a part lies in a tile, in elements. */
template <int DEPTH, int ROWS, int COLUMNS, int THREADS, typename Layout> struct copier {
    static constexpr int PARTS = DEPTH / 8;       /* of a row */
    static constexpr int APART = THREADS / PARTS; /* rows between two of a thread */
    static constexpr int X_EACH = ROWS / APART, W_EACH = COLUMNS / APART;
    static constexpr int STAGE = (ROWS + COLUMNS) * DEPTH; /* elements */
    static_assert(X_EACH * APART == ROWS && W_EACH * APART == COLUMNS, "");

    int part, first;          /* of its rows in a tile */
    int height, width;        /* of x as its taps see it */
    int y[X_EACH], x[X_EACH]; /* each row's first tap */
    int pixel[X_EACH];        /* of its sample, the first: 2^31 are more than a pass has */
    const uint16_t *w;        /* its part of its first row's */
    int w_rows;               /* of its rows of w that are there */

    __device__ __forceinline__ copier(const struct product *p, int64_t row, int column)
    {
        int64_t rows = (int64_t)p->n * p->y_h * p->y_w;

        part = (int)threadIdx.x % PARTS;
        first = (int)threadIdx.x / PARTS;
        height = p->upsample ? p->y_h : p->x_h;
        width = p->upsample ? p->y_w : p->x_w;
#pragma unroll
        for (int i = 0; i < X_EACH; i++) {
            int64_t at = row + first + i * APART;
            struct row_place place = row_place(p, at < rows ? at : 0);
            y[i] = at < rows ? place.y : NOWHERE;
            x[i] = place.x;
            pixel[i] = place.n * p->x_h * p->x_w;
        }
        w = (const uint16_t *)p->w + (int64_t)(column + first) * p->kernel * p->kernel * p->in +
            part * 8;
        w_rows = (p->out - column - first + APART - 1) / APART;
    }

    /* Asks for one stage: ROWS rows of x, then COLUMNS of w; zeros where !real. */
    __device__ __forceinline__ void copy(const struct product *p, uint16_t *stage, struct walk at,
                                         bool real) const
    {
        int c = at.c + part * 8, up = p->upsample;
        bool inside = real && c < p->in;
        int64_t apart = (int64_t)APART * p->kernel * p->kernel * p->in;
        const uint16_t *from = w + at.base + at.c;

#pragma unroll
        for (int i = 0; i < X_EACH; i++) {
            int ty = y[i] + at.ky, tx = x[i] + at.kx;
            bool valid =
                inside && (unsigned)ty < (unsigned)height && (unsigned)tx < (unsigned)width;
            int64_t place = pixel[i] + (ty >> up) * p->x_w + (tx >> up);
            copy_async_kept(stage + Layout::at(first + i * APART, part),
                            (const uint16_t *)p->x + place * p->x_ld + c, valid);
        }
#pragma unroll
        for (int i = 0; i < W_EACH; i++) {
            copy_async(stage + ROWS * DEPTH + Layout::at(first + i * APART, part), from,
                       inside && i < w_rows);
            from += apart;
        }
        copy_commit();
    }
};

#endif
