/*
 * 3×3 convolutions as Winograd F(4×4, 3×3): a quarter of the multiplications, in f32 throughout.
 *
 * The picture is cut into tiles of 4×4 outputs (6×6 inputs). A block of tiles is transformed into
 * 36 matrices tiles × in, each is multiplied with its packed in × out matrix, and the products are
 * transformed back with bias, time embedding and residual. Group norm and SiLU happen in the input
 * transform, upsampling in which pixel it reads.
 *
 * Where the transformed weights of a layer fit the caches beside a block, each thread works on
 * blocks of its own ("private"); where they do not, all threads share one large block and split its
 * 36 products, so that the weights are streamed once per block ("shared").
 *
 * Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
 */
#include "engine/cpu/cpu.h"

#include <omp.h>
#include <stdlib.h>

#define TAPS 36
#define TILE 4
#define FILTERS_MAX 32 /* columns of the widest panel */
#define PRIVATE_WEIGHTS_MAX_BYTES (6u << 20)
#define PRIVATE_BLOCK_BYTES (1536u << 10)
#define SHARED_TILES_MAX 192

bool winograd_suits(const struct conv2d *args)
{
    return args->conv->kernel == 3 && args->conv->stride == 1;
}

/* ---- weights ---- */

static int padded_out(const struct cpu_backend *cpu, int out)
{
    int nr = cpu->kernels->nr, vl = cpu->kernels->vl, tail = out % nr;
    return out - tail + (tail == 0 ? 0 : tail > vl ? nr : vl);
}

static size_t matrix_elements(const struct cpu_backend *cpu, const struct weight *w)
{
    return (size_t)w->in * (size_t)padded_out(cpu, w->out);
}

size_t winograd_bytes(const struct cpu_backend *cpu, const struct weight *w)
{
    return TAPS * matrix_elements(cpu, w) * sizeof(float);
}

/* The filters of one panel of outputs, channel by channel. */
static void transform_panel(const struct cpu_backend *cpu, struct weight *w, int first)
{
    const struct weight_part *source = &w->parts[0];
    size_t elements = matrix_elements(cpu, w), base = (size_t)first * (size_t)w->in;
    int nr = cpu->kernels->nr, left = padded_out(cpu, w->out) - first;
    int width = left < nr ? left : nr;
    float g[9 * FILTERS_MAX] = {0};

    ASSERT(nr <= FILTERS_MAX);
    for (int i = 0; i < w->in; i++) {
        for (int c = 0; c < width && first + c < w->out; c++) {
            size_t at = ((size_t)(first + c) * (size_t)w->in + (size_t)i) * 9;
            for (int t = 0; t < 9; t++)
                g[t * nr + c] = element_to_f32(source->data, source->dtype, at + (size_t)t);
        }
        cpu->kernels->winograd_filter(g, width, w->winograd + base + (size_t)i * (size_t)width,
                                      elements);
    }
}

static bool prepare(struct pass *pass, struct cpu_backend *cpu, struct weight *w)
{
    size_t bytes = winograd_bytes(cpu, w);

    if (w->winograd != NULL)
        return true;
    w->winograd = pool_alloc(&cpu->pool, bytes);
    if (w->winograd == NULL)
        return pass_fail(pass, ERR_MEMORY, ERR_RETRY, "no memory for transformed weights");
#pragma omp parallel for schedule(dynamic, 1) num_threads(cpu->base.threads)
    for (int j = 0; j < w->out; j += cpu->kernels->nr)
        transform_panel(cpu, w, j);
    w->winograd_bytes = bytes;
    cpu->base.weights_bytes += bytes;
    return true;
}

/* ---- convolution ---- */

struct job {
    const struct cpu_backend *cpu;
    const struct conv2d *a;
    int tiles_y, tiles_x;
    int64_t tiles;       /* of all samples */
    int block;           /* tiles of one block */
    size_t ldv, ldm;     /* floats from one tile to the next */
    size_t v_tap, m_tap; /* floats from one tap to the next */
    size_t block_bytes;
    bool shared;
};

static struct job make_job(const struct cpu_backend *cpu, const struct conv2d *a)
{
    struct job j = {.cpu = cpu, .a = a};
    size_t per_tile;
    int64_t fit;

    j.tiles_y = (int)div_up(a->y->h, TILE);
    j.tiles_x = (int)div_up(a->y->w, TILE);
    j.tiles = (int64_t)a->y->n * j.tiles_y * j.tiles_x;
    j.ldv = (size_t)a->conv->in + CPU_PAD;
    j.ldm = (size_t)padded_out(cpu, a->conv->out) + CPU_PAD;
    per_tile = TAPS * (j.ldv + j.ldm) * sizeof(float);
    j.shared = winograd_bytes(cpu, a->conv->weight) > PRIVATE_WEIGHTS_MAX_BYTES;
    fit = j.shared ? SHARED_TILES_MAX : (int64_t)(PRIVATE_BLOCK_BYTES / per_tile) / 12 * 12;
    if (!j.shared && fit * cpu->base.threads > j.tiles)
        fit = div_up(div_up(j.tiles, cpu->base.threads), 12) * 12;
    j.block = (int)(fit < 12 ? 12 : fit > j.tiles ? j.tiles : fit);
    j.v_tap = (size_t)j.block * j.ldv;
    j.m_tap = (size_t)j.block * j.ldm;
    j.block_bytes = (TAPS * (j.v_tap + j.m_tap) * sizeof(float) + 63) & ~(size_t)63;
    return j;
}

struct tile {
    int64_t sample;
    int y, x; /* of the first output */
};

static struct tile tile_at(const struct job *j, int64_t index)
{
    int64_t per_sample = (int64_t)j->tiles_y * j->tiles_x;
    int within = (int)(index % per_sample);

    return (struct tile){.sample = index / per_sample,
                         .y = within / j->tiles_x * TILE,
                         .x = within % j->tiles_x * TILE};
}

static void load_tile(const struct job *j, int64_t index, float *v)
{
    const struct tensor *x = j->a->x;
    struct tile t = tile_at(j, index);
    struct pre pre = pre_of(j->a->pre, t.sample, x->c);
    const void *pixels[TAPS];
    int shift = j->a->upsample ? 1 : 0;

    for (int i = 0; i < TAPS; i++) {
        int py = t.y + i / 6 - 1, px = t.x + i % 6 - 1;
        bool inside = py >= 0 && px >= 0 && py < j->a->y->h && px < j->a->y->w;
        pixels[i] =
            inside ? row_at(x, (t.sample * x->h + (py >> shift)) * x->w + (px >> shift)) : NULL;
    }
    j->cpu->kernels->winograd_input(pixels, x->dtype, x->c, &pre, v, j->v_tap);
}

static void store_tile(const struct job *j, int64_t index, const float *m)
{
    const struct conv2d *a = j->a;
    struct tile t = tile_at(j, index);
    struct finish finish[TILE * TILE];

    for (int i = 0; i < TILE * TILE; i++) {
        int py = t.y + i / TILE, px = t.x + i % TILE;
        int64_t row = (t.sample * a->y->h + py) * a->y->w + px;
        bool inside = py < a->y->h && px < a->y->w;
        finish[i] =
            (struct finish){.bias = a->conv->bias,
                            .time = a->time ? (const float *)row_at(a->time, t.sample) : NULL,
                            .residual = a->residual && inside ? row_at(a->residual, row) : NULL,
                            .residual_dtype = a->residual ? a->residual->dtype : DTYPE_F32,
                            .y = inside ? row_at(a->y, row) : NULL,
                            .y_dtype = a->y->dtype};
    }
    j->cpu->kernels->winograd_output(m, j->m_tap, a->conv->out, finish);
}

/* Product of one tap over the columns [first, first + columns). */
static void multiply(const struct job *j, int tap, int tiles, int first, int columns,
                     const float *v, float *m)
{
    const struct weight *w = j->a->conv->weight;
    const float *u =
        w->winograd + (size_t)tap * matrix_elements(j->cpu, w) + (size_t)first * (size_t)w->in;

    j->cpu->kernels->gemm_f32(tiles, columns, w->in, v + (size_t)tap * j->v_tap, j->ldv, u,
                              (size_t)w->in * (size_t)j->cpu->kernels->nr,
                              m + (size_t)tap * j->m_tap + first, j->ldm, false);
}

static void run_private(const struct job *j, char *scratch)
{
#pragma omp parallel for schedule(dynamic, 1) num_threads(j->cpu->base.threads)
    for (int64_t first = 0; first < j->tiles; first += j->block) {
        float *v = (float *)(scratch + j->block_bytes * (size_t)omp_get_thread_num());
        float *m = v + TAPS * j->v_tap;
        int count = j->tiles - first < j->block ? (int)(j->tiles - first) : j->block;
        for (int i = 0; i < count; i++)
            load_tile(j, first + i, v + (size_t)i * j->ldv);
        for (int tap = 0; tap < TAPS; tap++)
            multiply(j, tap, count, 0, j->a->conv->out, v, m);
        for (int i = 0; i < count; i++)
            store_tile(j, first + i, m + (size_t)i * j->ldm);
    }
}

static void run_shared(const struct job *j, char *scratch)
{
    float *v = (float *)scratch, *m = v + TAPS * j->v_tap;
    int out = j->a->conv->out, nr = j->cpu->kernels->nr, columns = 8 * nr;
    int parts = (int)div_up(out, columns);

#pragma omp parallel num_threads(j->cpu->base.threads)
    for (int64_t first = 0; first < j->tiles; first += j->block) {
        int count = j->tiles - first < j->block ? (int)(j->tiles - first) : j->block;
#pragma omp for schedule(static)
        for (int i = 0; i < count; i++)
            load_tile(j, first + i, v + (size_t)i * j->ldv);
#pragma omp for schedule(dynamic, 1)
        for (int task = 0; task < TAPS * parts; task++) {
            int at = task % parts * columns;
            multiply(j, task / parts, count, at, out - at < columns ? out - at : columns, v, m);
        }
#pragma omp for schedule(static)
        for (int i = 0; i < count; i++)
            store_tile(j, first + i, m + (size_t)i * j->ldm);
    }
}

void winograd_conv2d(struct pass *pass, const struct conv2d *args)
{
    struct cpu_backend *cpu = cpu_of(pass);
    struct weight *weight = args->conv->weight;
    struct job job = make_job(cpu, args);
    size_t bytes = job.block_bytes * (size_t)(job.shared ? 1 : cpu->base.threads);
    char *scratch = pass_scratch(pass, bytes);

    if (pass->planning)
        pass->prepare_bytes += weight->winograd == NULL ? winograd_bytes(cpu, weight) : 0;
    else if (!pass->failed && prepare(pass, cpu, weight)) {
        if (job.shared)
            run_shared(&job, scratch);
        else
            run_private(&job, scratch);
    }
    pass_scratch_drop(pass, scratch);
}
