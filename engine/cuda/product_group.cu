/*
 * Products by warpgroups, for Hopper: what product_tensor.cu does, with wgmma.
 *
 * A block has two warpgroups of 64 rows each over the same columns. What they multiply comes to
 * shared memory by cp.async, 64 of k at a time, two stages ahead of its use; while the products of
 * a stage run, the threads ask for a later one. A stage is written again two iterations after it
 * was read: then each warpgroup has waited for its products of it, and a barrier lies between.
 *
 * Tiles of 160 columns are there because 320, 640 and 1280 are multiples of it and not of 256.
 */
#include "engine/cuda/product_copy.h"
#include "engine/cuda/product_put.h"
#include "engine/cuda/warpgroup.h"

#define GROUPS 2
#define THREADS (GROUPS * WARPGROUP)
#define ROWS (GROUPS * GROUP_ROWS)
#define STAGES 4
#define AHEAD (STAGES - 2)

struct swizzled {
    static __device__ __forceinline__ int at(int row, int part)
    {
        return group_at(row, part);
    }
};

template <typename H, int COLUMNS>
static __device__ __forceinline__ void multiply_stage(const uint16_t *stage, int group,
                                                      float sum[COLUMNS / 8][4])
{
    group_begin();
#pragma unroll
    for (int step = 0; step < GROUP_DEPTH / GROUP_STEP; step++)
        group_multiply<H::BF16, COLUMNS>(
            sum, group_matrix(stage + group * GROUP_ROWS * GROUP_DEPTH, step),
            group_matrix(stage + ROWS * GROUP_DEPTH, step));
    group_commit();
}

template <typename H, int COLUMNS>
__global__ __launch_bounds__(THREADS, 1) void product_group(struct product p)
{
    using C = copier<GROUP_DEPTH, ROWS, COLUMNS, THREADS, swizzled>;
    uint16_t *shared = (uint16_t *)shared_memory();
    int64_t first = (int64_t)blockIdx.x * ROWS;
    int column = (int)blockIdx.y * COLUMNS, warp = (int)threadIdx.x / WARP;
    int group = (int)threadIdx.x / WARPGROUP;
    int all = p.kernel * p.kernel * ((p.in + GROUP_DEPTH - 1) / GROUP_DEPTH);
    int begin = (int)((int64_t)all * blockIdx.z / p.splits);
    int end = (int)((int64_t)all * (blockIdx.z + 1) / p.splits);
    C copier(&p, first, column);
    struct walk walk = walk_from(&p, begin, GROUP_DEPTH);
    float sum[1][COLUMNS / 8][4];

#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            sum[0][j][k] = 0;
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
        copier.copy(&p, shared + s * C::STAGE, walk, begin + s < end);
        walk_on(&p, &walk, GROUP_DEPTH);
    }
    for (int at = begin; at < end; at++) {
        int stage = (at - begin) % STAGES, ahead = (at - begin + AHEAD) % STAGES;
        copy_wait<AHEAD - 1>();
        group_show();
        barrier(); /* the stage is here, and nobody reads the one that is filled next */
        multiply_stage<H, COLUMNS>(shared + stage * C::STAGE, group, sum[0]);
        copier.copy(&p, shared + ahead * C::STAGE, walk, at + AHEAD < end);
        walk_on(&p, &walk, GROUP_DEPTH);
        group_wait<1>();
    }
    group_wait<0>();
    copy_wait<0>();
    group_take<COLUMNS / 8>(sum[0]);
    put_tile<H, 1, COLUMNS / 8>(&p, first + warp * 16, column, sum);
}

template <typename H, int COLUMNS> static void launch(struct queue *queue, const struct product *p)
{
    constexpr size_t SHARED = (size_t)STAGES * (ROWS + COLUMNS) * GROUP_DEPTH * 2;
    static_assert(SHARED <= SHARED_MAX_SM90, "");

    enqueue<product_group<H, COLUMNS>>(queue, *p, blocks_for(product_rows(p), ROWS),
                                       blocks_for(p->out, COLUMNS), p->splits, THREADS, SHARED);
}

template <typename H>
static void product_group_of(struct queue *queue, const struct product *p,
                             const struct product_tile *tile)
{
    struct product q = *p;

    q.splits = tile->splits;
    if (tile->columns == 256)
        launch<H, 256>(queue, &q);
    else if (tile->columns == 160)
        launch<H, 160>(queue, &q);
    else
        launch<H, 128>(queue, &q);
}

void kernel_product_group(struct queue *queue, const struct product *p,
                          const struct product_tile *tile)
{
    if (p->w_dtype == DTYPE_BF16)
        product_group_of<half_bf16>(queue, p, tile);
    else
        product_group_of<half_f16>(queue, p, tile);
}
