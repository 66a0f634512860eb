/* elements.h: numbers of any dtype on the card: conversion, vectors of eight, activations. */
#ifndef ATELIER_ENGINE_CUDA_ELEMENTS_H
#define ATELIER_ENGINE_CUDA_ELEMENTS_H

#include "engine/cuda/kernels.h"
#include "engine/cuda/target.h"

struct half_f16 {
    static constexpr bool BF16 = false;

    static __device__ __forceinline__ uint32_t pack(float low, float high)
    {
        return pack_f16(low, high);
    }
    static __device__ __forceinline__ void multiply(float c[4], const uint32_t a[4], uint32_t b0,
                                                    uint32_t b1)
    {
        multiply_f16(c, a, b0, b1);
    }
};

struct half_bf16 {
    static constexpr bool BF16 = true;

    static __device__ __forceinline__ uint32_t pack(float low, float high)
    {
        return pack_bf16(low, high);
    }
    static __device__ __forceinline__ void multiply(float c[4], const uint32_t a[4], uint32_t b0,
                                                    uint32_t b1)
    {
        multiply_bf16(c, a, b0, b1);
    }
};

struct alignas(16) words4 {
    uint32_t v[4];
};

struct alignas(8) words2 {
    uint32_t v[2];
};

static __device__ __forceinline__ float widen(int dtype, uint16_t v)
{
    return dtype == DTYPE_BF16 ? widen_bf16(v) : widen_f16(v);
}

static __device__ __forceinline__ uint32_t pack(int dtype, float low, float high)
{
    return dtype == DTYPE_BF16 ? pack_bf16(low, high) : pack_f16(low, high);
}

static __device__ __forceinline__ float load_element(const void *base, int dtype, int64_t at)
{
    if (dtype == DTYPE_F32)
        return ((const float *)base)[at];
    return widen(dtype, ((const uint16_t *)base)[at]);
}

static __device__ __forceinline__ void store_element(void *base, int dtype, int64_t at, float v)
{
    if (dtype == DTYPE_F32)
        ((float *)base)[at] = v;
    else
        ((uint16_t *)base)[at] = (uint16_t)pack(dtype, v, 0);
}

static __device__ __forceinline__ float round_element(int dtype, float v)
{
    return dtype == DTYPE_F32 ? v : widen(dtype, (uint16_t)pack(dtype, v, 0));
}

/* Two neighbours; `at` is even and the base aligned for both at once. */
static __device__ __forceinline__ void load_pair(float v[2], const void *base, int dtype,
                                                 int64_t at)
{
    if (dtype == DTYPE_F32) {
        const float *from = (const float *)base + at;
        v[0] = from[0];
        v[1] = from[1];
    } else {
        uint32_t both = *(const uint32_t *)((const uint16_t *)base + at);
        v[0] = widen(dtype, (uint16_t)both);
        v[1] = widen(dtype, (uint16_t)(both >> 16));
    }
}

static __device__ __forceinline__ void store_pair(void *base, int dtype, int64_t at, float v0,
                                                  float v1)
{
    if (dtype == DTYPE_F32) {
        struct words2 both;
        memcpy(&both.v[0], &v0, 4);
        memcpy(&both.v[1], &v1, 4);
        *(struct words2 *)((float *)base + at) = both;
    } else
        *(uint32_t *)((uint16_t *)base + at) = pack(dtype, v0, v1);
}

/* Eight neighbours, 16-byte aligned. */
static __device__ __forceinline__ void load8(float v[8], const void *base, int dtype, int64_t at)
{
    if (dtype == DTYPE_F32) {
        const struct words4 *from = (const struct words4 *)((const float *)base + at);
        struct words4 low = from[0], high = from[1];
        memcpy(v, &low, 16);
        memcpy(v + 4, &high, 16);
        return;
    }
    struct words4 all = *(const struct words4 *)((const uint16_t *)base + at);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = widen(dtype, (uint16_t)all.v[i]);
        v[2 * i + 1] = widen(dtype, (uint16_t)(all.v[i] >> 16));
    }
}

static __device__ __forceinline__ void store8(void *base, int dtype, int64_t at, const float v[8])
{
    struct words4 all;

    if (dtype == DTYPE_F32) {
        struct words4 *to = (struct words4 *)((float *)base + at);
        memcpy(&all, v, 16);
        to[0] = all;
        memcpy(&all, v + 4, 16);
        to[1] = all;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        all.v[i] = pack(dtype, v[2 * i], v[2 * i + 1]);
    *(struct words4 *)((uint16_t *)base + at) = all;
}

/* Whether rows of this matrix can be taken eight elements at a time. */
static inline bool in_eights(const struct matrix *m)
{
    return m->columns % 8 == 0 && m->ld % 8 == 0 && (uintptr_t)m->data % 16 == 0;
}

static __device__ __forceinline__ float silu(float v)
{
    return v / (1 + exp_fast(-v));
}

static __device__ __forceinline__ float gelu(float v)
{
    return 0.5f * v * (1 + erff(v * 0.70710678f));
}

static __device__ __forceinline__ float activate(int act, float v)
{
    switch (act) {
    case PRODUCT_SILU:
        return silu(v);
    case PRODUCT_GELU:
        return gelu(v);
    case PRODUCT_QUICK_GELU:
        return v / (1 + exp_fast(-1.702f * v));
    default:
        return v;
    }
}

static __device__ __forceinline__ float pre_apply(const struct pre *pre, int64_t at, float v)
{
    if (pre->scale != nullptr)
        v = pre->shift != nullptr ? fmaf(v, pre->scale[at], pre->shift[at]) : v * pre->scale[at];
    return pre->silu ? silu(v) : v;
}

#define BLOCK 256

static inline int64_t blocks_for(int64_t work, int64_t each)
{
    return (work + each - 1) / each;
}

#endif
