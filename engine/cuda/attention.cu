/*
 * Attention that never stores scores: Dao et al. 2022, with the running maximum and sum of Milakov
 * and Gimelshein 2018.
 *
 * A block takes 64 queries of one head of one sample, 16 to a warp, and walks over the keys in
 * tiles that come by cp.async one tile ahead. Scores, their exponentials and the output stay in
 * registers: the accumulators of q·kᵀ are, packed to 16 bit, the operand of p·v. Tiles begin at the
 * sample's first query and key, so nothing depends on the batch.
 *
 * Rows of shared memory are eight elements longer than the head, an odd number of 16-byte parts, so
 * that eight rows of a matrix lie in different banks.
 *
 * Heads over 160 (a VAE's single one of 512) do not fit a warp's registers; attention_wide spreads
 * the output's columns over the warps, and has scores and probabilities in shared memory.
 */
#include "engine/cuda/attention_rows.h"

/* `rows` rows of `width` elements from `base`, d of them real, into a shared tile. */
template <int rows, int width, int stride, int threads>
static __device__ __forceinline__ void copy_rows(uint16_t *tile, const uint16_t *base, int64_t ld,
                                                 int first, int count, int d)
{
    constexpr int parts = width / 8;

#pragma unroll 4
    for (int i = (int)threadIdx.x; i < rows * parts; i += threads) {
        int row = i / parts, c = i % parts * 8;
        bool valid = first + row < count && c < d;
        copy_async(tile + row * stride + c, base + (valid ? (first + row) * ld + c : 0), valid);
    }
}

template <int D, int KEYS> struct attention_shape {
    static constexpr int QUERIES = 64;
    static constexpr int THREADS = QUERIES / 16 * WARP;
    static constexpr int STRIDE = D + 8;
    static constexpr int TILE = KEYS * STRIDE;
    static constexpr size_t SHARED = sizeof(uint16_t) * (QUERIES * STRIDE + 4 * TILE);
    static_assert(SHARED <= SHARED_MAX, "");
};

template <typename H, int D, int KEYS>
__global__ __launch_bounds__(128) void attention(struct attend a)
{
    using S = attention_shape<D, KEYS>;
    uint16_t *q_tile = (uint16_t *)shared_memory(), *k_tiles = q_tile + S::QUERIES * S::STRIDE;
    uint16_t *v_tiles = k_tiles + 2 * S::TILE;
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int first = (int)blockIdx.x * S::QUERIES, head = (int)blockIdx.y;
    int64_t sample = blockIdx.z, offset = (int64_t)head * a.d;
    const uint16_t *q = (const uint16_t *)a.q + sample * a.tq * a.q_ld + offset;
    const uint16_t *k = (const uint16_t *)a.k + sample * a.tk * a.k_ld + offset;
    const uint16_t *v = (const uint16_t *)a.v + sample * a.tk * a.v_ld + offset;
    int last = first + S::QUERIES < a.tq ? first + S::QUERIES : a.tq; /* one past */
    int keys = a.causal && last < a.tk ? last : a.tk, tiles = (keys + KEYS - 1) / KEYS;
    int limit[2];
    uint32_t fq[D / 16][4];
    struct rows16<D> r;

    copy_rows<S::QUERIES, D, S::STRIDE, S::THREADS>(q_tile, q, a.q_ld, first, a.tq, a.d);
    copy_rows<KEYS, D, S::STRIDE, S::THREADS>(k_tiles, k, a.k_ld, 0, keys, a.d);
    copy_rows<KEYS, D, S::STRIDE, S::THREADS>(v_tiles, v, a.v_ld, 0, keys, a.d);
    copy_commit();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = first + warp * 16 + half * 8 + lane / 4;
        limit[half] = a.causal ? query + 1 : a.tk;
    }
    begin_rows<D>(&r);
    for (int t = 0; t < tiles; t++) {
        const uint16_t *k_tile = k_tiles + t % 2 * S::TILE, *v_tile = v_tiles + t % 2 * S::TILE;
        float s[KEYS / 8][4];
        copy_wait<0>();
        barrier(); /* tile t is here, and nobody reads t - 1 any more */
        if (t == 0)
#pragma unroll
            for (int i = 0; i < D / 16; i++)
                load_matrices(fq[i], q_tile + (warp * 16 + (lane & 15)) * S::STRIDE + i * 16 +
                                         (lane >> 4) * 8);
        if (t + 1 < tiles) {
            int at = (t + 1) % 2 * S::TILE, from = (t + 1) * KEYS;
            copy_rows<KEYS, D, S::STRIDE, S::THREADS>(k_tiles + at, k, a.k_ld, from, keys, a.d);
            copy_rows<KEYS, D, S::STRIDE, S::THREADS>(v_tiles + at, v, a.v_ld, from, keys, a.d);
            copy_commit();
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                s[j][i] = 0;
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++) {
                uint32_t f[4];
                load_matrices(f, k_tile + (j * 16 + (lane & 7) + (lane >> 4) * 8) * S::STRIDE +
                                     i * 16 + (lane >> 3 & 1) * 8);
                H::multiply(s[2 * j], fq[i], f[0], f[1]);
                H::multiply(s[2 * j + 1], fq[i], f[2], f[3]);
            }
        if (a.causal || (t + 1) * KEYS > keys)
            mask_scores<KEYS>(s, t * KEYS, keys, limit);
        soften<D, KEYS>(&r, s, a.scale * LOG2E);
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t p[4];
            pack_rows<H>(p, s + 2 * j);
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                uint32_t f[4];
                load_matrices_transposed(f, v_tile + (j * 16 + (lane & 15)) * S::STRIDE + i * 16 +
                                                (lane >> 4) * 8);
                H::multiply(r.y[2 * i], p, f[0], f[1]);
                H::multiply(r.y[2 * i + 1], p, f[2], f[3]);
            }
        }
    }
    put_rows<D>(&a, &r, first + warp * 16);
}

template <typename H, int D, int KEYS>
static void attention_at(struct queue *queue, const struct attend *a)
{
    using S = attention_shape<D, KEYS>;

    enqueue<attention<H, D, KEYS>>(queue, *a, blocks_for(a->tq, S::QUERIES), a->heads, a->n,
                                   S::THREADS, S::SHARED);
}

template <typename H> static void attention_of(struct queue *queue, const struct attend *a)
{
    if (a->d <= 32)
        attention_at<H, 32, 64>(queue, a);
    else if (a->d <= 48)
        attention_at<H, 48, 64>(queue, a);
    else if (a->d <= 64)
        attention_at<H, 64, 64>(queue, a);
    else if (a->d <= 80)
        attention_at<H, 80, 64>(queue, a);
    else
        attention_at<H, 160, 32>(queue, a);
}

void kernel_attention(struct queue *queue, const struct attend *a)
{
    if (a->q_dtype == DTYPE_BF16)
        attention_of<half_bf16>(queue, a);
    else
        attention_of<half_f16>(queue, a);
}

/* ---- wide heads ---- */

#define WIDE 512 /* columns of a head at most: 64 to a warp */
#define WIDE_WARPS 8
#define WIDE_QUERIES 32
#define WIDE_KEYS 64
#define WIDE_STRIDE (WIDE + 8)
#define K_WIDTH 64 /* columns of k that come at once */
#define K_STRIDE (K_WIDTH + 8)
#define V_KEYS 16 /* rows of v that come at once */
#define S_STRIDE (WIDE_KEYS + 4)
#define P_STRIDE (WIDE_KEYS + 8)
#define WIDE_THREADS (WIDE_WARPS * WARP)

struct wide_shared {
    uint16_t q[WIDE_QUERIES * WIDE_STRIDE];
    uint16_t k[2][WIDE_KEYS * K_STRIDE];
    uint16_t v[2][V_KEYS * WIDE_STRIDE];
    uint16_t p[WIDE_QUERIES * P_STRIDE];
    float s[WIDE_QUERIES * S_STRIDE];
    float keep[WIDE_QUERIES], sum[WIDE_QUERIES];
};
static_assert(sizeof(struct wide_shared) <= SHARED_MAX, "");

/* Scores of one tile of keys: each warp has 8 of them for all 32 queries. */
template <typename H>
static __device__ __forceinline__ void wide_scores(struct wide_shared *m, const struct attend *a,
                                                   const uint16_t *k, int first, int keys)
{
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int chunks = (a->d + K_WIDTH - 1) / K_WIDTH;
    float s[2][4] = {};

    copy_rows<WIDE_KEYS, K_WIDTH, K_STRIDE, WIDE_THREADS>(m->k[0], k, a->k_ld, first, keys, a->d);
    copy_commit();
    for (int c = 0; c < chunks; c++) {
        const uint16_t *tile = m->k[c % 2] + (warp * 8 + (lane & 7)) * K_STRIDE + (lane >> 3) * 8;
        copy_wait<0>();
        barrier();
        if (c + 1 < chunks) {
            int at = (c + 1) * K_WIDTH;
            copy_rows<WIDE_KEYS, K_WIDTH, K_STRIDE, WIDE_THREADS>(m->k[(c + 1) % 2], k + at,
                                                                  a->k_ld, first, keys, a->d - at);
            copy_commit();
        }
#pragma unroll
        for (int step = 0; step < K_WIDTH / 32; step++) {
            uint32_t fk[4], fq[4];
            load_matrices(fk, tile + step * 32);
#pragma unroll
            for (int i = 0; i < 4; i++) { /* two blocks of queries, two steps of 16 columns */
                load_matrices(fq, m->q + (i / 2 * 16 + (lane & 15)) * WIDE_STRIDE + c * K_WIDTH +
                                      step * 32 + i % 2 * 16 + (lane >> 4) * 8);
                H::multiply(s[i / 2], fq, fk[i % 2 * 2], fk[i % 2 * 2 + 1]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = i / 2 * 16 + i % 2 * 8 + lane / 4, column = warp * 8 + lane % 4 * 2;
        m->s[row * S_STRIDE + column] = s[i / 2][i % 2 * 2];
        m->s[row * S_STRIDE + column + 1] = s[i / 2][i % 2 * 2 + 1];
    }
    barrier();
}

/* Each warp makes probabilities of four rows; `max` and `sum` are its running ones. */
template <typename H>
static __device__ __forceinline__ void wide_soften(struct wide_shared *m, const struct attend *a,
                                                   int first, int keys, int query, float max[4],
                                                   float sum[4])
{
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = warp * 4 + i, limit = a->causal ? query + row + 1 : keys;
        float v[2], top = max[i], all, keep;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            int key = lane * 2 + j;
            v[j] = m->s[row * S_STRIDE + key] * a->scale * LOG2E;
            v[j] = first + key < keys && first + key < limit ? v[j] : NONE;
            top = fmaxf(top, v[j]);
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1)
            top = fmaxf(top, shuffle_xor(top, mask));
        v[0] = exp2_fast(v[0] - top);
        v[1] = exp2_fast(v[1] - top);
        all = v[0] + v[1];
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1)
            all += shuffle_xor(all, mask);
        keep = exp2_fast(max[i] - top);
        sum[i] = sum[i] * keep + all;
        max[i] = top;
        *(uint32_t *)(m->p + row * P_STRIDE + lane * 2) = H::pack(v[0], v[1]);
        if (lane == 0) {
            m->keep[row] = keep;
            m->sum[row] = sum[i];
        }
    }
}

/* y = y · keep + p · v; each warp has 64 columns. The next tile's scores have barriers enough
 * before anything read here is written again. */
template <typename H>
static __device__ __forceinline__ void wide_gather(struct wide_shared *m, const struct attend *a,
                                                   const uint16_t *v, int first, int keys,
                                                   float y[2][8][4])
{
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;

    copy_rows<V_KEYS, WIDE, WIDE_STRIDE, WIDE_THREADS>(m->v[0], v, a->v_ld, first, keys, a->d);
    copy_commit();
    for (int slice = 0; slice < WIDE_KEYS / V_KEYS; slice++) {
        uint32_t fp[2][4];
        copy_wait<0>();
        barrier(); /* also: the probabilities are written */
        if (slice + 1 < WIDE_KEYS / V_KEYS) {
            copy_rows<V_KEYS, WIDE, WIDE_STRIDE, WIDE_THREADS>(
                m->v[(slice + 1) % 2], v, a->v_ld, first + (slice + 1) * V_KEYS, keys, a->d);
            copy_commit();
        }
        if (slice == 0)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        y[i][j][e] *= m->keep[i * 16 + e / 2 * 8 + lane / 4];
#pragma unroll
        for (int i = 0; i < 2; i++)
            load_matrices(fp[i], m->p + (i * 16 + (lane & 15)) * P_STRIDE + slice * V_KEYS +
                                     (lane >> 4) * 8);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t fv[4];
            load_matrices_transposed(fv, m->v[slice % 2] + (lane & 15) * WIDE_STRIDE + warp * 64 +
                                             j * 16 + (lane >> 4) * 8);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                H::multiply(y[i][2 * j], fp[i], fv[0], fv[1]);
                H::multiply(y[i][2 * j + 1], fp[i], fv[2], fv[3]);
            }
        }
    }
}

template <typename H>
__global__ __launch_bounds__(WIDE_THREADS) void attention_wide(struct attend a)
{
    struct wide_shared *m = (struct wide_shared *)shared_memory();
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    int query = (int)blockIdx.x * WIDE_QUERIES;
    int64_t sample = blockIdx.z, offset = (int64_t)blockIdx.y * a.d;
    const uint16_t *q = (const uint16_t *)a.q + sample * a.tq * a.q_ld + offset;
    const uint16_t *k = (const uint16_t *)a.k + sample * a.tk * a.k_ld + offset;
    const uint16_t *v = (const uint16_t *)a.v + sample * a.tk * a.v_ld + offset;
    int last = query + WIDE_QUERIES < a.tq ? query + WIDE_QUERIES : a.tq;
    int keys = a.causal && last < a.tk ? last : a.tk;
    float y[2][8][4] = {}, max[4], sum[4];

    copy_rows<WIDE_QUERIES, WIDE, WIDE_STRIDE, WIDE_THREADS>(m->q, q, a.q_ld, query, a.tq, a.d);
    copy_commit();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        max[i] = NONE;
        sum[i] = 0;
    }
    for (int first = 0; first < keys; first += WIDE_KEYS) {
        wide_scores<H>(m, &a, k, first, keys);
        wide_soften<H>(m, &a, first, keys, query, max, sum);
        wide_gather<H>(m, &a, v, first, keys, y);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = i * 16 + half * 8 + lane / 4;
            float inverse = 1 / m->sum[row];
            int64_t to = (sample * a.tq + query + row) * a.y_ld + offset;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                int c = warp * 64 + j * 8 + lane % 4 * 2;
                if (query + row < a.tq && c < a.d)
                    store_pair(a.y, a.y_dtype, to + c, y[i][j][half * 2] * inverse,
                               y[i][j][half * 2 + 1] * inverse);
            }
        }
}

void kernel_attention_wide(struct queue *queue, const struct attend *a)
{
    int64_t blocks = blocks_for(a->tq, WIDE_QUERIES);

    if (a->q_dtype == DTYPE_BF16)
        enqueue<attention_wide<half_bf16>>(queue, *a, blocks, a->heads, a->n, WIDE_THREADS,
                                           sizeof(struct wide_shared));
    else
        enqueue<attention_wide<half_f16>>(queue, *a, blocks, a->heads, a->n, WIDE_THREADS,
                                          sizeof(struct wide_shared));
}

/* ---- any dtype, any head: a warp per query ---- */

#define SIMPLE_EACH (WIDE / WARP) /* columns of a lane at most */
#define SIMPLE_WARPS 4

__global__ void attention_simple(struct attend a)
{
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    float *q = (float *)shared_memory() + warp * a.d;
    int query = (int)blockIdx.x * SIMPLE_WARPS + warp;
    int known = query < a.tq ? query : a.tq - 1; /* full warps go on together */
    int64_t sample = blockIdx.z, offset = (int64_t)blockIdx.y * a.d;
    int keys = a.causal && known + 1 < a.tk ? known + 1 : a.tk;
    float y[SIMPLE_EACH], max = NONE, sum = 0;

    for (int c = lane; c < a.d; c += WARP)
        q[c] = load_element(a.q, a.q_dtype, (sample * a.tq + known) * a.q_ld + offset + c);
#pragma unroll
    for (int i = 0; i < SIMPLE_EACH; i++)
        y[i] = 0;
    barrier();
    for (int first = 0; first < keys; first += WARP) {
        int key = first + lane, count = keys - first < WARP ? keys - first : WARP;
        int64_t at = (sample * a.tk + (key < keys ? key : 0)) * a.k_ld + offset;
        float s = 0, top, all, keep;
        for (int c = 0; c < a.d; c++)
            s = fmaf(q[c], load_element(a.k, a.k_dtype, at + c), s);
        s = key < keys ? s * a.scale : NONE;
        top = s;
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1)
            top = fmaxf(top, shuffle_xor(top, mask));
        top = fmaxf(top, max);
        s = expf(s - top);
        all = s;
#pragma unroll
        for (int mask = 16; mask > 0; mask >>= 1)
            all += shuffle_xor(all, mask);
        keep = expf(max - top);
        sum = sum * keep + all;
        max = top;
#pragma unroll
        for (int i = 0; i < SIMPLE_EACH; i++)
            y[i] *= keep;
        for (int j = 0; j < count; j++) {
            float p = shuffle(s, j);
            int64_t row = (sample * a.tk + first + j) * a.v_ld + offset;
#pragma unroll
            for (int i = 0; i < SIMPLE_EACH; i++)
                if (i * WARP + lane < a.d)
                    y[i] = fmaf(p, load_element(a.v, a.v_dtype, row + i * WARP + lane), y[i]);
        }
    }
    if (query >= a.tq)
        return;
#pragma unroll
    for (int i = 0; i < SIMPLE_EACH; i++)
        if (i * WARP + lane < a.d)
            store_element(a.y, a.y_dtype,
                          (sample * a.tq + query) * a.y_ld + offset + i * WARP + lane, y[i] / sum);
}

void kernel_attention_simple(struct queue *queue, const struct attend *a)
{
    enqueue<attention_simple>(queue, *a, blocks_for(a->tq, SIMPLE_WARPS), a->heads, a->n,
                              SIMPLE_WARPS * WARP, sizeof(float) * SIMPLE_WARPS * (size_t)a->d);
}
