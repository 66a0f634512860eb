/*
 * attention_rows.h: what attention by warps and by warpgroups share: 16 queries of a warp, whose
 * scores, running maximum and sum (Milakov and Gimelshein 2018) and output stay in registers, as
 * both kinds of products leave them.
 */
#ifndef ATELIER_ENGINE_CUDA_ATTENTION_ROWS_H
#define ATELIER_ENGINE_CUDA_ATTENTION_ROWS_H

#include "engine/cuda/elements.h"

#define NONE (-1e30f) /* a masked score; -inf would make NaN where a row has nothing else */
#define LOG2E 1.44269504f

static __device__ __forceinline__ float over_four(float v, bool maximum)
{
    float other = shuffle_xor(v, 1);

    v = maximum ? fmaxf(v, other) : v + other;
    other = shuffle_xor(v, 2);
    return maximum ? fmaxf(v, other) : v + other;
}

/* A warp's 16 rows: each thread has parts of rows lane / 4 and lane / 4 + 8. */
template <int D> struct rows16 {
    float y[D / 8][4];
    float max[2], sum[2];
};

/* Before the first key. */
template <int D> static __device__ __forceinline__ void begin_rows(struct rows16<D> *r)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        r->max[half] = NONE;
        r->sum[half] = 0;
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            r->y[j][i] = 0;
}

/* Scores of keys past the end, or past a row's limit. */
template <int KEYS>
static __device__ __forceinline__ void mask_scores(float s[KEYS / 8][4], int first_key, int keys,
                                                   const int limit[2])
{
    int lane = (int)threadIdx.x % WARP;

#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int key = first_key + j * 8 + lane % 4 * 2 + i % 2;
            if (key >= keys || key >= limit[i / 2])
                s[j][i] = NONE;
        }
}

/* Scales scores, moves to the new maximum, makes them probabilities. What was gathered so far must
 * not be under way. */
template <int D, int KEYS>
static __device__ __forceinline__ void soften(struct rows16<D> *r, float s[KEYS / 8][4],
                                              float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = NONE, sum = 0, keep;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
            max = fmaxf(max, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
        max = fmaxf(r->max[half], over_four(max, true) * scale);
        keep = exp2_fast(r->max[half] - max);
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *v = &s[j][half * 2 + i];
                *v = exp2_fast(fmaf(*v, scale, -max));
                sum += *v;
            }
        r->sum[half] = r->sum[half] * keep + sum;
        r->max[half] = max;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            r->y[j][half * 2] *= keep;
            r->y[j][half * 2 + 1] *= keep;
        }
    }
}

/* Probabilities of 16 keys, two groups of eight, as the first matrix of a product. */
template <typename H>
static __device__ __forceinline__ void pack_rows(uint32_t p[4], const float s[2][4])
{
    p[0] = H::pack(s[0][0], s[0][1]);
    p[1] = H::pack(s[0][2], s[0][3]);
    p[2] = H::pack(s[1][0], s[1][1]);
    p[3] = H::pack(s[1][2], s[1][3]);
}

/* After the last key: y of the queries from `first` on, of this block's head and sample. */
template <int D>
static __device__ __forceinline__ void put_rows(const struct attend *a, const struct rows16<D> *r,
                                                int first)
{
    int lane = (int)threadIdx.x % WARP;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = first + half * 8 + lane / 4;
        float inverse = 1 / over_four(r->sum[half], false);
        int64_t row = ((int64_t)blockIdx.z * a->tq + query) * a->y_ld + (int64_t)blockIdx.y * a->d;
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            int c = j * 8 + lane % 4 * 2;
            if (query < a->tq && c < a->d)
                store_pair(a->y, a->y_dtype, row + c, r->y[j][half * 2] * inverse,
                           r->y[j][half * 2 + 1] * inverse);
        }
    }
}

#endif
