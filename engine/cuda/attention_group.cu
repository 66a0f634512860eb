/*
 * Attention by warpgroups, for Hopper: what attention.cu does, with wgmma, for heads of 33 to 64.
 *
 * A block takes 128 queries of one head of one sample, 64 to a warpgroup, and walks over the keys
 * 64 at a time. Queries stay in registers as the first matrix of q·kᵀ, and so do probabilities as
 * that of p·v; k and v come to shared memory by cp.async, two stages ahead of their use. There v
 * lies as it comes, rows of keys, and the instruction is told that its sum runs over rows.
 *
 * A tile's p·v and the next one's q·kᵀ are under way at once, so that the tensor cores find work
 * while a warpgroup meets the others; what they do while it softens, another one gives them: 128
 * registers a thread let two blocks live on a multiprocessor. A stage is written again two
 * iterations after it was read, when each warpgroup has waited for its products of it and passed a
 * barrier since.
 *
 * Heads of 40 are multiplied as 48 by q·kᵀ and as 64 by p·v: 64 columns are what 128 bytes of a
 * swizzled row hold, and exponentials take longer than these products anyway. Heads of 80 and 160
 * would fill two and three such rows to little more than the half and five sixths. They have a
 * quarter and a sixteenth of the tokens, and stay with attention.cu.
 */
#include "engine/cuda/attention_rows.h"
#include "engine/cuda/warpgroup.h"

#define GROUPS 2
#define THREADS (GROUPS * WARPGROUP)
#define QUERIES (GROUPS * GROUP_ROWS)
#define KEYS 64
#define WIDTH GROUP_DEPTH /* of a head at most */
#define TILE (KEYS * WIDTH)
#define STAGES 4 /* each a tile of k, then one of v */
#define AHEAD (STAGES - 2)
#define SHARED (sizeof(uint16_t) * STAGES * 2 * TILE)
#define STEPS (KEYS / GROUP_STEP)

static_assert(SHARED <= SHARED_MAX_SM90, "");

/* Asks for keys from `first` on, k and v, zeros past the last one and past the head's columns; for
 * nothing if there are none. */
static __device__ __forceinline__ void copy_keys(uint16_t *stage, const struct attend *a,
                                                 const uint16_t *k, const uint16_t *v, int first)
{
    constexpr int PARTS = WIDTH / 8, APART = THREADS / PARTS;
    int part = (int)threadIdx.x % PARTS, row = (int)threadIdx.x / PARTS;

#pragma unroll
    for (int i = 0; i < KEYS / APART && first < a->tk; i++) {
        int64_t key = first + row + i * APART;
        bool valid = key < a->tk && part * 8 < a->d;
        uint16_t *to = stage + group_at(row + i * APART, part);
        copy_async(to, k + key * a->k_ld + part * 8, valid);
        copy_async(to + TILE, v + key * a->v_ld + part * 8, valid);
    }
    copy_commit();
}

/* A warp's 16 queries from `first` on, as the first matrix of a product. */
template <int DEPTH>
static __device__ __forceinline__ void load_queries(uint32_t f[DEPTH / GROUP_STEP][4],
                                                    const struct attend *a, const uint16_t *q,
                                                    int first)
{
    int lane = (int)threadIdx.x % WARP;

#pragma unroll
    for (int step = 0; step < DEPTH / GROUP_STEP; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int query = first + i % 2 * 8 + lane / 4;
            int c = step * GROUP_STEP + i / 2 * 8 + lane % 4 * 2;
            bool valid = query < a->tq && c < a->d;
            f[step][i] = valid ? *(const uint32_t *)(q + (int64_t)query * a->q_ld + c) : 0;
        }
}

/* s = q · kᵀ */
template <typename H, int DEPTH>
static __device__ __forceinline__ void
begin_scores(float s[KEYS / 8][4], const uint32_t q[DEPTH / GROUP_STEP][4], const uint16_t *k)
{
    group_begin();
#pragma unroll
    for (int step = 0; step < DEPTH / GROUP_STEP; step++)
        group_multiply_held<H::BF16, false>(s, q[step], group_matrix(k, step), step > 0);
    group_commit();
}

/* y += p · v */
template <typename H>
static __device__ __forceinline__ void
begin_gathering(float y[WIDTH / 8][4], const uint32_t p[STEPS][4], const uint16_t *v)
{
    group_begin();
#pragma unroll
    for (int step = 0; step < STEPS; step++)
        group_multiply_held<H::BF16, true>(y, p[step], group_matrix_across(v, step), true);
    group_commit();
}

template <typename H, int DEPTH>
__global__ __launch_bounds__(THREADS, 2) void attention_group(struct attend a)
{
    uint16_t *shared = (uint16_t *)shared_memory();
    int64_t sample = blockIdx.z, offset = (int64_t)blockIdx.y * a.d;
    const uint16_t *q = (const uint16_t *)a.q + sample * a.tq * a.q_ld + offset;
    const uint16_t *k = (const uint16_t *)a.k + sample * a.tk * a.k_ld + offset;
    const uint16_t *v = (const uint16_t *)a.v + sample * a.tk * a.v_ld + offset;
    int query = (int)blockIdx.x * QUERIES + (int)threadIdx.x / WARP * 16; /* the warp's first */
    int tiles = (a.tk + KEYS - 1) / KEYS;
    const int limit[2] = {a.tk, a.tk};
    uint32_t fq[DEPTH / GROUP_STEP][4], p[STEPS][4] = {};
    float s[KEYS / 8][4] = {};
    struct rows16<WIDTH> r;

#pragma unroll
    for (int t = 0; t < AHEAD; t++)
        copy_keys(shared + t * 2 * TILE, &a, k, v, t * KEYS);
    load_queries<DEPTH>(fq, &a, q, query);
    begin_rows<WIDTH>(&r);
    for (int t = 0; t < tiles; t++) {
        uint16_t *stage = shared + t % STAGES * 2 * TILE;
        copy_wait<AHEAD - 1>();
        group_show();
        barrier(); /* tile t is here, and nobody reads the stage that is filled next */
        begin_scores<H, DEPTH>(s, fq, stage);
        copy_keys(shared + (t + AHEAD) % STAGES * 2 * TILE, &a, k, v, (t + AHEAD) * KEYS);
        group_wait<0>(); /* for these scores, and for tile t - 1's p · v */
        group_take<KEYS / 8>(s);
        group_take<WIDTH / 8>(r.y);
        group_let_go<STEPS>(p);
        if ((t + 1) * KEYS > a.tk)
            mask_scores<KEYS>(s, t * KEYS, a.tk, limit);
        soften<WIDTH, KEYS>(&r, s, a.scale * LOG2E);
#pragma unroll
        for (int step = 0; step < STEPS; step++)
            pack_rows<H>(p[step], s + 2 * step);
        begin_gathering<H>(r.y, p, stage + TILE);
    }
    group_wait<0>();
    group_take<WIDTH / 8>(r.y);
    group_let_go<STEPS>(p);
    put_rows<WIDTH>(&a, &r, query);
}

template <typename H> static void attention_group_of(struct queue *queue, const struct attend *a)
{
    int64_t blocks = blocks_for(a->tq, QUERIES);

    if (a->d <= 48)
        enqueue<attention_group<H, 48>>(queue, *a, blocks, a->heads, a->n, THREADS, SHARED);
    else
        enqueue<attention_group<H, 64>>(queue, *a, blocks, a->heads, a->n, THREADS, SHARED);
}

bool attention_group_takes(const struct attend *a)
{
    return a->d > 32 && a->d <= WIDTH && !a->causal;
}

void kernel_attention_group(struct queue *queue, const struct attend *a)
{
    if (a->q_dtype == DTYPE_BF16)
        attention_group_of<half_bf16>(queue, a);
    else
        attention_group_of<half_f16>(queue, a);
}
