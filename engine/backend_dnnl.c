/*
 * The CPU back end's table: opening it, weights, and the small operators. See cpu/cpu.h.
 */
#include "engine/cpu/direct.h"
#include "engine/freeu.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>

/* Beside a step one thread alone: threads that waited for each other at every layer's end would
 * wait for the step's, which has the cores. */
static int packing_threads(const struct backend *backend)
{
    return backend->computing > 0 ? 1 : backend->threads;
}

static int dnnl_weight_create(struct backend *backend, const struct weight_spec *spec,
                              struct weight **out, struct err *err)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;
    struct weight *w = calloc(1, sizeof(*w));

    ASSERT(spec->part_count <= CPU_STACK_MAX);
    if (w == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a weight");
    w->in = spec->in;
    w->kernel = spec->kernel;
    w->geglu = spec->geglu;
    w->lookup = spec->lookup;
    w->exact = spec->exact;
    w->part_count = spec->part_count;
    for (int i = 0; i < spec->part_count; i++) {
        w->parts[i] = spec->parts[i];
        w->out += spec->parts[i].out;
    }
    /* Filters are prepared when a shape first asks for one of their forms; tables are read as they
     * lie in the file. */
    if (spec->kernel == 1 && !spec->lookup &&
        weight_pack(cpu, w, packing_threads(backend), err) != 0) {
        free(w);
        return -1;
    }
    *out = w;
    return 0;
}

static size_t dnnl_weight_bytes(const struct weight *w)
{
    return w->panels.bytes + w->winograd_bytes;
}

static void dnnl_weight_free(struct backend *backend, struct weight *w)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;

    if (w == NULL)
        return;
    backend->weights_bytes -= dnnl_weight_bytes(w) + direct_free(w->direct);
    pool_free(&cpu->pool, w->panels.data, w->panels.bytes);
    pool_free(&cpu->pool, w->winograd, w->winograd_bytes);
    free(w);
}

static void *dnnl_memory_alloc(struct backend *backend, size_t bytes)
{
    return pool_alloc(&((struct cpu_backend *)backend)->pool, bytes);
}

static void dnnl_memory_free(struct backend *backend, void *memory, size_t bytes)
{
    pool_free(&((struct cpu_backend *)backend)->pool, memory, bytes);
}

static void dnnl_vector_upload(struct backend *backend, float *dst, const float *src, size_t count)
{
    (void)backend;
    memcpy(dst, src, count * sizeof(float));
}

static void put(struct tensor *t, int64_t row, int c, float v)
{
    if (t->dtype == DTYPE_F32)
        ((float *)row_at(t, row))[c] = v;
    else
        ((uint16_t *)row_at(t, row))[c] = bf16_from_f32(v);
}

static void dnnl_upload(struct pass *pass, struct tensor *y, const float *planes)
{
    int64_t pixels = (int64_t)y->h * y->w, rows = tensor_rows(y);

#pragma omp parallel for schedule(static) num_threads(pass->backend->threads)
    for (int64_t row = 0; row < rows; row++)
        for (int c = 0; c < y->c; c++)
            put(y, row, c, planes[(row / pixels * y->c + c) * pixels + row % pixels]);
}

static void dnnl_download(struct pass *pass, float *planes, const struct tensor *x)
{
    int64_t pixels = (int64_t)x->h * x->w, rows = tensor_rows(x);

#pragma omp parallel for schedule(static) num_threads(pass->backend->threads)
    for (int64_t row = 0; row < rows; row++)
        for (int c = 0; c < x->c; c++)
            planes[(row / pixels * x->c + c) * pixels + row % pixels] =
                element_to_f32(row_at(x, row), x->dtype, (size_t)c);
}

static void dnnl_concat(struct pass *pass, const struct tensor *a, const struct tensor *b,
                        struct tensor *y)
{
    int64_t rows = tensor_rows(y);
    size_t element = dtype_bytes(y->dtype), left = (size_t)a->c * element;

#pragma omp parallel for schedule(static) num_threads(pass->backend->threads)
    for (int64_t row = 0; row < rows; row++) {
        memcpy(row_at(y, row), row_at(a, row), left);
        memcpy((char *)row_at(y, row) + left, row_at(b, row), (size_t)b->c * element);
    }
}

#define CHANNELS_AT_ONCE 32 /* of one thread at a time: a cache line of 16-bit values */

static void damp_channels(struct tensor *x, float by, int first, int count)
{
    double sums[FREEU_WAVES][CHANNELS_AT_ONCE] = {{0}}, waves[FREEU_WAVES];
    double factor = ((double)by - 1) / ((double)x->h * x->w);
    int64_t rows = tensor_rows(x);

    for (int64_t row = 0; row < rows; row++) {
        freeu_waves(waves, (int)(row / x->w), x->h, (int)(row % x->w), x->w);
        for (int c = 0; c < count; c++) {
            double v = element_to_f32(row_at(x, row), x->dtype, (size_t)(first + c));
            for (int k = 0; k < FREEU_WAVES; k++)
                sums[k][c] += waves[k] * v;
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        freeu_waves(waves, (int)(row / x->w), x->h, (int)(row % x->w), x->w);
        for (int c = 0; c < count; c++) {
            double low = 0, v = element_to_f32(row_at(x, row), x->dtype, (size_t)(first + c));
            for (int k = 0; k < FREEU_WAVES; k++)
                low += waves[k] * sums[k][c];
            put(x, row, first + c, (float)(v + factor * low));
        }
    }
}

static void dnnl_damp(struct pass *pass, struct tensor *x, float by)
{
#pragma omp parallel for schedule(static) num_threads(pass->backend->threads)
    for (int first = 0; first < x->c; first += CHANNELS_AT_ONCE)
        damp_channels(x, by, first,
                      x->c - first < CHANNELS_AT_ONCE ? x->c - first : CHANNELS_AT_ONCE);
}

static void mean_channels(const struct tensor *x, struct tensor *y, int n, int first, int count)
{
    double sums[CHANNELS_AT_ONCE] = {0};
    int64_t pixels = (int64_t)x->h * x->w;

    for (int64_t i = 0; i < pixels; i++)
        for (int c = 0; c < count; c++)
            sums[c] += element_to_f32(row_at(x, n * pixels + i), x->dtype, (size_t)(first + c));
    for (int c = 0; c < count; c++)
        put(y, n, first + c, (float)(sums[c] / (double)pixels));
}

static void dnnl_mean(struct pass *pass, const struct tensor *x, struct tensor *y)
{
#pragma omp parallel for schedule(static) collapse(2) num_threads(pass->backend->threads)
    for (int n = 0; n < x->n; n++)
        for (int first = 0; first < x->c; first += CHANNELS_AT_ONCE)
            mean_channels(x, y, n, first,
                          x->c - first < CHANNELS_AT_ONCE ? x->c - first : CHANNELS_AT_ONCE);
}

static void dnnl_silu(struct pass *pass, const struct tensor *x, struct tensor *y)
{
    int64_t rows = tensor_rows(y);

#pragma omp parallel for schedule(static) num_threads(pass->backend->threads)
    for (int64_t row = 0; row < rows; row++)
        for (int c = 0; c < y->c; c++) {
            float v = element_to_f32(row_at(x, row), x->dtype, (size_t)c);
            put(y, row, c, v / (1 + expf(-v)));
        }
}

static void dnnl_add(struct pass *pass, const struct tensor *x, float scale, struct tensor *y)
{
    int64_t rows = tensor_rows(y);

#pragma omp parallel for schedule(static) num_threads(pass->backend->threads)
    for (int64_t row = 0; row < rows; row++)
        for (int c = 0; c < y->c; c++)
            put(y, row, c,
                element_to_f32(row_at(y, row), y->dtype, (size_t)c) +
                    scale * element_to_f32(row_at(x, row), x->dtype, (size_t)c));
}

static void dnnl_embed(struct pass *pass, const int *ids, const struct embedding *tokens,
                       const struct embedding *positions, struct tensor *y)
{
    const struct weight_part *t = &tokens->table->parts[0], *p = &positions->table->parts[0];
    size_t columns = (size_t)y->c;

    (void)pass;
    for (int64_t row = 0; row < tensor_rows(y); row++)
        for (size_t c = 0; c < columns; c++)
            put(y, row, (int)c,
                element_to_f32(t->data, t->dtype, (size_t)ids[row] * columns + c) +
                    element_to_f32(p->data, p->dtype, (size_t)(row % y->w) * columns + c));
}

static void dnnl_finish(struct pass *pass)
{
    (void)pass; /* operators are done when they return */
}

static void dnnl_destroy(struct backend *backend)
{
    struct cpu_backend *cpu = (struct cpu_backend *)backend;

    direct_engine_free(cpu->direct);
    pool_release(&cpu->pool);
    free(cpu);
}

static const struct backend_ops DNNL_OPS = {
    .name = "dnnl",
    .weight_create = dnnl_weight_create,
    .weight_free = dnnl_weight_free,
    .weight_bytes = dnnl_weight_bytes,
    .memory_alloc = dnnl_memory_alloc,
    .memory_free = dnnl_memory_free,
    .upload = dnnl_upload,
    .download = dnnl_download,
    .vector_upload = dnnl_vector_upload,
    .conv2d = cpu_conv2d,
    .matmul = cpu_matmul,
    .attention = cpu_attention,
    .group_norm = cpu_group_norm,
    .layer_norm = cpu_layer_norm,
    .concat = dnnl_concat,
    .silu = dnnl_silu,
    .add = dnnl_add,
    .damp = dnnl_damp,
    .mean = dnnl_mean,
    .embed = dnnl_embed,
    .finish = dnnl_finish,
    .destroy = dnnl_destroy,
};

int backend_dnnl_open(struct backend **backend, const struct backend_options *options,
                      struct err *err)
{
    const struct cpu_kernels *kernels = cpu_kernels_find(options->isa);
    struct cpu_backend *cpu;
    int threads = options->threads > 0 ? options->threads : omp_get_num_procs();

    if (kernels == NULL)
        return err_set(err, ERR_UNSUPPORTED, ERR_FATAL,
                       "this processor has no '%s'; ask for 'auto', 'generic', 'avx2', 'avx512', "
                       "'avx512_bf16' or 'amx_bf16'",
                       options->isa);
    cpu = calloc(1, sizeof(*cpu));
    if (cpu == NULL)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "no memory for the dnnl back end");
    cpu->kernels = kernels;
    cpu->emulated_bf16 = options->compute == DTYPE_BF16 && !kernels->bf16_dot;
    cpu->weights_16bit = options->weights_16bit;
    cpu->base = (struct backend){.ops = &DNNL_OPS,
                                 .compute = options->compute,
                                 .isa = kernels->isa,
                                 .native_bf16 = kernels->bf16_dot,
                                 .conv = options->conv,
                                 .step_pixels_max = CPU_STEP_PIXELS,
                                 .batch_pixels = CPU_BATCH_PIXELS,
                                 .lanes = 1,
                                 .threads = threads < CPU_THREADS_MAX ? threads : CPU_THREADS_MAX};
    pool_init(&cpu->pool);
    if (direct_engine_create(&cpu->direct, err) != 0) {
        pool_release(&cpu->pool);
        free(cpu);
        return -1;
    }
    *backend = &cpu->base;
    return 0;
}
