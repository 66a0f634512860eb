/*
 * Attention after Dao et al. 2022 ("FlashAttention"): blocks of queries against blocks of keys with
 * an online softmax, so that scores exist only for one block at a time, in a thread's cache.
 *
 * Keys and values are packed once per head into the panels that the matrix kernels read. Blocks have
 * fixed sizes that start at query 0, so that a sample's result depends on nothing else.
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
    int d_even, tk_even;       /* padded for bf16 pairs */
    size_t element;            /* bytes of what the kernels read */
    size_t head_k, head_v;     /* elements of one head's packed keys, values */
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
    p.o_bytes = (size_t)QUERY_BLOCK * (size_t)(div_up(p.d, nr) * nr + CPU_PAD) * sizeof(float);
    p.thread_bytes = (p.q_bytes + p.s_bytes + p.p_bytes + p.o_bytes + 255) & ~(size_t)63;
    return p;
}

/* Writes element (k, column) of a panel matrix with `columns` columns and `depth` rows. */
static inline size_t panel_index(const struct plan *p, int k, int column, int columns, int depth)
{
    int nr = p->cpu->kernels->nr, j = column / nr * nr;
    size_t width = (size_t)(columns - j > p->cpu->kernels->vl ? nr : p->cpu->kernels->vl);
    size_t base = (size_t)j * (size_t)depth, within = (size_t)(column - j);

    return p->element == 2 ? base + (size_t)(k / 2) * width * 2 + within * 2 + (size_t)(k & 1)
                           : base + (size_t)k * width + within;
}

static void put_element(const struct plan *p, void *panels, size_t i, const void *row, int c,
                        enum dtype dtype)
{
    if (p->element == 2)
        ((uint16_t *)panels)[i] = dtype == DTYPE_BF16
                                      ? ((const uint16_t *)row)[c]
                                      : bf16_from_f32(element_to_f32(row, dtype, (size_t)c));
    else
        ((float *)panels)[i] = element_to_f32(row, dtype, (size_t)c);
}

/* One head's keys become the d × tk matrix of q·kᵀ, its values the tk × d one of p·v. */
static void pack_head(const struct plan *p, int n, int head, void *keys, void *values)
{
    const struct tensor *k = p->a->k, *v = p->a->v;

    memset(keys, 0, p->head_k * p->element);
    memset(values, 0, p->head_v * p->element);
    for (int j = 0; j < p->tk; j++) {
        const void *k_row = row_at(k, (int64_t)n * p->tk + j);
        const void *v_row = row_at(v, (int64_t)n * p->tk + j);
        for (int c = 0; c < p->d; c++) {
            put_element(p, keys, panel_index(p, c, j, p->tk, p->d_even), k_row, head * p->d + c,
                        k->dtype);
            put_element(p, values, panel_index(p, j, c, p->d, p->tk_even), v_row,
                        head * p->d + c, v->dtype);
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

/* Scaled queries of the block, in the kernels' type. */
static void load_queries(const struct plan *p, int n, int head, int first, int rows, void *q)
{
    const struct tensor *x = p->a->q;
    size_t ld = (size_t)(p->d_even + CPU_PAD);

    for (int i = 0; i < rows; i++) {
        const char *row = row_at(x, (int64_t)n * p->tq + first + i);
        for (int c = 0; c < p->d; c++) {
            float v = p->a->scale *
                      element_to_f32(row, x->dtype, (size_t)(head * p->d + c));
            if (p->element == 2)
                ((uint16_t *)q)[(size_t)i * ld + (size_t)c] = bf16_from_f32(v);
            else
                ((float *)q)[(size_t)i * ld + (size_t)c] = v;
        }
        if (p->d_even > p->d)
            ((uint16_t *)q)[(size_t)i * ld + (size_t)p->d] = 0;
    }
}

/* Probabilities of one block as the kernels read them. */
static const void *narrow(const struct plan *p, float *s, uint16_t *narrowed, int rows, int keys)
{
    size_t ld = KEY_BLOCK + CPU_PAD;
    struct pre none = {0};

    if (p->element == 4)
        return s;
    for (int i = 0; i < rows; i++) {
        p->cpu->kernels->load_bf16(narrowed + (size_t)i * ld, s + (size_t)i * ld, DTYPE_F32, keys,
                                   &none);
        if (keys & 1)
            narrowed[(size_t)i * ld + (size_t)keys] = 0;
    }
    return narrowed;
}

static void store_rows(const struct plan *p, int n, int head, int first, int rows, float *o,
                       size_t ldo, const float *sum)
{
    const struct cpu_kernels *k = p->cpu->kernels;
    struct tensor y = tensor_columns(p->a->y, head * p->d, p->d);

    for (int i = 0; i < rows; i++) {
        k->scale(o + (size_t)i * ldo, p->d, 1 / sum[i]);
        k->finish(o + (size_t)i * ldo, p->d,
                  &(struct finish){.y = row_at(&y, (int64_t)n * p->tq + first + i),
                                   .y_dtype = y.dtype});
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
        k->softmax(s, lds, rows, count, p->a->causal ? live : NULL, max, sum, alpha);
        for (int i = 0; i < rows && j > 0; i++)
            k->scale(o + (size_t)i * ldo, p->d, alpha[i]);
        const void *weights = narrow(p, s, narrowed, rows, count);
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
            pack_head(&p, (int)(h / a->heads), (int)(h % a->heads), mine,
                      mine + p.head_k * p.element);
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
