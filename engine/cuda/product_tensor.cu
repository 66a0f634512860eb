/*
 * Products on tensor cores: matrix products, and 3×3 convolutions as implicit ones.
 *
 * A row is an output pixel, a column an output channel, and the sum runs over taps, and within a
 * tap over channels, 32 at a time. What a block needs of x and w comes to shared memory by
 * cp.async, stages ahead of its use; taps in the padding and channels past the end arrive as zeros,
 * so that no picture is padded and no weight is stored twice. Shared rows are 64 bytes; their four
 * 16-byte parts are permuted by the row's number, so that eight rows of a matrix lie in different
 * banks.
 *
 * An element is the same chain of mma instructions over k wherever its row lies in a tile and
 * whatever the other rows are: a picture does not depend on its batch. Splits of the sum go to
 * `partial` and are added in order by another kernel.
 */
#include "engine/cuda/product_put.h"

#define DEPTH 32          /* elements of k per stage */
#define PARTS (DEPTH / 8) /* 16-byte parts of a shared row */

/* Where part `part` of row `row` lies in a shared tile, in elements. */
static __device__ __forceinline__ int shared_at(int row, int part)
{
    return row * DEPTH + ((part ^ (row >> 1)) & (PARTS - 1)) * 8;
}

/* Walks over (tap, channels) in steps of DEPTH. */
struct walk {
    int tap, c;
};

static __device__ __forceinline__ void walk_on(const struct product *p, struct walk *w)
{
    w->c += DEPTH;
    if (w->c >= p->in) {
        w->c = 0;
        w->tap++;
    }
}

template <int ROWS, int COLUMNS, int WARPS_M, int WARPS_N, int STAGES> struct tile {
    static constexpr int THREADS = WARP * WARPS_M * WARPS_N;
    static constexpr int M = ROWS / WARPS_M / 16; /* mma tiles of a warp */
    static constexpr int N = COLUMNS / WARPS_N / 8;
    static constexpr int A_EACH = ROWS * PARTS / THREADS; /* 16-byte copies of a thread */
    static constexpr int B_EACH = COLUMNS * PARTS / THREADS;
    static constexpr int STAGE = (ROWS + COLUMNS) * DEPTH; /* elements */
    static constexpr size_t SHARED = (size_t)STAGES * STAGE * 2;
    static_assert(A_EACH * THREADS == ROWS * PARTS && B_EACH * THREADS == COLUMNS * PARTS, "");
    static_assert(N % 2 == 0, "matrices of w are loaded in pairs");
};

/* Copies one stage. `places` are this thread's rows. */
template <typename T>
static __device__ __forceinline__ void copy_stage(const struct product *p, uint16_t *stage,
                                                  int rows, const struct row_place *places,
                                                  const int64_t *w_rows, struct walk at, bool real)
{
    int part = (int)threadIdx.x % PARTS, first = (int)threadIdx.x / PARTS;
    constexpr int apart = T::THREADS / PARTS;
    int c = at.c + part * 8, ky = at.tap / p->kernel, kx = at.tap % p->kernel;
    const uint16_t *x = (const uint16_t *)p->x, *w = (const uint16_t *)p->w;
    bool inside = real && c < p->in;

#pragma unroll
    for (int i = 0; i < T::A_EACH; i++) {
        int64_t from = inside && places[i].n >= 0 ? tap_place(p, places[i], ky, kx) : -1;
        copy_async(stage + shared_at(first + i * apart, part), x + (from >= 0 ? from + c : 0),
                   from >= 0);
    }
#pragma unroll
    for (int i = 0; i < T::B_EACH; i++) {
        bool valid = inside && w_rows[i] >= 0;
        copy_async(stage + rows * DEPTH + shared_at(first + i * apart, part),
                   w + (valid ? w_rows[i] + (int64_t)at.tap * p->in + c : 0), valid);
    }
}

/* One stage: two steps of 16 along k. */
template <typename H, typename T>
static __device__ __forceinline__ void multiply_stage(const uint16_t *a, const uint16_t *b, int row,
                                                      int column, float sum[][T::N][4])
{
    int lane = (int)threadIdx.x % WARP;

#pragma unroll
    for (int step = 0; step < DEPTH / 16; step++) {
        uint32_t fa[T::M][4], fb[T::N / 2][4];
#pragma unroll
        for (int i = 0; i < T::M; i++)
            load_matrices(fa[i], a + shared_at(row + i * 16 + (lane & 15), step * 2 + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < T::N / 2; j++)
            load_matrices(fb[j], b + shared_at(column + j * 16 + (lane & 7) + (lane >> 4) * 8,
                                               step * 2 + (lane >> 3 & 1)));
#pragma unroll
        for (int i = 0; i < T::M; i++)
#pragma unroll
            for (int j = 0; j < T::N; j++)
                H::multiply(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
}

template <typename H, int ROWS, int COLUMNS, int WARPS_M, int WARPS_N, int STAGES>
__global__ __launch_bounds__(WARP *WARPS_M *WARPS_N) void product_tensor(struct product p)
{
    using T = tile<ROWS, COLUMNS, WARPS_M, WARPS_N, STAGES>;
    uint16_t *shared = (uint16_t *)shared_memory();
    int64_t count = (int64_t)p.n * p.y_h * p.y_w, first = (int64_t)blockIdx.x * ROWS;
    int column = (int)blockIdx.y * COLUMNS, taps = p.kernel * p.kernel;
    int warp = (int)threadIdx.x / WARP, mine = (int)threadIdx.x / PARTS;
    int row = warp / WARPS_N * (ROWS / WARPS_M), right = warp % WARPS_N * (COLUMNS / WARPS_N);
    int per_tap = (p.in + DEPTH - 1) / DEPTH, all = taps * per_tap;
    int begin = (int)((int64_t)all * blockIdx.z / p.splits);
    int end = (int)((int64_t)all * (blockIdx.z + 1) / p.splits);
    struct row_place places[T::A_EACH];
    int64_t w_rows[T::B_EACH];
    struct walk walk;
    float sum[T::M][T::N][4];

#pragma unroll
    for (int i = 0; i < T::A_EACH; i++) {
        int64_t at = first + mine + i * (T::THREADS / PARTS);
        places[i] = row_place(&p, at < count ? at : 0);
        if (at >= count)
            places[i].n = -1;
    }
#pragma unroll
    for (int i = 0; i < T::B_EACH; i++) {
        int o = column + mine + i * (T::THREADS / PARTS);
        w_rows[i] = o < p.out ? (int64_t)o * taps * p.in : -1;
    }
#pragma unroll
    for (int i = 0; i < T::M; i++)
#pragma unroll
        for (int j = 0; j < T::N; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                sum[i][j][k] = 0;

    walk.tap = begin / per_tap;
    walk.c = begin % per_tap * DEPTH;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        copy_stage<T>(&p, shared + s * T::STAGE, ROWS, places, w_rows, walk, begin + s < end);
        copy_commit();
        walk_on(&p, &walk);
    }
    for (int at = begin; at < end; at++) {
        int stage = (at - begin) % STAGES, ahead = (at - begin + STAGES - 1) % STAGES;
        copy_wait<STAGES - 2>();
        barrier(); /* the stage is here, and nobody reads the one that is filled next */
        copy_stage<T>(&p, shared + ahead * T::STAGE, ROWS, places, w_rows, walk,
                      at + STAGES - 1 < end);
        copy_commit();
        walk_on(&p, &walk);
        multiply_stage<H, T>(shared + stage * T::STAGE, shared + stage * T::STAGE + ROWS * DEPTH,
                             row, right, sum);
    }
    copy_wait<0>();
    put_tile<T::M, T::N>(&p, first + row, column + right, sum);
}

template <typename H>
static void product_tensor_of(struct queue *queue, const struct product *p,
                              const struct product_tile *tile_)
{
    int64_t x = blocks_for(product_rows(p), tile_->rows);
    int64_t y = blocks_for(p->out, tile_->columns);
    struct product q = *p;

    q.splits = tile_->splits;
    if (tile_->rows == 128 && tile_->columns == 128)
        enqueue<product_tensor<H, 128, 128, 2, 4, 4>>(queue, q, x, y, q.splits, 256,
                                                      tile<128, 128, 2, 4, 4>::SHARED);
    else if (tile_->rows == 128)
        enqueue<product_tensor<H, 128, 64, 4, 2, 4>>(queue, q, x, y, q.splits, 256,
                                                     tile<128, 64, 4, 2, 4>::SHARED);
    else
        enqueue<product_tensor<H, 64, 64, 2, 2, 4>>(queue, q, x, y, q.splits, 128,
                                                    tile<64, 64, 2, 2, 4>::SHARED);
}

void kernel_product_tensor(struct queue *queue, const struct product *p,
                           const struct product_tile *tile_)
{
    if (p->w_dtype == DTYPE_BF16)
        product_tensor_of<half_bf16>(queue, p, tile_);
    else
        product_tensor_of<half_f16>(queue, p, tile_);
}
