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

/* M × N fragments of 16 rows and 8 columns, as mma.sync and wgmma leave them to a warp's lanes; the
 * first is at row `first` and column `column`. */
template <int M, int N>
static __device__ __forceinline__ void put_tile(const struct product *p, int64_t first, int column,
                                                float sum[][N][4])
{
    int lane = (int)threadIdx.x % WARP;
    int64_t rows = (int64_t)p->n * p->y_h * p->y_w, each = (int64_t)p->y_h * p->y_w;

#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t row = first + i * 16 + half * 8 + lane / 4, n = row / each;
            if (row >= rows)
                continue;
#pragma unroll
            for (int j = 0; j < N; j++) {
                int c = column + j * 8 + lane % 4 * 2;
                if (c >= p->out)
                    continue;
                if (p->partial != nullptr)
                    store_pair(p->partial, DTYPE_F32,
                               ((int64_t)blockIdx.z * rows + row) * p->out + c, sum[i][j][half * 2],
                               sum[i][j][half * 2 + 1]);
                else if (p->act != PRODUCT_GEGLU)
                    put_pair(p, row, n, c, &sum[i][j][half * 2]);
                else if (j % 2 == 0) /* a tile of values, then that of their gates */
                    put_geglu(p, row, (column + j * 8) / 2 + lane % 4 * 2, &sum[i][j][half * 2],
                              &sum[i][(j + 1) % N][half * 2]);
            }
        }
}

#endif
