/*
 * Products without tensor cores: f32, narrow filters, odd numbers of channels, single rows; and
 * what follows a sum that was left unfinished.
 *
 * Every sum runs over taps and channels in order with fused multiply-adds, whatever tile it is in.
 */
#include "engine/cuda/product.h"

#define DEPTH 16

/* A block makes `rows` × `columns`, a thread rows/TM by columns/TN of it. */
template <int rows, int columns, int TM, int TN>
static __device__ __forceinline__ void product_tile_simple(const struct product *p)
{
    constexpr int A_LD = rows + 4, B_LD = columns + 4;
    constexpr int ACROSS = columns / TN;
    float *a = (float *)shared_memory(), *b = a + DEPTH * A_LD;
    struct row_place *places = (struct row_place *)(b + DEPTH * B_LD);
    int64_t first = (int64_t)blockIdx.x * rows, count = (int64_t)p->n * p->y_h * p->y_w;
    int column = (int)blockIdx.y * columns, taps = p->kernel * p->kernel, depth = taps * p->in;
    int tid = (int)threadIdx.x, ty = tid / ACROSS * TM, tx = tid % ACROSS * TN;
    float sum[TM][TN];

    static_assert(rows / TM * (columns / TN) == BLOCK, "one output patch per thread");
    for (int i = tid; i < rows; i += BLOCK)
        places[i] = row_place(p, first + i < count ? first + i : count - 1);
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++)
            sum[i][j] = 0;
    barrier();
    for (int k0 = 0; k0 < depth; k0 += DEPTH) {
        for (int e = tid; e < rows * DEPTH; e += BLOCK) {
            int m = e / DEPTH, k = k0 + e % DEPTH, tap = k / p->in, c = k % p->in;
            int64_t at = -1;
            float v = 0;
            if (k < depth)
                at = tap_place(p, places[m], tap / p->kernel, tap % p->kernel);
            if (at >= 0) {
                v = load_element(p->x, p->x_dtype, at + c);
                v = pre_apply(&p->pre, (int64_t)places[m].n * p->in + c, v);
                v = round_element(p->round, v);
            }
            a[e % DEPTH * A_LD + m] = v;
        }
        for (int e = tid; e < columns * DEPTH; e += BLOCK) {
            int o = column + e / DEPTH, k = k0 + e % DEPTH;
            b[e % DEPTH * B_LD + e / DEPTH] =
                o < p->out && k < depth ? load_element(p->w, p->w_dtype, (int64_t)o * depth + k)
                                        : 0;
        }
        barrier();
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++)
                    sum[i][j] = fmaf(a[k * A_LD + ty + i], b[k * B_LD + tx + j], sum[i][j]);
        barrier();
    }
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) {
            int64_t row = first + ty + i;
            int c = column + tx + j;
            if (row >= count || c >= p->out)
                continue;
            if (p->partial != nullptr) {
                p->partial[row * p->out + c] = sum[i][j];
                continue;
            }
            float v = finish_sum(p, places[ty + i].n, c, sum[i][j]);
            if (p->residual != nullptr)
                v += load_element(p->residual, p->residual_dtype, row * p->residual_ld + c);
            store_element(p->y, p->y_dtype, row * p->y_ld + c, v);
        }
}

__global__ __launch_bounds__(BLOCK) void product_simple_square(struct product p)
{
    product_tile_simple<64, 64, 4, 4>(&p);
}

/* For few outputs: the last convolution of a decoder makes three. */
__global__ __launch_bounds__(BLOCK) void product_simple_narrow(struct product p)
{
    product_tile_simple<256, 8, 2, 4>(&p);
}

static constexpr size_t simple_shared(int rows, int columns)
{
    return sizeof(float) * DEPTH * (size_t)(rows + 4 + columns + 4) +
           sizeof(struct row_place) * (size_t)rows;
}

void kernel_product_simple(struct queue *queue, const struct product *p)
{
    int64_t rows = product_rows(p);

    if (p->out <= 8)
        enqueue<product_simple_narrow>(queue, *p, blocks_for(rows, 256), 1, 1, BLOCK,
                                       simple_shared(256, 8));
    else
        enqueue<product_simple_square>(queue, *p, blocks_for(rows, 64), blocks_for(p->out, 64), 1,
                                       BLOCK, simple_shared(64, 64));
}

/* ---- one warp per output of one row ---- */

__global__ void product_rows_warp(struct product p)
{
    int lane = (int)threadIdx.x % WARP;
    int c = (int)blockIdx.x * (BLOCK / WARP) + (int)threadIdx.x / WARP;
    int64_t row = blockIdx.y, n = row / ((int64_t)p.y_h * p.y_w);
    int known = c < p.out ? c : p.out - 1; /* full warps go on together */
    float sum = 0;

    for (int k = lane; k < p.in; k += WARP) {
        float v = load_element(p.x, p.x_dtype, row * p.x_ld + k);
        v = round_element(p.round, pre_apply(&p.pre, n * p.in + k, v));
        sum = fmaf(v, load_element(p.w, p.w_dtype, (int64_t)known * p.in + k), sum);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1)
        sum += shuffle_xor(sum, mask);
    if (lane != 0 || c >= p.out)
        return;
    sum = finish_sum(&p, n, c, sum);
    if (p.residual != nullptr)
        sum += load_element(p.residual, p.residual_dtype, row * p.residual_ld + c);
    store_element(p.y, p.y_dtype, row * p.y_ld + c, sum);
}

void kernel_product_rows(struct queue *queue, const struct product *p)
{
    enqueue<product_rows_warp>(queue, *p, blocks_for(p->out, BLOCK / WARP), product_rows(p), 1,
                               BLOCK, 0);
}

/* ---- finishing ---- */

/* Where column c of y has its value among the product's columns, and where its gate. */
static __device__ __forceinline__ int value_column(const struct product *p, int c)
{
    return p->act == PRODUCT_GEGLU && p->interleaved ? c / 8 * 16 + c % 8 : c;
}

static __device__ __forceinline__ int gate_column(const struct product *p, int c)
{
    return p->interleaved ? c / 8 * 16 + c % 8 + 8 : p->out / 2 + c;
}

/* `step` neighbouring sums from product column c of a row. */
template <int step>
static __device__ __forceinline__ void load_sums(const struct product *p, int64_t rows, int64_t row,
                                                 int c, float v[step])
{
#pragma unroll
    for (int k = 0; k < step; k++)
        v[k] = 0;
    for (int s = 0; s < p->splits; s++) {
        int64_t at = ((int64_t)s * rows + row) * p->out + c;
        float more[step];
        if constexpr (step == 8)
            load8(more, p->partial, DTYPE_F32, at);
        else
            more[0] = p->partial[at];
#pragma unroll
        for (int k = 0; k < step; k++)
            v[k] += more[k];
    }
}

template <int step> static __device__ __forceinline__ void finish_some(const struct product *p)
{
    int columns = (p->act == PRODUCT_GEGLU ? p->out / 2 : p->out) / step;
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row = i / columns;
    int64_t rows = (int64_t)p->n * p->y_h * p->y_w, n = row / ((int64_t)p->y_h * p->y_w);
    int c = (int)(i % columns) * step;
    float v[step], more[step];

    if (row >= rows)
        return;
    load_sums<step>(p, rows, row, value_column(p, c), v);
    if (p->act == PRODUCT_GEGLU)
        load_sums<step>(p, rows, row, gate_column(p, c), more);
#pragma unroll
    for (int k = 0; k < step; k++)
        v[k] = p->act == PRODUCT_GEGLU ? finish_geglu(p, c + k, v[k], more[k])
                                       : finish_sum(p, n, c + k, v[k]);
    if (p->residual != nullptr) {
        int64_t at = row * p->residual_ld + c;
        if constexpr (step == 8)
            load8(more, p->residual, p->residual_dtype, at);
        else
            more[0] = load_element(p->residual, p->residual_dtype, at);
#pragma unroll
        for (int k = 0; k < step; k++)
            v[k] += more[k];
    }
    if constexpr (step == 8)
        store8(p->y, p->y_dtype, row * p->y_ld + c, v);
    else
        store_element(p->y, p->y_dtype, row * p->y_ld + c, v[0]);
}

__global__ void product_finish_eights(struct product p)
{
    finish_some<8>(&p);
}

__global__ void product_finish_each(struct product p)
{
    finish_some<1>(&p);
}

void kernel_product_finish(struct queue *queue, const struct product *p)
{
    int64_t work = product_rows(p) * product_columns(p);
    bool geglu = p->act == PRODUCT_GEGLU;
    bool eights = product_columns(p) % 8 == 0 && (!geglu || p->interleaved) && p->y_ld % 8 == 0 &&
                  (uintptr_t)p->y % 16 == 0 && p->residual_ld % 8 == 0 &&
                  (uintptr_t)p->residual % 16 == 0;

    if (eights)
        enqueue<product_finish_eights>(queue, *p, blocks_for(work / 8, BLOCK), 1, 1, BLOCK, 0);
    else
        enqueue<product_finish_each>(queue, *p, blocks_for(work, BLOCK), 1, 1, BLOCK, 0);
}
