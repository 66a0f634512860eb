/*
 * Products on tensor cores: matrix products, and 3×3 convolutions as implicit ones.
 *
 * A row is an output pixel, a column an output channel, and the sum runs over channels, 32 at a
 * time, and within those over taps. What a block needs of x and w comes to shared memory by
 * cp.async, stages ahead of its use (product_copy.h); taps in the padding and channels past the end
 * arrive as zeros, so that no picture is padded and no weight is stored twice. Shared rows are 64
 * bytes; their four 16-byte parts are permuted by the row's number, so that eight rows of a matrix
 * lie in different banks.
 *
 * An element is the same chain of mma instructions over k wherever its row lies in a tile and
 * whatever the other rows are: a picture does not depend on its batch. Splits of the sum go to
 * `partial` and are added in order by another kernel.
 */
#include "engine/cuda/product_copy.h"
#include "engine/cuda/product_put.h"

#define DEPTH 32 /* elements of k per stage */

/* Where part `part` of row `row` lies in a shared tile, in elements. */
struct permuted {
    static __device__ __forceinline__ int at(int row, int part)
    {
        return row * DEPTH + ((part ^ (row >> 1)) & (DEPTH / 8 - 1)) * 8;
    }
};

template <int ROWS, int COLUMNS, int WARPS_M, int WARPS_N, int STAGES> struct tile {
    static constexpr int THREADS = WARP * WARPS_M * WARPS_N;
    static constexpr int M = ROWS / WARPS_M / 16; /* mma tiles of a warp */
    static constexpr int N = COLUMNS / WARPS_N / 8;
    using C = copier<DEPTH, ROWS, COLUMNS, THREADS, permuted>;
    static constexpr size_t SHARED = (size_t)STAGES * C::STAGE * 2;
    static_assert(SHARED <= SHARED_MAX, "");
    static_assert(N % 2 == 0, "matrices of w are loaded in pairs");
};

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
            load_matrices(fa[i],
                          a + permuted::at(row + i * 16 + (lane & 15), step * 2 + (lane >> 4)));
#pragma unroll
        for (int j = 0; j < T::N / 2; j++)
            load_matrices(fb[j], b + permuted::at(column + j * 16 + (lane & 7) + (lane >> 4) * 8,
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
    int64_t first = (int64_t)blockIdx.x * ROWS;
    int column = (int)blockIdx.y * COLUMNS, warp = (int)threadIdx.x / WARP;
    int row = warp / WARPS_N * (ROWS / WARPS_M), right = warp % WARPS_N * (COLUMNS / WARPS_N);
    int all = p.kernel * p.kernel * ((p.in + DEPTH - 1) / DEPTH);
    int begin = (int)((int64_t)all * blockIdx.z / p.splits);
    int end = (int)((int64_t)all * (blockIdx.z + 1) / p.splits);
    typename T::C copier(&p, first, column);
    struct walk walk = walk_from(&p, begin, DEPTH);
    float sum[T::M][T::N][4];

#pragma unroll
    for (int i = 0; i < T::M; i++)
#pragma unroll
        for (int j = 0; j < T::N; j++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                sum[i][j][k] = 0;

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        copier.copy(&p, shared + s * T::C::STAGE, walk, begin + s < end);
        walk_on(&p, &walk, DEPTH);
    }
    for (int at = begin; at < end; at++) {
        const uint16_t *stage = shared + (at - begin) % STAGES * T::C::STAGE;
        int ahead = (at - begin + STAGES - 1) % STAGES;
        copy_wait<STAGES - 2>();
        barrier(); /* the stage is here, and nobody reads the one that is filled next */
        copier.copy(&p, shared + ahead * T::C::STAGE, walk, at + STAGES - 1 < end);
        walk_on(&p, &walk, DEPTH);
        multiply_stage<H, T>(stage, stage + ROWS * DEPTH, row, right, sum);
    }
    copy_wait<0>();
    put_tile<H, T::M, T::N>(&p, first + row, column + right, sum);
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
