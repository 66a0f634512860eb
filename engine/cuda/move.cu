/* Kernels that move and convert. One thread takes eight neighbours where rows allow it, else one.
 */
#include "engine/cuda/elements.h"

/* ---- apply ---- */

struct apply {
    struct matrix x, y;
    struct pre pre;
    int64_t rows_each; /* of a sample */
};

__global__ void apply_eights(struct apply a)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    int vectors = a.x.columns / 8;
    int64_t row = i / vectors;
    int c = (int)(i % vectors) * 8;
    float v[8];

    if (row >= a.x.rows)
        return;
    load8(v, a.x.data, a.x.dtype, row * a.x.ld + c);
    int64_t at = row / a.rows_each * a.x.columns + c;
#pragma unroll
    for (int k = 0; k < 8; k++)
        v[k] = pre_apply(&a.pre, at + k, v[k]);
    store8(a.y.data, a.y.dtype, row * a.y.ld + c, v);
}

__global__ void apply_each(struct apply a)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    int64_t row = i / a.x.columns;
    int c = (int)(i % a.x.columns);

    if (row >= a.x.rows)
        return;
    store_element(a.y.data, a.y.dtype, row * a.y.ld + c,
                  pre_apply(&a.pre, row / a.rows_each * a.x.columns + c,
                            load_element(a.x.data, a.x.dtype, row * a.x.ld + c)));
}

void kernel_apply(struct queue *queue, const struct matrix *x, const struct matrix *y,
                  int64_t rows_each, const struct pre *pre)
{
    struct apply a = {*x, *y, *pre, rows_each};
    bool eights = in_eights(x) && in_eights(y);
    int64_t work = x->rows * x->columns;

    if (eights)
        enqueue<apply_eights>(queue, a, blocks_for(work / 8, BLOCK), 1, 1, BLOCK, 0);
    else
        enqueue<apply_each>(queue, a, blocks_for(work, BLOCK), 1, 1, BLOCK, 0);
}

/* ---- add ---- */

struct add {
    struct matrix x, y;
    float scale;
    int gap;
};

__global__ void add_eights(struct add a)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    int vectors = a.y.columns / 8;
    int64_t row = i / vectors;
    int c = (int)(i % vectors) * 8;
    float x[8], y[8];

    if (row >= a.y.rows)
        return;
    load8(x, a.x.data, a.x.dtype, row * a.x.ld + c);
    load8(y, a.y.data, a.y.dtype, row * a.y.ld + c);
#pragma unroll
    for (int k = 0; k < 8; k++)
        y[k] = y[k] + a.scale * x[k];
    store8(a.y.data, a.y.dtype, row * a.y.ld + c, y);
}

__global__ void add_each(struct add a)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    int64_t row = i / a.y.columns;
    int c = (int)(i % a.y.columns);

    if (row >= a.y.rows)
        return;
    store_element(a.y.data, a.y.dtype, row * a.y.ld + c,
                  load_element(a.y.data, a.y.dtype, row * a.y.ld + c) +
                      a.scale * load_element(a.x.data, a.x.dtype, row * a.x.ld + c));
}

void kernel_add(struct queue *queue, const struct matrix *x, float scale, const struct matrix *y)
{
    struct add a = {*x, *y, scale, 0};
    int64_t work = y->rows * y->columns;

    if (in_eights(x) && in_eights(y))
        enqueue<add_eights>(queue, a, blocks_for(work / 8, BLOCK), 1, 1, BLOCK, 0);
    else
        enqueue<add_each>(queue, a, blocks_for(work, BLOCK), 1, 1, BLOCK, 0);
}

/* ---- concat ---- */

struct concat {
    struct matrix a, b, y;
};

__global__ void concat_eights(struct concat c)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    int vectors = c.y.columns / 8;
    int64_t row = i / vectors;
    int column = (int)(i % vectors) * 8;
    float v[8];

    if (row >= c.y.rows)
        return;
    if (column < c.a.columns)
        load8(v, c.a.data, c.a.dtype, row * c.a.ld + column);
    else
        load8(v, c.b.data, c.b.dtype, row * c.b.ld + column - c.a.columns);
    store8(c.y.data, c.y.dtype, row * c.y.ld + column, v);
}

__global__ void concat_each(struct concat c)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    int64_t row = i / c.y.columns;
    int column = (int)(i % c.y.columns);

    if (row >= c.y.rows)
        return;
    store_element(c.y.data, c.y.dtype, row * c.y.ld + column,
                  column < c.a.columns
                      ? load_element(c.a.data, c.a.dtype, row * c.a.ld + column)
                      : load_element(c.b.data, c.b.dtype, row * c.b.ld + column - c.a.columns));
}

void kernel_concat(struct queue *queue, const struct matrix *a, const struct matrix *b,
                   const struct matrix *y)
{
    struct concat c = {*a, *b, *y};
    int64_t work = y->rows * y->columns;

    if (in_eights(a) && in_eights(b) && in_eights(y))
        enqueue<concat_eights>(queue, c, blocks_for(work / 8, BLOCK), 1, 1, BLOCK, 0);
    else
        enqueue<concat_each>(queue, c, blocks_for(work, BLOCK), 1, 1, BLOCK, 0);
}

/* ---- FreeU ---- */

#define WAVES 7 /* as freeu.h has them */

struct damping {
    struct matrix x;
    int height, width;
    float by;
    int gap;
};

static __device__ __forceinline__ void waves_at(float waves[WAVES], const struct damping *d,
                                                int64_t row)
{
    const float turn = 6.28318531f;
    float down = turn * (float)(row / d->width) / (float)d->height;
    float across = turn * (float)(row % d->width) / (float)d->width;
    float rows = d->height > 1 ? 1.0f : 0.0f, columns = d->width > 1 ? 1.0f : 0.0f;

    waves[0] = 1;
    waves[1] = rows * cosf(down);
    waves[2] = rows * sinf(down);
    waves[3] = columns * cosf(across);
    waves[4] = columns * sinf(across);
    waves[5] = rows * columns * cosf(down + across);
    waves[6] = rows * columns * sinf(down + across);
}

/* One thread a channel: neighbours read neighbours, row by row. */
__global__ void damp_channel(struct damping d)
{
    int64_t c = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    float sums[WAVES] = {0}, waves[WAVES];
    float factor = (d.by - 1) / ((float)d.height * (float)d.width);

    if (c >= d.x.columns)
        return;
    for (int64_t row = 0; row < d.x.rows; row++) {
        float v = load_element(d.x.data, d.x.dtype, row * d.x.ld + c);
        waves_at(waves, &d, row);
        for (int k = 0; k < WAVES; k++)
            sums[k] += waves[k] * v;
    }
    for (int64_t row = 0; row < d.x.rows; row++) {
        float low = 0, v = load_element(d.x.data, d.x.dtype, row * d.x.ld + c);
        waves_at(waves, &d, row);
        for (int k = 0; k < WAVES; k++)
            low += waves[k] * sums[k];
        store_element(d.x.data, d.x.dtype, row * d.x.ld + c, v + factor * low);
    }
}

void kernel_damp(struct queue *queue, const struct matrix *x, int height, int width, float by)
{
    struct damping d = {*x, height, width, by, 0};

    enqueue<damp_channel>(queue, d, blocks_for(x->columns, BLOCK), 1, 1, BLOCK, 0);
}

/* ---- mean ---- */

struct mean {
    struct matrix x, y;
    int height, width;
};

/* One thread a channel of a sample; row by row, whose sums stay small. */
__global__ void mean_channel(struct mean m)
{
    int64_t c = (int64_t)blockIdx.x * BLOCK + threadIdx.x, sample = blockIdx.y;
    int64_t row = sample * m.height * m.width;
    float sum = 0;

    if (c >= m.x.columns)
        return;
    for (int y = 0; y < m.height; y++) {
        float across = 0;
        for (int x = 0; x < m.width; x++, row++)
            across += load_element(m.x.data, m.x.dtype, row * m.x.ld + c);
        sum += across;
    }
    store_element(m.y.data, m.y.dtype, sample * m.y.ld + c,
                  sum / ((float)m.height * (float)m.width));
}

void kernel_mean(struct queue *queue, const struct matrix *x, int height, int width,
                 const struct matrix *y)
{
    struct mean m = {*x, *y, height, width};

    enqueue<mean_channel>(queue, m, blocks_for(x->columns, BLOCK), (int)y->rows, 1, BLOCK, 0);
}

/* ---- to and from the host ---- */

struct planes {
    float *planes;
    struct matrix m;
    int64_t pixels;
};

/* Neighbouring threads take neighbouring pixels of a plane: the bus is the slow side. */
static __device__ __forceinline__ void plane_place(const struct planes *p, int64_t i, int64_t *row,
                                                   int *c)
{
    int64_t plane = i / p->pixels;

    *c = (int)(plane % p->m.columns);
    *row = plane / p->m.columns * p->pixels + i % p->pixels;
}

__global__ void upload_each(struct planes p)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row;
    int c;

    if (i >= p.m.rows * p.m.columns)
        return;
    plane_place(&p, i, &row, &c);
    store_element(p.m.data, p.m.dtype, row * p.m.ld + c, p.planes[i]);
}

__global__ void download_each(struct planes p)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, row;
    int c;

    if (i >= p.m.rows * p.m.columns)
        return;
    plane_place(&p, i, &row, &c);
    p.planes[i] = load_element(p.m.data, p.m.dtype, row * p.m.ld + c);
}

void kernel_upload(struct queue *queue, const float *planes, const struct matrix *y, int64_t pixels)
{
    struct planes p = {(float *)planes, *y, pixels};

    enqueue<upload_each>(queue, p, blocks_for(y->rows * y->columns, BLOCK), 1, 1, BLOCK, 0);
}

void kernel_download(struct queue *queue, float *planes, const struct matrix *x, int64_t pixels)
{
    struct planes p = {planes, *x, pixels};

    enqueue<download_each>(queue, p, blocks_for(x->rows * x->columns, BLOCK), 1, 1, BLOCK, 0);
}

/* ---- embedding ---- */

struct embed {
    const int *ids;
    const void *tokens, *positions;
    int tokens_dtype, positions_dtype;
    int64_t period;
    struct matrix y;
};

__global__ void embed_each(struct embed e)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    int64_t row = i / e.y.columns;
    int c = (int)(i % e.y.columns);

    if (row >= e.y.rows)
        return;
    store_element(
        e.y.data, e.y.dtype, row * e.y.ld + c,
        load_element(e.tokens, e.tokens_dtype, (int64_t)e.ids[row] * e.y.columns + c) +
            load_element(e.positions, e.positions_dtype, row % e.period * e.y.columns + c));
}

void kernel_embed(struct queue *queue, const int *ids, const void *tokens, int tokens_dtype,
                  const void *positions, int positions_dtype, int period, const struct matrix *y)
{
    struct embed e = {ids, tokens, positions, tokens_dtype, positions_dtype, period, *y};

    enqueue<embed_each>(queue, e, blocks_for(y->rows * y->columns, BLOCK), 1, 1, BLOCK, 0);
}

/* ---- weights ---- */

__global__ void rearrange_each(struct rearrange r)
{
    int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x, at = r.first + i, rest, row;

    if (i >= r.count)
        return;
    rest = at % ((int64_t)r.in * r.taps);
    row = r.row + at / ((int64_t)r.in * r.taps);
    if (r.half > 0) {
        int64_t value = row < r.half ? row : row - r.half;
        row = value / 8 * 16 + value % 8 + (row < r.half ? 0 : 8);
    }
    store_element(r.w, r.w_dtype, (row * r.taps + rest % r.taps) * r.in + rest / r.taps,
                  load_element(r.from, r.from_dtype, i));
}

void kernel_rearrange(struct queue *queue, const struct rearrange *r)
{
    enqueue<rearrange_each>(queue, *r, blocks_for(r->count, BLOCK), 1, 1, BLOCK, 0);
}
