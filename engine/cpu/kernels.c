/*
 * The inner loops, written with the compiler's vector types so that one source serves every
 * instruction set; KERNELS_ISA names the one that this translation unit is compiled for. Only the
 * bf16 dot product and the binary16 conversion need intrinsics.
 *
 * Tails shorter than a vector go through a zero-padded vector on the stack.
 */
#include "engine/cpu/kernels.h"

#include <math.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(KERNELS_TILES)
#include "engine/cpu/tiles.h"
#endif

#if defined(__AVX512F__) || defined(KERNELS_TILES)
#define VL 16
#define MR 12
#elif defined(__AVX2__)
#define VL 8
#define MR 6
#else
#define VL 4
#define MR 4
#endif
#define NR (2 * VL)

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define STRING_(a) #a
#define STRING(a) STRING_(a)

typedef float vec __attribute__((vector_size(4 * VL)));
typedef double vecd __attribute__((vector_size(8 * VL)));
typedef int32_t veci __attribute__((vector_size(4 * VL)));
typedef uint32_t vecu __attribute__((vector_size(4 * VL)));
typedef uint16_t vech __attribute__((vector_size(2 * VL)));
typedef float vec_any __attribute__((vector_size(4 * VL), aligned(1), may_alias));
typedef uint32_t vecu_any __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef uint16_t vech_any __attribute__((vector_size(2 * VL), aligned(1), may_alias));

static inline vec splat(float f)
{
    return f - (vec){0};
}

static inline vec load(const float *p)
{
    return *(const vec_any *)p;
}

static inline void store(float *p, vec v)
{
    *(vec_any *)p = v;
}

/* a · b + c, rounded once. Said outright where a compiler may choose, by what is around, to round
 * twice: a sum must not depend on how many rows are computed beside it. */
static inline vec fused(vec a, vec b, vec c)
{
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && VL == 8
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

static inline vec from_bf16(vech h)
{
    return (vec)(__builtin_convertvector(h, vecu) << 16);
}

static inline vech to_bf16(vec v)
{
#if defined(__AVX512BF16__)
    return (vech)_mm512_cvtneps_pbh((__m512)v);
#else
    vecu u = (vecu)v;
    vecu rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    vecu nan = (vecu)(v != v);
    return __builtin_convertvector((rounded & ~nan) | (0x7fc0 & nan), vech);
#endif
}

static inline vec from_f16(vech h)
{
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (vec)_mm256_cvtph_ps((__m128i)h);
#else
    vec v;
    for (int i = 0; i < VL; i++)
        v[i] = f16_to_f32(h[i]);
    return v;
#endif
}

/* The first `count` < VL elements; loads fill up with zeros. */
#if defined(__AVX512F__)
static inline __mmask16 some(int count)
{
    return (__mmask16)((1u << count) - 1);
}

static inline vec load_some(const float *p, int count)
{
    return (vec)_mm512_maskz_loadu_ps(some(count), p);
}

static inline vech load_some_half(const uint16_t *p, int count)
{
    return (vech)_mm256_maskz_loadu_epi16(some(count), p);
}

static inline void store_some(float *p, int count, vec v)
{
    _mm512_mask_storeu_ps(p, some(count), (__m512)v);
}

static inline void store_some_half(uint16_t *p, int count, vech h)
{
    _mm256_mask_storeu_epi16(p, some(count), (__m256i)h);
}
#else
static inline vec load_some(const float *p, int count)
{
    vec v = {0};
    memcpy(&v, p, (size_t)count * sizeof(float));
    return v;
}

static inline vech load_some_half(const uint16_t *p, int count)
{
    vech h = {0};
    memcpy(&h, p, (size_t)count * sizeof(uint16_t));
    return h;
}

static inline void store_some(float *p, int count, vec v)
{
    memcpy(p, &v, (size_t)count * sizeof(float));
}

static inline void store_some_half(uint16_t *p, int count, vech h)
{
    memcpy(p, &h, (size_t)count * sizeof(uint16_t));
}
#endif

/* Lanes from `count` on become zero. */
static inline vec keep(vec v, int count)
{
    veci lanes;
    for (int i = 0; i < VL; i++)
        lanes[i] = i;
    return (vec)((veci)v & (lanes < count));
}

/* `count` <= VL elements from `i` on; the rest is zero. */
static inline vec load_as(const void *x, enum dtype dtype, size_t i, int count)
{
    if (dtype == DTYPE_F32) {
        const float *p = (const float *)x + i;
        return count == VL ? load(p) : load_some(p, count);
    }
    const uint16_t *p = (const uint16_t *)x + i;
    vech h = count == VL ? (vech) * (const vech_any *)p : load_some_half(p, count);
    return dtype == DTYPE_BF16 ? from_bf16(h) : from_f16(h);
}

static inline void store_as(void *y, enum dtype dtype, size_t i, int count, vec v)
{
    if (dtype == DTYPE_F32) {
        if (count == VL)
            store((float *)y + i, v);
        else
            store_some((float *)y + i, count, v);
        return;
    }
    vech h = to_bf16(v);
    if (count == VL)
        *(vech_any *)((uint16_t *)y + i) = h;
    else
        store_some_half((uint16_t *)y + i, count, h);
}

static inline int part(int n, int i)
{
    return n - i < VL ? n - i : VL;
}

/* ---- functions ---- */

static inline vec vmax(vec a, vec b)
{
    return (vec)(((veci)a & (a > b)) | ((veci)b & ~(a > b)));
}

static inline vec vmin(vec a, vec b)
{
    return (vec)(((veci)a & (a < b)) | ((veci)b & ~(a < b)));
}

/* Cody and Waite's reduction to |r| <= ln 2 / 2 and a Taylor polynomial of degree 7; relative error
 * below 2e-7 on [-87, 88], clamped outside. */
static inline vec vexp(vec x)
{
    const vec magic = splat(12582912.0f);
    vec n, r, p;

    x = vmax(vmin(x, splat(88.0f)), splat(-87.0f));
    n = (x * 1.44269504088896341f + magic) - magic;
    r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    p = splat(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vec)((veci)p + (__builtin_convertvector(n, veci) << 23));
}

/* 2^x for x <= 0: relative error below 2e-7, 0 or the least normal number far out. */
static inline vec vexp2_negative(vec x)
{
    vec n, r, p;
#if defined(__AVX512F__)
    n = (vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const vec magic = splat(12582912.0f);
    x = vmax(x, splat(-126.0f));
    n = (x + magic) - magic;
#endif
    r = x - n;
    p = splat(1.5403530e-4f);
    p = p * r + 1.3333558e-3f;
    p = p * r + 9.6181291e-3f;
    p = p * r + 5.5504109e-2f;
    p = p * r + 0.24022651f;
    p = p * r + 0.69314718f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return (vec)((veci)p + (__builtin_convertvector(n, veci) << 23));
#endif
}

static inline vec vsilu(vec x)
{
    return x / (1.0f + vexp(-x));
}

/* Abramowitz and Stegun 7.1.26: absolute error of erf below 2e-7. */
static inline vec vgelu(vec x)
{
    vec z = x * 0.70710678118654752f;
    vec sign = (vec)((veci)z & (int32_t)0x80000000), a = (vec)((veci)z & 0x7fffffff);
    vec t = 1.0f / (1.0f + 0.3275911f * a);
    vec p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t +
             0.254829592f) *
            t;
    vec erf = 1.0f - p * vexp(-a * a);
    return 0.5f * x * (1.0f + (vec)((veci)erf | (veci)sign));
}

static inline vec apply(enum activation act, vec v)
{
    switch (act) {
    case ACT_SILU:
        return vsilu(v);
    case ACT_GELU:
        return vgelu(v);
    case ACT_QUICK_GELU:
        return v / (1.0f + vexp(-1.702f * v));
    default:
        return v;
    }
}

static inline vec apply_pre(const struct pre *pre, int i, int count, vec v)
{
    if (pre->scale == NULL)
        return v;
    v = v * load_as(pre->scale, DTYPE_F32, (size_t)i, count);
    if (pre->shift != NULL)
        v += load_as(pre->shift, DTYPE_F32, (size_t)i, count);
    return pre->silu ? vsilu(v) : v;
}

static inline float sum_of(vec v)
{
    float sum = 0;
    for (int i = 0; i < VL; i++)
        sum += v[i];
    return sum;
}

/* ---- turning matrices ---- */

/* Element e of what one step of a transposition makes of two rows that are s apart. */
#define TURN_LOW(e, s) ((e) & (s) ? VL + (e) - (s) : (e))
#define TURN_HIGH(e, s) ((e) & (s) ? VL + (e) : (e) + (s))
#define EACH_4(f, s) f(0, s), f(1, s), f(2, s), f(3, s)
#define EACH_8(f, s) EACH_4(f, s), f(4, s), f(5, s), f(6, s), f(7, s)
#define EACH_16(f, s)                                                                              \
    EACH_8(f, s), f(8, s), f(9, s), f(10, s), f(11, s), f(12, s), f(13, s), f(14, s), f(15, s)
#define EACH(f, s) PASTE(EACH_, VL)(f, s)

#define TURN_STEP(s)                                                                               \
    _Pragma("GCC unroll 16") for (int r = 0; r < VL; r++) if ((r & (s)) == 0)                      \
    {                                                                                              \
        vecu low = v[r], high = v[r + (s)];                                                        \
        v[r] = __builtin_shufflevector(low, high, EACH(TURN_LOW, s));                              \
        v[r + (s)] = __builtin_shufflevector(low, high, EACH(TURN_HIGH, s));                       \
    }

/* VL × VL words. */
static inline void turn_block(uint32_t *to, size_t to_stride, const uint32_t *from, size_t stride)
{
    vecu v[VL];

    for (int r = 0; r < VL; r++)
        v[r] = *(const vecu_any *)(from + (size_t)r * stride);
#if VL == 16
    TURN_STEP(8)
#endif
#if VL >= 8
    TURN_STEP(4)
#endif
    TURN_STEP(2)
    TURN_STEP(1)
    for (int r = 0; r < VL; r++)
        *(vecu_any *)(to + (size_t)r * to_stride) = v[r];
}

static void turn(uint32_t *to, int width, const uint32_t *from, size_t stride, int n)
{
    int i = 0;

    for (; i + VL <= n; i += VL)
        for (int c = 0; c < width; c += VL)
            turn_block(to + (size_t)i * (size_t)width + c, (size_t)width,
                       from + (size_t)c * stride + i, stride);
    for (; i < n; i++)
        for (int c = 0; c < width; c++)
            to[(size_t)i * (size_t)width + (size_t)c] = from[(size_t)c * stride + (size_t)i];
}

/* ---- matrix products ---- */

#define MICRO_F32(ROWS, VECS)                                                                      \
    static inline __attribute__((always_inline)) void micro_f32_##ROWS##_##VECS(                   \
        int k, const float *a, size_t lda, const float *b, float *c, size_t ldc, bool add)         \
    {                                                                                              \
        vec acc[ROWS][VECS];                                                                       \
        _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++)                                    \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++) acc[i][j] =                     \
                add ? load(c + (size_t)i * ldc + j * VL) : splat(0);                               \
        for (int p = 0; p < k; p++) {                                                              \
            vec bv[VECS];                                                                          \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++) bv[j] =                         \
                load(b + (size_t)p * (VECS * VL) + j * VL);                                        \
            _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++)                                \
            {                                                                                      \
                vec av = splat(a[(size_t)i * lda + (size_t)p]);                                    \
                _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++) acc[i][j] =                 \
                    fused(av, bv[j], acc[i][j]);                                                   \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++)                                    \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++)                                 \
                store(c + (size_t)i * ldc + j * VL, acc[i][j]);                                    \
    }

#define MICRO_BF16(ROWS, VECS)                                                                     \
    static inline __attribute__((always_inline)) void micro_bf16_##ROWS##_##VECS(                  \
        int k, const uint16_t *a, size_t lda, const uint16_t *b, float *c, size_t ldc, bool add)   \
    {                                                                                              \
        __m512 acc[ROWS][VECS];                                                                    \
        _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++)                                    \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++) acc[i][j] =                     \
                add ? _mm512_loadu_ps(c + (size_t)i * ldc + j * VL) : _mm512_setzero_ps();         \
        for (int p = 0; p < k; p += 2) {                                                           \
            __m512bh bv[VECS];                                                                     \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++) bv[j] =                         \
                (__m512bh)_mm512_loadu_si512(b + (size_t)p * (VECS * VL) + j * 2 * VL);            \
            _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++)                                \
            {                                                                                      \
                int pair;                                                                          \
                memcpy(&pair, a + (size_t)i * lda + (size_t)p, sizeof(pair));                      \
                __m512bh av = (__m512bh)_mm512_set1_epi32(pair);                                   \
                _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++) acc[i][j] =                 \
                    _mm512_dpbf16_ps(acc[i][j], av, bv[j]);                                        \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 16") for (int i = 0; i < ROWS; i++)                                    \
            _Pragma("GCC unroll 2") for (int j = 0; j < VECS; j++)                                 \
                _mm512_storeu_ps(c + (size_t)i * ldc + j * VL, acc[i][j]);                         \
    }

/* All rows of one panel, in blocks of MR and then ever smaller ones. */
#define ROWS_LOOP(TYPE, VECS)                                                                      \
    do {                                                                                           \
        int i = 0;                                                                                 \
        for (; i + MR <= m; i += MR)                                                               \
            PASTE(micro_##TYPE##_, PASTE(MR, _##VECS))                                             \
        (k, a + (size_t)i * lda, lda, b, c + (size_t)i * ldc, ldc, add);                           \
        for (; i + 4 <= m; i += 4)                                                                 \
            micro_##TYPE##_4_##VECS(k, a + (size_t)i * lda, lda, b, c + (size_t)i * ldc, ldc,      \
                                    add);                                                          \
        for (; i < m; i++)                                                                         \
            micro_##TYPE##_1_##VECS(k, a + (size_t)i * lda, lda, b, c + (size_t)i * ldc, ldc,      \
                                    add);                                                          \
    } while (0)

MICRO_F32(1, 1)
MICRO_F32(1, 2)
MICRO_F32(4, 1)
MICRO_F32(4, 2)
#if MR == 12
MICRO_F32(12, 1)
MICRO_F32(12, 2)
#elif MR == 6
MICRO_F32(6, 1)
MICRO_F32(6, 2)
#endif

static void panel_f32_1(int m, int k, const float *a, size_t lda, const float *b, float *c,
                        size_t ldc, bool add)
{
    ROWS_LOOP(f32, 1);
}

static void panel_f32_2(int m, int k, const float *a, size_t lda, const float *b, float *c,
                        size_t ldc, bool add)
{
    ROWS_LOOP(f32, 2);
}

static void gemm_f32(int m, int n, int k, const float *a, size_t lda, const float *panels,
                     size_t panel_stride, float *c, size_t ldc, bool add)
{
    for (int j = 0; j < n; j += NR, panels += panel_stride)
        if (n - j > VL)
            panel_f32_2(m, k, a, lda, panels, c + j, ldc, add);
        else
            panel_f32_1(m, k, a, lda, panels, c + j, ldc, add);
}

#if defined(__AVX512BF16__) && !defined(KERNELS_TILES)
MICRO_BF16(1, 1)
MICRO_BF16(1, 2)
MICRO_BF16(4, 1)
MICRO_BF16(4, 2)
MICRO_BF16(12, 1)
MICRO_BF16(12, 2)

static void panel_bf16_1(int m, int k, const uint16_t *a, size_t lda, const uint16_t *b, float *c,
                         size_t ldc, bool add)
{
    ROWS_LOOP(bf16, 1);
}

static void panel_bf16_2(int m, int k, const uint16_t *a, size_t lda, const uint16_t *b, float *c,
                         size_t ldc, bool add)
{
    ROWS_LOOP(bf16, 2);
}

static void gemm_bf16(int m, int n, int k, const uint16_t *a, size_t lda, const uint16_t *panels,
                      size_t panel_stride, float *c, size_t ldc, bool add)
{
    for (int j = 0; j < n; j += NR, panels += panel_stride)
        if (n - j > VL)
            panel_bf16_2(m, k, a, lda, panels, c + j, ldc, add);
        else
            panel_bf16_1(m, k, a, lda, panels, c + j, ldc, add);
}
#endif

/* ---- rows ---- */

static void load_f32(float *dst, const void *src, enum dtype dtype, int n, const struct pre *pre)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        store_as(dst, DTYPE_F32, (size_t)i, count,
                 apply_pre(pre, i, count, load_as(src, dtype, (size_t)i, count)));
    }
}

static void load_bf16(uint16_t *dst, const void *src, enum dtype dtype, int n,
                      const struct pre *pre)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        store_as(dst, DTYPE_BF16, (size_t)i, count,
                 apply_pre(pre, i, count, load_as(src, dtype, (size_t)i, count)));
    }
}

static inline void finish_part(vec v, int i, int count, const struct finish *f)
{
    if (f->bias)
        v += load_as(f->bias, DTYPE_F32, (size_t)i, count);
    if (f->time)
        v += load_as(f->time, DTYPE_F32, (size_t)i, count);
    v = apply(f->act, v);
    if (f->residual)
        v += load_as(f->residual, f->residual_dtype, (size_t)i, count);
    store_as(f->y, f->y_dtype, (size_t)i, count, v);
}

static void finish(const float *c, int n, const struct finish *f)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        finish_part(load_as(c, DTYPE_F32, (size_t)i, count), i, count, f);
    }
}

static void finish_as(const void *c, enum dtype dtype, int n, const struct finish *f)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        finish_part(load_as(c, dtype, (size_t)i, count), i, count, f);
    }
}

static void finish_geglu(const float *c, int n, int first, int half, const struct finish *f)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        const float *value = c + i / NR * 2 * NR + i % NR;
        vec v = load(value), g = load(value + NR);
        v += load_as(f->bias, DTYPE_F32, (size_t)(first + i), count);
        g += load_as(f->bias, DTYPE_F32, (size_t)(half + first + i), count);
        v *= vgelu(g);
        if (f->residual)
            v += load_as(f->residual, f->residual_dtype, (size_t)i, count);
        store_as(f->y, f->y_dtype, (size_t)i, count, v);
    }
}

static void moments(const void *x, enum dtype dtype, size_t ld, int64_t rows, int n,
                    const float *pivot, float *sum, float *squares)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        vec zero = load_as(pivot, DTYPE_F32, (size_t)i, count);
        vec s = load_as(sum, DTYPE_F32, (size_t)i, count);
        vec q = load_as(squares, DTYPE_F32, (size_t)i, count);
        for (int64_t row = 0; row < rows; row++) {
            vec v = load_as(x, dtype, (size_t)row * ld + (size_t)i, count) - zero;
            s += v;
            q += v * v;
        }
        store_as(sum, DTYPE_F32, (size_t)i, count, s);
        store_as(squares, DTYPE_F32, (size_t)i, count, q);
    }
}

static void layer_norm(const void *x, enum dtype x_dtype, void *y, enum dtype y_dtype, int n,
                       const float *gamma, const float *beta, float eps)
{
    vec sum = splat(0), squares = splat(0);
    float mean, rstd;

    for (int i = 0; i < n; i += VL)
        sum += load_as(x, x_dtype, (size_t)i, part(n, i));
    mean = sum_of(sum) / (float)n;
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        vec v = keep(load_as(x, x_dtype, (size_t)i, count) - mean, count);
        squares += v * v;
    }
    rstd = 1 / sqrtf(sum_of(squares) / (float)n + eps);
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        vec v = (load_as(x, x_dtype, (size_t)i, count) - mean) * rstd;
        v = v * load_as(gamma, DTYPE_F32, (size_t)i, count) +
            load_as(beta, DTYPE_F32, (size_t)i, count);
        store_as(y, y_dtype, (size_t)i, count, v);
    }
}

static inline float max_of(const float *s, int n)
{
    vec v = splat(-INFINITY);
    float max = -INFINITY;
    int i = 0;

    for (; i + VL <= n; i += VL)
        v = vmax(v, load(s + i));
    for (int j = 0; j < VL; j++)
        max = v[j] > max ? v[j] : max;
    for (; i < n; i++)
        max = s[i] > max ? s[i] : max;
    return max;
}

static void softmax(float *s, uint16_t *narrow, size_t lds, int rows, int n, const int *keys,
                    float *max, float *sum, float *alpha)
{
    enum dtype dtype = narrow != NULL ? DTYPE_BF16 : DTYPE_F32;

    for (int row = 0; row < rows; row++, s += lds, narrow += narrow != NULL ? lds : 0) {
        int live = keys == NULL ? n : keys[row] < 0 ? 0 : keys[row] < n ? keys[row] : n;
        float block = live > 0 ? max_of(s, live) : -INFINITY;
        float top = block > max[row] ? block : max[row];
        void *out = narrow != NULL ? (void *)narrow : (void *)s;
        vec total = splat(0);
        int i = 0;

        alpha[row] = max[row] == -INFINITY ? 0 : exp2f(max[row] - top);
        for (; i + VL <= live; i += VL) {
            vec e = vexp2_negative(load(s + i) - top);
            total += e;
            store_as(out, dtype, (size_t)i, VL, e);
        }
        for (; i < n + (n & 1); i += VL) {
            int count = n + (n & 1) - i < VL ? n + (n & 1) - i : VL;
            int left = live - i < 0 ? 0 : live - i < VL ? live - i : VL;
            vec e = left > 0 ? load_as(s, DTYPE_F32, (size_t)i, left) - top : splat(0);
            e = keep(vexp2_negative(e), left);
            total += e;
            store_as(out, dtype, (size_t)i, count, e);
        }
        sum[row] = sum[row] * alpha[row] + sum_of(total);
        max[row] = top;
    }
}

static void scale(float *x, int n, float factor)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        store_as(x, DTYPE_F32, (size_t)i, count, load_as(x, DTYPE_F32, (size_t)i, count) * factor);
    }
}

/* ---- Winograd F(4×4, 3×3); Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural
 * Networks", section 4.3 ---- */

/* out = Bᵀ in, one dimension, at the points 0, ±A, ±B and infinity. */
static inline void input_1d(const vec in[6], vec out[6])
{
    const float a = WINOGRAD_A, b = WINOGRAD_B;
    vec u = in[4] - b * b * in[2], v = a * (in[3] - b * b * in[1]);
    vec p = in[4] - a * a * in[2], q = b * (in[3] - a * a * in[1]);

    out[0] = a * a * b * b * in[0] - (a * a + b * b) * in[2] + in[4];
    out[1] = u + v;
    out[2] = u - v;
    out[3] = p + q;
    out[4] = p - q;
    out[5] = a * a * b * b * in[1] - (a * a + b * b) * in[3] + in[5];
}

/* out = Aᵀ in, one dimension. */
static inline void output_1d(const vec in[6], vec out[4])
{
    const float a = WINOGRAD_A, b = WINOGRAD_B;
    vec s = in[1] + in[2], d = in[1] - in[2], p = in[3] + in[4], q = in[3] - in[4];

    out[0] = in[0] + s + p;
    out[1] = a * d + b * q;
    out[2] = a * a * s + b * b * p;
    out[3] = a * a * a * d + b * b * b * q + in[5];
}

/* out = G in, one dimension. In double: an error of a constant that all channels share does not
 * average out in the sum over them. */
static inline void filter_1d(const vecd in[3], vecd out[6])
{
    const double a = WINOGRAD_A, b = WINOGRAD_B;
    const double f0 = a * a * b * b, fa = 2 * a * a * (a * a - b * b),
                 fb = 2 * b * b * (b * b - a * a);
    vecd u = (in[0] + a * a * in[2]) * (1 / fa), v = in[1] * (a / fa);
    vecd p = (in[0] + b * b * in[2]) * (1 / fb), q = in[1] * (b / fb);

    out[0] = in[0] * (1 / f0);
    out[1] = u + v;
    out[2] = u - v;
    out[3] = p + q;
    out[4] = p - q;
    out[5] = in[2];
}

static void winograd_filter(const float *g, int width, float *u, size_t stride)
{
    for (int i = 0; i < width; i += VL) {
        vecd rows[3][6], column[3], out[6];

        for (int y = 0; y < 3; y++) {
            for (int x = 0; x < 3; x++)
                column[x] = __builtin_convertvector(load(g + (y * 3 + x) * NR + i), vecd);
            filter_1d(column, rows[y]);
        }
        for (int x = 0; x < 6; x++) {
            for (int y = 0; y < 3; y++)
                column[y] = rows[y][x];
            filter_1d(column, out);
            for (int y = 0; y < 6; y++)
                store(u + (size_t)(y * 6 + x) * stride + i, __builtin_convertvector(out[y], vec));
        }
    }
}

static void winograd_input(const void *const pixels[36], enum dtype dtype, int n,
                           const struct pre *pre, float *v, size_t stride)
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        vec rows[6][6], column[6], out[6];

        for (int y = 0; y < 6; y++) {
            for (int x = 0; x < 6; x++) {
                const void *pixel = pixels[y * 6 + x];
                column[x] = pixel == NULL
                                ? splat(0)
                                : apply_pre(pre, i, count, load_as(pixel, dtype, (size_t)i, count));
            }
            input_1d(column, rows[y]);
        }
        for (int x = 0; x < 6; x++) {
            for (int y = 0; y < 6; y++)
                column[y] = rows[y][x];
            input_1d(column, out);
            for (int y = 0; y < 6; y++)
                store_as(v, DTYPE_F32, (size_t)(y * 6 + x) * stride + (size_t)i, count, out[y]);
        }
    }
}

static void winograd_output(const float *m, size_t stride, int n, const struct finish finish[16])
{
    for (int i = 0; i < n; i += VL) {
        int count = part(n, i);
        vec rows[6][4], column[6], out[4];

        for (int y = 0; y < 6; y++) {
            for (int x = 0; x < 6; x++)
                column[x] = load(m + (size_t)(y * 6 + x) * stride + i);
            output_1d(column, rows[y]);
        }
        for (int x = 0; x < 4; x++) {
            for (int y = 0; y < 6; y++)
                column[y] = rows[y][x];
            output_1d(column, out);
            for (int y = 0; y < 4; y++)
                if (finish[y * 4 + x].y != NULL)
                    finish_part(out[y], i, count, &finish[y * 4 + x]);
        }
    }
}

const struct cpu_kernels PASTE(CPU_KERNELS_, KERNELS_ISA) = {
    .isa = STRING(KERNELS_ISA),
    .vl = VL,
    .nr = NR,
#if defined(KERNELS_TILES)
    .rows = TILES_ROWS,
#else
    .rows = 12,
#endif
    .gemm_f32 = gemm_f32,
#if defined(KERNELS_TILES)
    .bf16_dot = true,
    .tiles = true,
    .gemm_bf16 = tiles_gemm,
#elif defined(__AVX512BF16__)
    .bf16_dot = true,
    .gemm_bf16 = gemm_bf16,
#endif
    .load_f32 = load_f32,
    .load_bf16 = load_bf16,
    .turn = turn,
    .finish = finish,
    .finish_as = finish_as,
    .finish_geglu = finish_geglu,
    .moments = moments,
    .layer_norm = layer_norm,
    .softmax = softmax,
    .scale = scale,
    .winograd_filter = winograd_filter,
    .winograd_input = winograd_input,
    .winograd_output = winograd_output,
};
