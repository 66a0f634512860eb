/*
 * Attention after Dao et al. 2022 ("FlashAttention"): blocks of queries against blocks of keys with
 * an online softmax, so that scores exist only for one block at a time, in a thread's cache.
 *
 * Keys and values are packed once per head into the panels that the matrix kernels read. Blocks
 * have fixed sizes that start at query 0, so that a sample's result depends on nothing else.
 */
#include "engine/cpu/cpu.h"

#include <math.h>
#include <omp.h>

#define QUERY_BLOCK 48
#define KEY_BLOCK 512

struct plan {
    const struct cpu_backend *cpu;
    const struct attention *a;
    int d, tq, tk;
    int d_even, tk_even;   /* padded for bf16 pairs */
    size_t element;        /* bytes of what the kernels read */
    size_t head_k, head_v; /* elements of one head's packed keys, values */
    size_t q_bytes, s_bytes, p_bytes, o_bytes, thread_bytes;
};

static struct plan make_plan(const struct cpu_backend *cpu, const struct attention *a)
{
    /* f32 activations (the text encoder's) keep f32 products. */
    bool pairs = a->q->dtype == DTYPE_BF16 && !cpu->emulated_bf16;
    int nr = cpu->kernels->nr;
    struct plan p = {.cpu = cpu, .a = a, .element = pairs ? 2 : 4};

    p.d = a->q->c / a->heads;
    p.tq = a->q->h * a->q->w;
    p.tk = a->k->h * a->k->w;
    p.d_even = pairs ? (p.d + 1) & ~1 : p.d;
    p.tk_even = pairs ? (p.tk + 1) & ~1 : p.tk;
    p.head_k = (size_t)(div_up(p.tk, nr) * nr) * (size_t)p.d_even;
    p.head_v = (size_t)(div_up(p.d, nr) * nr) * (size_t)p.tk_even;
    p.q_bytes = (size_t)QUERY_BLOCK * (size_t)(p.d_even + CPU_PAD) * p.element;
    p.s_bytes = (size_t)QUERY_BLOCK * (KEY_BLOCK + CPU_PAD) * sizeof(float);
    p.p_bytes = pairs ? (size_t)QUERY_BLOCK * (KEY_BLOCK + CPU_PAD) * sizeof(uint16_t) : 0;
    /* At least two rows of d floats, which packing needs. */
    p.o_bytes = (size_t)QUERY_BLOCK * (size_t)(div_up(p.d, nr) * nr + CPU_PAD) * sizeof(float);
    p.thread_bytes = (p.q_bytes + p.s_bytes + p.p_bytes + p.o_bytes + 255) & ~(size_t)63;
    return p;
}

/* Where column `column` of row 0 of a panel matrix with `columns` columns and `depth` rows is, in
 * elements, and how wide its panel is. */
static size_t panel_column(const struct plan *p, int column, int columns, int depth, size_t *width)
{
    int nr = p->cpu->kernels->nr, j = column / nr * nr;

    *width = (size_t)(columns - j > p->cpu->kernels->vl ? nr : p->cpu->kernels->vl);
    return (size_t)j * (size_t)depth + (size_t)(column - j) * (p->element == 2 ? 2 : 1);
}

/* One head's keys become the d × tk matrix of q·kᵀ, scaled so that scores come out in units of
 * ln 2. `row` holds d floats, then d narrow ones. */
static void pack_keys(const struct plan *p, int n, int head, void *keys, float *row)
{
    const struct cpu_kernels *kernels = p->cpu->kernels;
    struct tensor k = tensor_columns(p->a->k, head * p->d, p->d);
    uint16_t *narrow = (uint16_t *)(row + p->d);
    struct pre none = {0};

    memset(keys, 0, p->head_k * p->element);
    for (int j = 0; j < p->tk; j++) {
        size_t width, at = panel_column(p, j, p->tk, p->d_even, &width);
        kernels->load_f32(row, row_at(&k, (int64_t)n * p->tk + j), k.dtype, p->d, &none);
        kernels->scale(row, p->d, p->a->scale * (float)M_LOG2E);
        if (p->element == 4) {
            for (int c = 0; c < p->d; c++)
                ((float *)keys)[at + (size_t)c * width] = row[c];
            continue;
        }
        kernels->load_bf16(narrow, row, DTYPE_F32, p->d, &none);
        for (int c = 0; c < p->d; c++)
            ((uint16_t *)keys)[at + (size_t)(c / 2) * width * 2 + (size_t)(c & 1)] = narrow[c];
    }
}

/* One head's values become the tk × d matrix of p·v. */
static void pack_values(const struct plan *p, int n, int head, void *values, float *row)
{
    const struct cpu_kernels *kernels = p->cpu->kernels;
    struct tensor v = tensor_columns(p->a->v, head * p->d, p->d);
    uint16_t *narrow = (uint16_t *)row;
    struct pre none = {0};

    memset(values, 0, p->head_v * p->element);
    for (int j = 0; j < p->tk; j++) {
        const void *from = row_at(&v, (int64_t)n * p->tk + j);
        if (p->element == 4)
            kernels->load_f32(row, from, v.dtype, p->d, &none);
        else
            kernels->load_bf16(narrow, from, v.dtype, p->d, &none);
        for (int first = 0; first < p->d; first += kernels->nr) {
            int count = p->d - first < kernels->nr ? p->d - first : kernels->nr;
            size_t width, at = panel_column(p, first, p->d, p->tk_even, &width);
            if (p->element == 4) {
                memcpy((float *)values + at + (size_t)j * width, row + first,
                       (size_t)count * sizeof(float));
                continue;
            }
            uint16_t *to = (uint16_t *)values + at + (size_t)(j / 2) * width * 2 + (size_t)(j & 1);
            for (int c = 0; c < count; c++)
                to[2 * c] = narrow[first + c];
        }
    }
}

static void product(const struct plan *p, int m, int n, int k, const void *a, size_t lda,
                    const void *b, size_t stride, float *c, size_t ldc, bool add)
{
    if (p->element == 2)
        p->cpu->kernels->gemm_bf16(m, n, k, a, lda, b, stride, c, ldc, add);
    else
        p->cpu->kernels->gemm_f32(m, n, k, a, lda, b, stride, c, ldc, add);
}

/* Queries of the block, in the kernels' type. */
static void load_queries(const struct plan *p, int n, int head, int first, int rows, void *q)
{
    struct tensor x = tensor_columns(p->a->q, head * p->d, p->d);
    size_t ld = (size_t)(p->d_even + CPU_PAD);
    struct pre none = {0};

    for (int i = 0; i < rows; i++) {
        const void *row = row_at(&x, (int64_t)n * p->tq + first + i);
        if (p->element == 4) {
            p->cpu->kernels->load_f32((float *)q + (size_t)i * ld, row, x.dtype, p->d, &none);
            continue;
        }
        p->cpu->kernels->load_bf16((uint16_t *)q + (size_t)i * ld, row, x.dtype, p->d, &none);
        if (p->d_even > p->d)
            ((uint16_t *)q)[(size_t)i * ld + (size_t)p->d] = 0;
    }
}

static void store_rows(const struct plan *p, int n, int head, int first, int rows, float *o,
                       size_t ldo, const float *sum)
{
    const struct cpu_kernels *k = p->cpu->kernels;
    struct tensor y = tensor_columns(p->a->y, head * p->d, p->d);

    for (int i = 0; i < rows; i++) {
        k->scale(o + (size_t)i * ldo, p->d, 1 / sum[i]);
        k->finish(
            o + (size_t)i * ldo, p->d,
            &(struct finish){.y = row_at(&y, (int64_t)n * p->tq + first + i), .y_dtype = y.dtype});
    }
}

static void attend_block(const struct plan *p, int n, int head, int first, const char *keys,
                         const char *values, char *scratch)
{
    const struct cpu_kernels *k = p->cpu->kernels;
    int rows = p->tq - first < QUERY_BLOCK ? p->tq - first : QUERY_BLOCK;
    void *q = scratch;
    float *s = (float *)(scratch + p->q_bytes);
    uint16_t *narrowed = (uint16_t *)(scratch + p->q_bytes + p->s_bytes);
    float *o = (float *)(scratch + p->q_bytes + p->s_bytes + p->p_bytes);
    size_t lds = KEY_BLOCK + CPU_PAD, ldo = (size_t)(div_up(p->d, k->nr) * k->nr + CPU_PAD);
    float max[QUERY_BLOCK], sum[QUERY_BLOCK], alpha[QUERY_BLOCK];
    int live[QUERY_BLOCK];

    load_queries(p, n, head, first, rows, q);
    for (int i = 0; i < rows; i++) {
        max[i] = -INFINITY;
        sum[i] = 0;
    }
    for (int j = 0; j < p->tk; j += KEY_BLOCK) {
        int count = p->tk - j < KEY_BLOCK ? p->tk - j : KEY_BLOCK;
        int depth = p->element == 2 ? (count + 1) & ~1 : count;
        const char *key_panels = keys + (size_t)j * (size_t)p->d_even * p->element;

        product(p, rows, count, p->d_even, q, (size_t)(p->d_even + CPU_PAD), key_panels,
                (size_t)p->d_even * (size_t)k->nr, s, lds, false);
        for (int i = 0; i < rows; i++)
            live[i] = first + i + 1 - j;
        k->softmax(s, p->element == 2 ? narrowed : NULL, lds, rows, count,
                   p->a->causal ? live : NULL, max, sum, alpha);
        for (int i = 0; i < rows && j > 0; i++)
            k->scale(o + (size_t)i * ldo, p->d, alpha[i]);
        const void *weights = p->element == 2 ? (void *)narrowed : (void *)s;
        /* A panel of values is tk × width; the block starts j rows into each, so panels are taken
         * one at a time. */
        for (int c = 0; c < p->d; c += k->nr) {
            size_t width = (size_t)(p->d - c > k->vl ? k->nr : k->vl);
            size_t at = (size_t)c * (size_t)p->tk_even + (size_t)j * width;
            product(p, rows, p->d - c < k->nr ? p->d - c : k->nr, depth, weights, lds,
                    values + at * p->element, 0, o + c, ldo, j > 0);
        }
    }
    store_rows(p, n, head, first, rows, o, ldo, sum);
}

void cpu_attention(struct pass *pass, const struct attention *a)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    struct plan p = make_plan(cpu, a);
    int64_t heads = (int64_t)a->q->n * a->heads, blocks = div_up(p.tq, QUERY_BLOCK);
    size_t head_bytes = ((p.head_k + p.head_v) * p.element + 63) & ~(size_t)63;
    char *packed = pass_scratch(pass, head_bytes * (size_t)heads);
    char *scratch = pass_scratch(pass, p.thread_bytes * (size_t)cpu->base.threads);

    if (!pass->planning && !pass->failed) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(cpu->base.threads)
        for (int64_t h = 0; h < heads; h++) {
            char *mine = packed + head_bytes * (size_t)h;
            float *row = (float *)(scratch + p.thread_bytes * (size_t)omp_get_thread_num() +
                                   p.q_bytes + p.s_bytes + p.p_bytes);
            pack_keys(&p, (int)(h / a->heads), (int)(h % a->heads), mine, row);
            pack_values(&p, (int)(h / a->heads), (int)(h % a->heads), mine + p.head_k * p.element,
                        row);
        }
#pragma omp parallel for schedule(dynamic, 1) num_threads(cpu->base.threads)
        for (int64_t task = 0; task < heads * blocks; task++) {
            int64_t h = task / blocks;
            char *mine = packed + head_bytes * (size_t)h;
            attend_block(&p, (int)(h / a->heads), (int)(h % a->heads),
                         (int)(task % blocks) * QUERY_BLOCK, mine, mine + p.head_k * p.element,
                         scratch + p.thread_bytes * (size_t)omp_get_thread_num());
        }
    }
    pass_scratch_drop(pass, scratch);
    pass_scratch_drop(pass, packed);
}
