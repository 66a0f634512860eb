/* product.h: what the kernels for products share: where a row's inputs lie, what follows a sum. */
#ifndef ATELIER_ENGINE_CUDA_PRODUCT_H
#define ATELIER_ENGINE_CUDA_PRODUCT_H

#include "engine/cuda/elements.h"

static inline int64_t product_rows(const struct product *p)
{
    return (int64_t)p->n * p->y_h * p->y_w;
}

static inline int product_columns(const struct product *p)
{
    return p->act == PRODUCT_GEGLU ? p->out / 2 : p->out;
}

/* An output row's place: its sample and the top left of its taps in x as the convolution sees it.
 */
struct row_place {
    int n, y, x;
};

static __device__ __forceinline__ struct row_place row_place(const struct product *p, int64_t row)
{
    int each = p->y_h * p->y_w;
    struct row_place at;
    int rest;

    at.n = (int)(row / each);
    rest = (int)(row % each);
    at.y = rest / p->y_w * p->stride - p->pad;
    at.x = rest % p->y_w * p->stride - p->pad;
    return at;
}

/* Element of x's first channel under a tap, or -1 in the padding. */
static __device__ __forceinline__ int64_t tap_place(const struct product *p, struct row_place at,
                                                    int ky, int kx)
{
    int y = at.y + ky, x = at.x + kx;
    int height = p->upsample ? p->y_h : p->x_h, width = p->upsample ? p->y_w : p->x_w;

    if (y < 0 || x < 0 || y >= height || x >= width)
        return -1;
    return (((int64_t)at.n * p->x_h + (y >> p->upsample)) * p->x_w + (x >> p->upsample)) * p->x_ld;
}

/* Bias, time and activation of one product column `c`. */
static __device__ __forceinline__ float finish_sum(const struct product *p, int64_t n, int c,
                                                   float v)
{
    if (p->bias != nullptr)
        v += p->bias[c];
    if (p->time != nullptr)
        v += p->time[n * p->time_ld + c];
    return activate(p->act, v);
}

/* Value times gelu of its gate, for column c of y. */
static __device__ __forceinline__ float finish_geglu(const struct product *p, int c, float value,
                                                     float gate)
{
    if (p->bias != nullptr) {
        value += p->bias[c];
        gate += p->bias[p->out / 2 + c];
    }
    return value * gelu(gate);
}

#endif
