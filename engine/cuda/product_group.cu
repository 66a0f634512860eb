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
#include "engine/cuda/product_put.h"
#include "engine/cuda/warpgroup.h"

#define GROUPS 2
#define THREADS (GROUPS * WARPGROUP)
#define ROWS (GROUPS * GROUP_ROWS)
#define STAGES 4
#define AHEAD (STAGES - 2)
#define PARTS (GROUP_DEPTH / 8) /* 16-byte parts of a row */
#define APART (THREADS / PARTS) /* rows between two that a thread copies */
#define EACH (ROWS / APART)     /* rows of x that a thread copies */

/* A thread's share of copying. */
struct copier {
    int part;                      /* of every row */
    int first;                     /* its first row in a tile */
    struct row_place places[EACH]; /* of x; n -1: past the end */
    const uint16_t *w;             /* its first row's */
    int w_rows;                    /* that are there */
};

/* Walks over (tap, channels) in steps of GROUP_DEPTH. */
struct walk {
    int tap, c;
};

static __device__ __forceinline__ void walk_on(const struct product *p, struct walk *w)
{
    w->c += GROUP_DEPTH;
    if (w->c >= p->in) {
        w->c = 0;
        w->tap++;
    }
}

static __device__ __forceinline__ struct copier copier_of(const struct product *p, int64_t row,
                                                          int column)
{
    int64_t rows = (int64_t)p->n * p->y_h * p->y_w;
    struct copier c;

    c.part = (int)threadIdx.x % PARTS;
    c.first = (int)threadIdx.x / PARTS;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int64_t at = row + c.first + i * APART;
        c.places[i] = row_place(p, at < rows ? at : 0);
        if (at >= rows)
            c.places[i].n = -1;
    }
    c.w = (const uint16_t *)p->w + (int64_t)(column + c.first) * p->kernel * p->kernel * p->in;
    c.w_rows = (p->out - column - c.first + APART - 1) / APART;
    return c;
}

/* Asks for one stage: ROWS rows of x, then COLUMNS of w. */
template <int COLUMNS>
static __device__ __forceinline__ void copy_stage(const struct product *p, const struct copier *c,
                                                  uint16_t *stage, struct walk at, bool real)
{
    int k = at.c + c->part * 8, ky = at.tap / p->kernel, kx = at.tap % p->kernel;
    int64_t apart = (int64_t)APART * p->kernel * p->kernel * p->in;
    const uint16_t *x = (const uint16_t *)p->x, *w = (const uint16_t *)p->w;
    bool inside = real && k < p->in;

#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int64_t from = inside && c->places[i].n >= 0 ? tap_place(p, c->places[i], ky, kx) : -1;
        copy_async(stage + group_at(c->first + i * APART, c->part), x + (from >= 0 ? from + k : 0),
                   from >= 0);
    }
#pragma unroll
    for (int i = 0; i < COLUMNS / APART; i++) {
        bool valid = inside && i < c->w_rows;
        copy_async(stage + ROWS * GROUP_DEPTH + group_at(c->first + i * APART, c->part),
                   valid ? c->w + i * apart + (int64_t)at.tap * p->in + k : w, valid);
    }
    copy_commit();
}

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
    constexpr int STAGE = (ROWS + COLUMNS) * GROUP_DEPTH; /* elements */
    uint16_t *shared = (uint16_t *)shared_memory();
    int64_t first = (int64_t)blockIdx.x * ROWS;
    int column = (int)blockIdx.y * COLUMNS, warp = (int)threadIdx.x / WARP;
    int group = (int)threadIdx.x / WARPGROUP;
    int per_tap = (p.in + GROUP_DEPTH - 1) / GROUP_DEPTH, all = p.kernel * p.kernel * per_tap;
    int begin = (int)((int64_t)all * blockIdx.z / p.splits);
    int end = (int)((int64_t)all * (blockIdx.z + 1) / p.splits);
    struct copier copier = copier_of(&p, first, column);
    struct walk walk = {begin / per_tap, begin % per_tap * GROUP_DEPTH};
    float sum[1][COLUMNS / 8][4];

#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            sum[0][j][k] = 0;
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
        copy_stage<COLUMNS>(&p, &copier, shared + s * STAGE, walk, begin + s < end);
        walk_on(&p, &walk);
    }
    for (int at = begin; at < end; at++) {
        int stage = (at - begin) % STAGES, ahead = (at - begin + AHEAD) % STAGES;
        copy_wait<AHEAD - 1>();
        group_show();
        barrier(); /* the stage is here, and nobody reads the one that is filled next */
        multiply_stage<H, COLUMNS>(shared + stage * STAGE, group, sum[0]);
        copy_stage<COLUMNS>(&p, &copier, shared + ahead * STAGE, walk, at + AHEAD < end);
        walk_on(&p, &walk);
        group_wait<1>();
    }
    group_wait<0>();
    copy_wait<0>();
    group_take<COLUMNS / 8>(sum[0]);
    put_tile<1, COLUMNS / 8>(&p, first + warp * 16, column, sum);
}

template <typename H, int COLUMNS> static void launch(struct queue *queue, const struct product *p)
{
    constexpr size_t SHARED = (size_t)STAGES * (ROWS + COLUMNS) * GROUP_DEPTH * 2;

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
