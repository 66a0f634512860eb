/*
 * tensor.h: the shape of activations: channels last, at most four dimensions, f32, bf16 or f16.
 *
 * A feature map is n × h × w × c; a sequence of t tokens is n × 1 × t × c, so that a map of h × w
 * pixels is the same memory as its h·w tokens. A tensor never owns its data: activations belong to
 * the pass's arena, weights to the model.
 */
#ifndef ATELIER_ENGINE_TENSOR_H
#define ATELIER_ENGINE_TENSOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

struct tensor {
    enum dtype dtype;
    int n, h, w, c;
    int ld;     /* elements from one pixel to the next; c when dense, more in a view of columns */
    void *data; /* in the back end's memory; NULL while planning */
};

static inline size_t dtype_bytes(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : 2;
}

static inline const char *dtype_name(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? "F32" : dtype == DTYPE_F16 ? "F16" : "BF16";
}

/* Pixels or tokens of the whole batch. */
static inline int64_t tensor_rows(const struct tensor *t)
{
    return (int64_t)t->n * t->h * t->w;
}

static inline size_t tensor_bytes(const struct tensor *t)
{
    return (size_t)tensor_rows(t) * (size_t)t->ld * dtype_bytes(t->dtype);
}

/* `count` columns from `first`, over the same memory. */
static inline struct tensor tensor_columns(const struct tensor *t, int first, int count)
{
    struct tensor view = *t;
    view.c = count;
    if (t->data != NULL)
        view.data = (char *)t->data + (size_t)first * dtype_bytes(t->dtype);
    return view;
}

/* Samples [first, first + count), over the same memory. */
static inline struct tensor tensor_samples(const struct tensor *t, int first, int count)
{
    struct tensor view = *t;
    size_t each = (size_t)t->h * (size_t)t->w * (size_t)t->ld * dtype_bytes(t->dtype);

    view.n = count;
    if (t->data != NULL)
        view.data = (char *)t->data + (size_t)first * each;
    return view;
}

static inline float bf16_to_f32(uint16_t v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Rounds to nearest, ties to even; NaN stays NaN. */
static inline uint16_t bf16_from_f32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* IEEE binary16, subnormals, infinities and NaN included. */
static inline float f16_to_f32(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000) << 16, exponent = v >> 10 & 31, mantissa = v & 1023;
    uint32_t bits;
    float f;

    if (exponent == 0) {
        f = (float)mantissa * 0x1p-24f;
        return sign ? -f : f;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
    memcpy(&f, &bits, 4);
    return f;
}

/* Rounds to nearest, ties to even; too large becomes infinity, NaN stays NaN. */
static inline uint16_t f16_from_f32(float f)
{
    uint32_t bits, sign, magnitude, shift;

    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000;
    magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00);
    if (magnitude >= 0x477ff000u) /* 65520 */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude >= 0x38800000u) /* 2^-14: a normal number */
        return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13));
    if (magnitude < 0x33000000u) /* 2^-25 */
        return (uint16_t)sign;
    shift = 126 - (magnitude >> 23);
    magnitude = (magnitude & 0x7fffff) | 0x800000;
    return (uint16_t)(sign |
                      ((magnitude + (1u << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift));
}

/* Rounds to what `dtype` holds. */
static inline float round_to_dtype(enum dtype dtype, float f)
{
    return dtype == DTYPE_F32    ? f
           : dtype == DTYPE_BF16 ? bf16_to_f32(bf16_from_f32(f))
                                 : f16_to_f32(f16_from_f32(f));
}

/* Element i of an array at any alignment. */
static inline float element_to_f32(const void *data, enum dtype dtype, size_t i)
{
    uint16_t half;
    float f;

    if (dtype == DTYPE_F32) {
        memcpy(&f, (const char *)data + i * 4, 4);
        return f;
    }
    memcpy(&half, (const char *)data + i * 2, 2);
    return dtype == DTYPE_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

#endif
