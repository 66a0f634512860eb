/*
 * Norms.
 *
 * A group norm over channels-last pictures is two kernels: blocks sum chunks of pixels, then one
 * warp per group adds the chunks up, always in the same order. Chunks depend on the picture's size
 * alone. Squares are of differences from one value of the group, so that a mean far from zero costs
 * no digits.
 */
#include "engine/cuda/elements.h"

#define CHUNK_MIN 8
#define CHUNK_MAX 1024
#define CHUNKS_WANTED 64

int group_norm_chunk(int64_t pixels)
{
    int64_t chunk = (pixels + CHUNKS_WANTED - 1) / CHUNKS_WANTED;

    return (int)(chunk < CHUNK_MIN ? CHUNK_MIN : chunk > CHUNK_MAX ? CHUNK_MAX : chunk);
}

struct group_norm {
    struct matrix x;
    int64_t pixels; /* of a sample */
    int chunk, chunks;
    int groups;
    float eps;
    int step;  /* channels that a thread takes at once: 8 or 1 */
    int lanes; /* threads that share a channel's pixels */
    const float *gamma, *beta;
    float *partial, *scale, *shift;
};

static __device__ __forceinline__ float pivot(const struct group_norm *g, int64_t sample, int group)
{
    return load_element(g->x.data, g->x.dtype,
                        sample * g->pixels * g->x.ld + group * (g->x.columns / g->groups));
}

/* Sums and squares of one chunk by group. Shared: [2 × lanes × channels]. */
template <int step> static __device__ __forceinline__ void chunk_sums(const struct group_norm *g)
{
    float *sums = (float *)shared_memory();
    int columns = g->x.columns / step, width = g->x.columns / g->groups;
    int across = columns < BLOCK ? columns : BLOCK;
    int lane = (int)threadIdx.x / across, first = (int)threadIdx.x % across;
    int64_t sample = blockIdx.y, begin = (int64_t)blockIdx.x * g->chunk;
    int64_t end = begin + g->chunk < g->pixels ? begin + g->chunk : g->pixels;
    float *squares = sums + g->lanes * g->x.columns;

    for (int column = first; lane < g->lanes && column < columns; column += across) {
        float sum[step], square[step], from[step];
#pragma unroll
        for (int k = 0; k < step; k++) {
            sum[k] = square[k] = 0;
            from[k] = pivot(g, sample, (column * step + k) / width);
        }
#pragma unroll 4 /* so many loads are under way at once */
        for (int64_t i = begin + lane; i < end; i += g->lanes) {
            int64_t at = (sample * g->pixels + i) * g->x.ld + column * step;
            float v[step];
            if constexpr (step == 8)
                load8(v, g->x.data, g->x.dtype, at);
            else
                v[0] = load_element(g->x.data, g->x.dtype, at);
#pragma unroll
            for (int k = 0; k < step; k++) {
                float d = v[k] - from[k];
                sum[k] += d;
                square[k] = fmaf(d, d, square[k]);
            }
        }
#pragma unroll
        for (int k = 0; k < step; k++) {
            sums[lane * g->x.columns + column * step + k] = sum[k];
            squares[lane * g->x.columns + column * step + k] = square[k];
        }
    }
    barrier();
    for (int group = (int)threadIdx.x; group < g->groups; group += BLOCK) {
        float sum = 0, square = 0;
        float *to = g->partial + ((sample * g->chunks + blockIdx.x) * g->groups + group) * 2;
        for (int l = 0; l < g->lanes; l++)
            for (int c = group * width; c < (group + 1) * width; c++) {
                sum += sums[l * g->x.columns + c];
                square += squares[l * g->x.columns + c];
            }
        to[0] = sum;
        to[1] = square;
    }
}

__global__ void group_norm_sums_eights(struct group_norm g)
{
    chunk_sums<8>(&g);
}

__global__ void group_norm_sums_each(struct group_norm g)
{
    chunk_sums<1>(&g);
}

static __device__ __forceinline__ double warp_sum(double v)
{
    /* Two floats carry a double through a shuffle of floats. */
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1) {
        float high = (float)v, low = (float)(v - high);
        v += (double)shuffle_xor(high, mask) + shuffle_xor(low, mask);
    }
    return v;
}

/* One warp per group of one sample. */
__global__ void group_norm_finish(struct group_norm g)
{
    int group = (int)(blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP), lane = threadIdx.x % WARP;
    int64_t sample = blockIdx.y;
    int width = g.x.columns / g.groups;
    int known = group < g.groups ? group : g.groups - 1; /* full warps go on together */
    double sum = 0, square = 0, count = (double)g.pixels * width, mean, variance;
    float rstd, centre;

    for (int chunk = lane; chunk < g.chunks; chunk += WARP) {
        const float *from = g.partial + ((sample * g.chunks + chunk) * g.groups + known) * 2;
        sum += from[0];
        square += from[1];
    }
    sum = warp_sum(sum);
    square = warp_sum(square);
    mean = sum / count;
    variance = square / count - mean * mean;
    rstd = (float)(1 / sqrt((variance > 0 ? variance : 0) + g.eps));
    centre = (float)(mean + pivot(&g, sample, known));
    if (group >= g.groups)
        return;
    for (int c = group * width + lane; c < (group + 1) * width; c += WARP) {
        float scale = g.gamma[c] * rstd;
        g.scale[sample * g.x.columns + c] = scale;
        g.shift[sample * g.x.columns + c] = g.beta[c] - centre * scale;
    }
}

void kernel_group_norm(struct queue *queue, const struct matrix *x, int n, int groups, float eps,
                       const float *gamma, const float *beta, float *partial, float *scale,
                       float *shift)
{
    struct group_norm g = {};
    bool eights = in_eights(x);

    g.x = *x;
    g.pixels = x->rows / n;
    g.chunk = group_norm_chunk(g.pixels);
    g.chunks = (int)blocks_for(g.pixels, g.chunk);
    g.groups = groups;
    g.eps = eps;
    g.step = eights ? 8 : 1;
    g.lanes = BLOCK / (x->columns / g.step);
    g.lanes = g.lanes < 1 ? 1 : g.lanes;
    g.gamma = gamma;
    g.beta = beta;
    g.partial = partial;
    g.scale = scale;
    g.shift = shift;
    size_t shared = 2 * sizeof(float) * (size_t)g.lanes * (size_t)x->columns;
    if (eights)
        enqueue<group_norm_sums_eights>(queue, g, g.chunks, n, 1, BLOCK, shared);
    else
        enqueue<group_norm_sums_each>(queue, g, g.chunks, n, 1, BLOCK, shared);
    enqueue<group_norm_finish>(queue, g, blocks_for(groups, BLOCK / WARP), n, 1, BLOCK, 0);
}

/* ---- layer norm: one warp per row ---- */

struct layer_norm {
    struct matrix x, y;
    float eps;
    int gap;
    const float *gamma, *beta;
};

static __device__ __forceinline__ float warp_sum_f32(float v)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1)
        v += shuffle_xor(v, mask);
    return v;
}

template <int step>
static __device__ __forceinline__ void layer_norm_row(const struct layer_norm *l)
{
    int64_t row = (int64_t)blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
    int lane = (int)threadIdx.x % WARP, columns = l->x.columns;
    bool real = row < l->x.rows;
    int64_t from = (real ? row : 0) * l->x.ld, to = row * l->y.ld;
    float v[step], sum = 0, square = 0, mean, rstd;

    for (int c = lane * step; c < columns; c += WARP * step) {
        if constexpr (step == 8)
            load8(v, l->x.data, l->x.dtype, from + c);
        else
            v[0] = load_element(l->x.data, l->x.dtype, from + c);
#pragma unroll
        for (int k = 0; k < step; k++)
            sum += v[k];
    }
    mean = warp_sum_f32(sum) / columns;
    for (int c = lane * step; c < columns; c += WARP * step) {
        if constexpr (step == 8)
            load8(v, l->x.data, l->x.dtype, from + c);
        else
            v[0] = load_element(l->x.data, l->x.dtype, from + c);
#pragma unroll
        for (int k = 0; k < step; k++)
            square = fmaf(v[k] - mean, v[k] - mean, square);
    }
    rstd = 1 / sqrtf(warp_sum_f32(square) / columns + l->eps);
    if (!real)
        return;
    for (int c = lane * step; c < columns; c += WARP * step) {
        if constexpr (step == 8)
            load8(v, l->x.data, l->x.dtype, from + c);
        else
            v[0] = load_element(l->x.data, l->x.dtype, from + c);
#pragma unroll
        for (int k = 0; k < step; k++)
            v[k] = fmaf((v[k] - mean) * rstd, l->gamma[c + k], l->beta[c + k]);
        if constexpr (step == 8)
            store8(l->y.data, l->y.dtype, to + c, v);
        else
            store_element(l->y.data, l->y.dtype, to + c, v[0]);
    }
}

__global__ void layer_norm_eights(struct layer_norm l)
{
    layer_norm_row<8>(&l);
}

__global__ void layer_norm_each(struct layer_norm l)
{
    layer_norm_row<1>(&l);
}

void kernel_layer_norm(struct queue *queue, const struct matrix *x, const struct matrix *y,
                       float eps, const float *gamma, const float *beta)
{
    struct layer_norm l = {*x, *y, eps, 0, gamma, beta};
    int64_t blocks = blocks_for(x->rows, BLOCK / WARP);

    if (in_eights(x) && in_eights(y))
        enqueue<layer_norm_eights>(queue, l, blocks, 1, 1, BLOCK, 0);
    else
        enqueue<layer_norm_each>(queue, l, blocks, 1, 1, BLOCK, 0);
}
