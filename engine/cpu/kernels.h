/*
 * kernels.h: the inner loops of the CPU back end, compiled once per instruction set.
 *
 * kernels.c is one source; the build compiles it for plain x86-64 or whatever the machine is
 * ("generic"), AVX2, AVX-512, AVX-512 with BF16 and the same with AMX's tiles, each into a table of
 * its own, and cpu_kernels_find picks one at run time. All functions are pure, single-threaded and
 * allocate nothing.
 *
 * A matrix B of k × n is packed into panels of `nr` columns, each panel k × nr and contiguous; a
 * last panel of at most `vl` columns is k × vl. Columns beyond n are zero. In the bf16 form two
 * consecutive k lie together, (k / 2) × width × 2, and k is padded to even with zeros.
 *
 * Each element of a product is one chain of fused multiply-adds over k in order (of tiles: what
 * tiles.h says), whatever m and n are: this is what makes a sample's result independent of its
 * batch.
 */
#ifndef ATELIER_ENGINE_CPU_KERNELS_H
#define ATELIER_ENGINE_CPU_KERNELS_H

#include "engine/backend.h"

#include <stddef.h>
#include <stdint.h>

/* The interpolation points of Winograd's F(4×4, 3×3) beside 0 and infinity are ±A and ±B: of small
 * fractions these gave the smallest error, 1.4e-6 where the usual ±1 and ±2 give 3.3e-6 (256
 * channels of normal values). */
#define WINOGRAD_A 0.625f
#define WINOGRAD_B 1.5f

/* What happens to a finished row of products. All inputs are optional but `y`. */
struct finish {
    const float *bias;   /* [n] */
    const float *time;   /* [n], added after bias */
    enum activation act; /* not ACT_GEGLU */
    const void *residual;
    enum dtype residual_dtype;
    void *y;
    enum dtype y_dtype;
};

/* An affine and SiLU on the way in; scale NULL: as it is, shift NULL: none. */
struct pre {
    const float *scale, *shift; /* [n] */
    bool silu;
};

struct cpu_kernels {
    const char *isa;
    int vl;   /* floats of a vector */
    int nr;   /* columns of a panel, 2·vl */
    int rows; /* blocks of A's rows are multiples of it, but for the last */
    bool bf16_dot;
    bool tiles; /* gemm_bf16 runs on AMX, some ten times the rate of f32 */

    /* c (m × n, stride ldc, written in whole vectors) = or += a (m × k, stride lda) · panels. */
    void (*gemm_f32)(int m, int n, int k, const float *a, size_t lda, const float *panels,
                     size_t panel_stride, float *c, size_t ldc, bool add);
    /* The same over bf16 pairs; k even. NULL without bf16_dot. */
    void (*gemm_bf16)(int m, int n, int k, const uint16_t *a, size_t lda, const uint16_t *panels,
                      size_t panel_stride, float *c, size_t ldc, bool add);

    /* dst[n] = pre(src[n]); the bf16 form rounds. */
    void (*load_f32)(float *dst, const void *src, enum dtype dtype, int n, const struct pre *pre);
    void (*load_bf16)(uint16_t *dst, const void *src, enum dtype dtype, int n,
                      const struct pre *pre);

    /* to[i · width + c] = from[c · stride + i] for n words i of `width` rows, a multiple of vl. */
    void (*turn)(uint32_t *to, int width, const uint32_t *from, size_t stride, int n);

    /* y = act(c + bias + time) + residual over n columns. */
    void (*finish)(const float *c, int n, const struct finish *finish);
    void (*finish_as)(const void *c, enum dtype dtype, int n, const struct finish *finish);
    /* y[j] = (c[value j] + bias[j]) · gelu(c[gate j] + bias[half + j]) + residual; values and gates
     * alternate by panels of nr. `first` is the first column of y, for bias. */
    void (*finish_geglu)(const float *c, int n, int first, int half, const struct finish *finish);

    /* Sums of x - pivot and of its squares over `rows` rows of n columns at stride ld, by column,
     * added to sum and squares. */
    void (*moments)(const void *x, enum dtype dtype, size_t ld, int64_t rows, int n,
                    const float *pivot, float *sum, float *squares);
    void (*layer_norm)(const void *x, enum dtype x_dtype, void *y, enum dtype y_dtype, int n,
                       const float *gamma, const float *beta, float eps);

    /* One block of online softmax over scores in units of ln 2: s (rows × keys, stride lds) becomes
     * 2^(s - max), in place or, rounded, in `narrow` at the same stride with a zero after an odd n.
     * max and sum [rows] are carried on; alpha [rows] is what earlier results must be scaled by.
     * Keys from keys[row] on become 0 when `keys` is given. */
    void (*softmax)(float *s, uint16_t *narrow, size_t lds, int rows, int n, const int *keys,
                    float *max, float *sum, float *alpha);
    /* x[n] *= factor */
    void (*scale)(float *x, int n, float factor);

    /* Winograd's filters: g[tap][nr] for nr outputs of one input channel; column j of tap t of G g
     * Gᵀ goes to u[t · stride + j] for j < width, a multiple of vl. */
    void (*winograd_filter)(const float *g, int width, float *u, size_t stride);

    /* Winograd F(4×4, 3×3). pixels[36] point at n channels each, NULL outside of the picture; tap t
     * of channel i goes to v[t · stride + i]. */
    void (*winograd_input)(const void *const pixels[36], enum dtype dtype, int n,
                           const struct pre *pre, float *v, size_t stride);
    /* m[t · stride + i] for 36 taps becomes 16 pixels; finish[p].y NULL: outside. */
    void (*winograd_output)(const float *m, size_t stride, int n, const struct finish finish[16]);
};

/* By name ("generic", "avx2", "avx512", "avx512_bf16", "amx_bf16") or the best for "auto"; NULL
 * when this processor or build lacks it. */
const struct cpu_kernels *cpu_kernels_find(const char *isa);

/* The processor's brand, for people. Static storage. */
const char *cpu_brand(void);

#endif
