/* product_put.h: how finished sums of tensor cores leave the registers. */
#ifndef ATELIER_ENGINE_CUDA_PRODUCT_PUT_H
#define ATELIER_ENGINE_CUDA_PRODUCT_PUT_H

#include "engine/cuda/product.h"

/* Two neighbouring columns of one row leave the registers. */
static __device__ __forceinline__ void put_pair(const struct product *p, int64_t row, int64_t n,
                                                int c, const float v[2])
{
    float y[2], r[2];

    y[0] = finish_sum(p, n, c, v[0]);
    y[1] = finish_sum(p, n, c + 1, v[1]);
    if (p->residual != nullptr) {
        load_pair(r, p->residual, p->residual_dtype, row * p->residual_ld + c);
        y[0] += r[0];
        y[1] += r[1];
    }
    store_pair(p->y, p->y_dtype, row * p->y_ld + c, y[0], y[1]);
}

/* c counts y's columns. */
static __device__ __forceinline__ void put_geglu(const struct product *p, int64_t row, int c,
                                                 const float value[2], const float gate[2])
{
    float y[2], r[2];

    y[0] = finish_geglu(p, c, value[0], gate[0]);
    y[1] = finish_geglu(p, c + 1, value[1], gate[1]);
    if (p->residual != nullptr) {
        load_pair(r, p->residual, p->residual_dtype, row * p->residual_ld + c);
        y[0] += r[0];
        y[1] += r[1];
    }
    store_pair(p->y, p->y_dtype, row * p->y_ld + c, y[0], y[1]);
}

/* Whether put_row_plain serves: 16 bit in and out and no activation, as nearly all layers have it.
 */
template <typename H> static __device__ __forceinline__ bool is_plain(const struct product *p)
{
    int dtype = H::BF16 ? DTYPE_BF16 : DTYPE_F16;

    return p->act == PRODUCT_NONE && p->y_dtype == dtype &&
           (p->residual == nullptr || p->residual_dtype == dtype);
}

/* What put_pair does, for the half of N fragments that is in one row, from column c on. A tile's
 * worth of put_pair is more instructions than the card keeps at hand. */
template <typename H, int N>
static __device__ __forceinline__ void put_row_plain(const struct product *p, int64_t row,
                                                     int64_t n, int c, int half,
                                                     const float sum[N][4])
{
    constexpr int DTYPE = H::BF16 ? DTYPE_BF16 : DTYPE_F16;
    const float *bias = p->bias != nullptr ? p->bias + c : nullptr;
    const float *time = p->time != nullptr ? p->time + n * p->time_ld + c : nullptr;
    const uint16_t *residual = (const uint16_t *)p->residual;
    uint16_t *y = (uint16_t *)p->y + row * p->y_ld + c;

    residual = residual != nullptr ? residual + row * p->residual_ld + c : nullptr;
#pragma unroll
    for (int j = 0; j < N; j++) {
        float v[2] = {sum[j][half * 2], sum[j][half * 2 + 1]}, r[2];
        if (c + j * 8 >= p->out)
            continue;
        if (bias != nullptr) {
            v[0] += bias[j * 8];
            v[1] += bias[j * 8 + 1];
        }
        if (time != nullptr) {
            v[0] += time[j * 8];
            v[1] += time[j * 8 + 1];
        }
        if (residual != nullptr) {
            load_pair(r, residual, DTYPE, j * 8);
            v[0] += r[0];
            v[1] += r[1];
        }
        store_pair(y, DTYPE, j * 8, v[0], v[1]);
    }
}

/* Any other. */
template <int N>
static __device__ __forceinline__ void put_row(const struct product *p, int64_t row, int64_t n,
                                               int c, int half, const float sum[N][4])
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        if (c + j * 8 >= p->out)
            continue;
        if (p->act != PRODUCT_GEGLU)
            put_pair(p, row, n, c + j * 8, &sum[j][half * 2]);
        else if (j % 2 == 0) /* a tile of values, then that of their gates */
            put_geglu(p, row, (c - c % 8 + j * 8) / 2 + c % 8, &sum[j][half * 2],
                      &sum[(j + 1) % N][half * 2]);
    }
}

/* Sums that another kernel finishes. */
template <int N>
static __device__ __forceinline__ void put_row_partial(const struct product *p, int64_t row, int c,
                                                       int half, const float sum[N][4])
{
    int64_t rows = (int64_t)p->n * p->y_h * p->y_w;
    float *to = p->partial + (blockIdx.z * rows + row) * p->out + c;

#pragma unroll
    for (int j = 0; j < N; j++)
        if (c + j * 8 < p->out)
            store_pair(to, DTYPE_F32, j * 8, sum[j][half * 2], sum[j][half * 2 + 1]);
}

/* M × N fragments of 16 rows and 8 columns, as mma.sync and wgmma leave them to a warp's lanes; the
 * first is at row `first` and column `column`. */
template <typename H, int M, int N>
static __device__ __forceinline__ void put_tile(const struct product *p, int64_t first, int column,
                                                float sum[][N][4])
{
    int lane = (int)threadIdx.x % WARP, c = column + lane % 4 * 2;
    int64_t rows = (int64_t)p->n * p->y_h * p->y_w, each = (int64_t)p->y_h * p->y_w;
    bool plain = is_plain<H>(p);

#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t row = first + i * 16 + half * 8 + lane / 4;
            if (row >= rows)
                continue;
            if (p->partial != nullptr)
                put_row_partial<N>(p, row, c, half, sum[i]);
            else if (plain)
                put_row_plain<H, N>(p, row, row / each, c, half, sum[i]);
            else
                put_row<N>(p, row, row / each, c, half, sum[i]);
        }
}

#endif
