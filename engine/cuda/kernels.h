/*
 * kernels.h: every kernel of the CUDA back end as a function that appends it to a queue.
 *
 * Addresses are the card's, or pinned host memory where that is said. Rows are pixels or tokens,
 * channels last; `ld` is the distance of rows in elements. dtypes are those of tensor.h.
 */
#ifndef ATELIER_ENGINE_CUDA_KERNELS_H
#define ATELIER_ENGINE_CUDA_KERNELS_H

#include "engine/cuda/queue.h"
#include "engine/tensor.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct matrix {
    void *data;
    int64_t rows;
    int columns, ld;
    int dtype; /* enum dtype */
    int gap;
};

/* What a group norm became: x·scale + shift, then perhaps SiLU. [n × channels]; scale may
 * be NULL, and so may shift. */
struct pre {
    const float *scale, *shift;
    int silu, gap;
};

/* ---- products: 1×1 is a matrix product, 3×3 an implicit one ---- */

enum product_act { PRODUCT_NONE, PRODUCT_SILU, PRODUCT_GELU, PRODUCT_QUICK_GELU, PRODUCT_GEGLU };

/* y = act(pre(x) at each tap · w + bias + time) + residual, as backend.h says. */
struct product {
    const void *x, *w, *residual;
    void *y;
    const float *bias, *time; /* time: [n × out], time_ld apart */
    float *partial;           /* [splits × rows × out], when the sum is finished apart */
    struct pre pre;           /* kernel_product_simple and _rows only */
    int x_dtype, x_ld, w_dtype, y_dtype, y_ld, residual_dtype, residual_ld, time_ld;
    int round; /* dtype that x is rounded to after pre, by those that have pre */
    int n, x_h, x_w, y_h, y_w;
    int in, out; /* out: rows of w, for GEGLU twice y's columns */
    int kernel, stride, pad, upsample;
    int act;
    int interleaved; /* w's rows: 8 values, their 8 gates, 8 values, … */
    int splits;      /* of the sum over taps and channels */
    int gap;
};

/* Tiles of kernel_product_tensor: 128×128, 128×64 or 64×64; of kernel_product_group: 128×256,
 * 128×160 or 128×128. */
struct product_tile {
    int rows, columns, splits;
    bool group;   /* by warpgroups */
    bool library; /* by cublasLt, where it takes the product; else as above */
};

/* Tensor cores. x and w both f16 or both bf16; in, out, x_ld multiples of 8, y_ld and residual_ld
 * even, 16-byte aligned x and w, GEGLU only interleaved. With partial set, kernel_product_finish
 * has to follow. */
void kernel_product_tensor(struct queue *queue, const struct product *p,
                           const struct product_tile *tile);
/* The same by warpgroups, which sm_90 has. */
void kernel_product_group(struct queue *queue, const struct product *p,
                          const struct product_tile *tile);
/* Anything else, one multiply-add after another in f32; GEGLU needs partial, splits is 1. */
void kernel_product_simple(struct queue *queue, const struct product *p);
/* One warp per output: for samples of one row each. kernel 1, no GEGLU. */
void kernel_product_rows(struct queue *queue, const struct product *p);
/* y from partial: the splits added up in order, then all that follows the sum. */
void kernel_product_finish(struct queue *queue, const struct product *p);

/* ---- attention ---- */

struct attend {
    const void *q, *k, *v;
    void *y;
    int q_ld, k_ld, v_ld, y_ld;
    int q_dtype, k_dtype, v_dtype, y_dtype;
    int n, tq, tk, heads, d;
    int causal;
    float scale;
    int gap;
};

/* Tensor cores; q, k, v of one 16-bit dtype, d and ld multiples of 8, 16-byte aligned, y_ld even.
 */
void kernel_attention(struct queue *queue, const struct attend *a);      /* d ≤ 160 */
void kernel_attention_wide(struct queue *queue, const struct attend *a); /* d ≤ 512 */
/* kernel_attention by warpgroups, which sm_90 has, for what attention_group_takes. */
bool attention_group_takes(const struct attend *a);
void kernel_attention_group(struct queue *queue, const struct attend *a);
/* Any dtype and d ≤ 512, in f32. */
void kernel_attention_simple(struct queue *queue, const struct attend *a);

/* ---- norms ---- */

/* Pixels that one block sums, by the picture's alone. */
int group_norm_chunk(int64_t pixels);
/* partial: [n × chunks × groups × 2] f32. */
void kernel_group_norm(struct queue *queue, const struct matrix *x, int n, int groups, float eps,
                       const float *gamma, const float *beta, float *partial, float *scale,
                       float *shift);
void kernel_layer_norm(struct queue *queue, const struct matrix *x, const struct matrix *y,
                       float eps, const float *gamma, const float *beta);

/* ---- moving ---- */

/* y = pre(x) rounded to y's dtype. */
void kernel_apply(struct queue *queue, const struct matrix *x, const struct matrix *y,
                  int64_t rows_each, const struct pre *pre);
/* y += scale · x */
void kernel_add(struct queue *queue, const struct matrix *x, float scale, const struct matrix *y);
/* The lowest frequencies of one sample's channels times `by` (freeu.h). */
void kernel_damp(struct queue *queue, const struct matrix *x, int height, int width, float by);
/* Each row of y is the mean of a sample's pixels. */
void kernel_mean(struct queue *queue, const struct matrix *x, int height, int width,
                 const struct matrix *y);
void kernel_concat(struct queue *queue, const struct matrix *a, const struct matrix *b,
                   const struct matrix *y);
/* Between planes of f32 (n × c × pixels, pinned host memory) and rows. */
void kernel_upload(struct queue *queue, const float *planes, const struct matrix *y,
                   int64_t pixels);
void kernel_download(struct queue *queue, float *planes, const struct matrix *x, int64_t pixels);
/* y[i] = tokens[ids[i]] + positions[i mod period]; ids in pinned host memory. */
void kernel_embed(struct queue *queue, const int *ids, const void *tokens, int tokens_dtype,
                  const void *positions, int positions_dtype, int period, const struct matrix *y);

/* ---- weights ---- */

/* `count` elements from `first` of a part as torch stores it (out × in × taps), which lie at
 * `from`, into w (rows × taps × in) from row `row` on. */
struct rearrange {
    const void *from;
    void *w;
    int64_t first, count;
    int from_dtype, w_dtype;
    int in, taps, row;
    int half; /* > 0: GEGLU rows are interleaved; values are [0, half) */
};

void kernel_rearrange(struct queue *queue, const struct rearrange *r);

#ifdef __cplusplus
}
#endif
#endif
