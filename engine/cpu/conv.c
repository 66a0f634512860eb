/*
 * 3×3 convolutions: which algorithm, oneDNN's direct form, and what others share.
 *
 * The choice depends on the layer, the picture's shape, the processor and what the engine may use
 * of memory in all, never on the batch or on what memory holds just now, so that a picture is the
 * same whatever was drawn before it.
 */
#include "engine/cpu/direct.h"

#define WINOGRAD_PIXELS_MIN (24 * 24)
#define WINOGRAD_SMALL_WEIGHTS (320 * 320)
#define DIRECT_PIXELS_MIN (8 * 8)
#define WINOGRAD_MEMORY_SHARE 128 /* no filter in Winograd's form takes more of the memory, */
#define WINOGRAD_ALWAYS_BYTES (16u << 20) /* unless it takes less than this */

/* The widest filters gain least from the form and take most for it: eight times what they are in 16
 * bits. Where memory is small, two large models fit it only if these stay as they are. */
static bool winograd_fits(const struct cpu_backend *cpu, const struct weight *weight)
{
    size_t bytes = winograd_bytes(cpu, weight), memory = cpu->base.memory_max_bytes;

    return bytes <= WINOGRAD_ALWAYS_BYTES || memory == 0 || bytes <= memory / WINOGRAD_MEMORY_SHARE;
}

/* The table: what was fastest where both were measured (docs/benchmarks/cpu.md). Winograd's f32
 * beats even native bf16 from 32×32 outputs on; below, few tiles share weights that are four times
 * as large in f32, and memory decides. AMX's bf16 is sixteen times f32, more than the four that the
 * form saves. */
static enum conv_algorithm by_table(const struct cpu_backend *cpu, const struct conv2d *a)
{
    int64_t pixels = (int64_t)a->y->h * a->y->w;
    int64_t weights = (int64_t)a->conv->in * a->conv->out;
    bool direct =
        !a->upsample && direct_supports(cpu->direct, cpu->base.compute) && !cpu->emulated_bf16;

    bool tiles = cpu->kernels->tiles && !weight_is_exact(cpu, a->conv->weight);

    if (tiles)
        return CONV_GEMM;
    if (winograd_suits(a) && winograd_fits(cpu, a->conv->weight) &&
        (pixels >= WINOGRAD_PIXELS_MIN || weights <= WINOGRAD_SMALL_WEIGHTS))
        return CONV_WINOGRAD;
    return direct && pixels >= DIRECT_PIXELS_MIN ? CONV_DIRECT : CONV_GEMM;
}

static enum conv_algorithm choose(const struct cpu_backend *cpu, const struct conv2d *a)
{
    bool direct = !a->upsample && direct_supports(cpu->direct, cpu->base.compute);

    if (cpu->base.conv == CONV_WINOGRAD && winograd_suits(a))
        return CONV_WINOGRAD;
    if (a->conv->in < CONV_NARROW || a->conv->out < CONV_NARROW)
        return CONV_GEMM;
    if (cpu->base.conv == CONV_BY_TABLE)
        return by_table(cpu, a);
    return cpu->base.conv == CONV_DIRECT && direct ? CONV_DIRECT : CONV_GEMM;
}

struct tensor conv_input(struct pass *pass, const struct tensor *x, enum dtype dtype,
                         const struct affine *pre)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    struct tensor y = pass_tensor_of(pass, dtype, x->n, x->h, x->w, x->c);
    int64_t rows = tensor_rows(x), per_sample = (int64_t)x->h * x->w;

    if (pass->planning || pass->failed)
        return y;
#pragma omp parallel for schedule(static) num_threads(cpu->base.threads)
    for (int64_t row = 0; row < rows; row++) {
        struct pre p = pre_of(pre, row / per_sample, x->c);
        load_row(cpu->kernels, row_at(&y, row), dtype, row_at(x, row), x->dtype, x->c, &p);
    }
    return y;
}

struct finish conv_finish(const struct conv2d *a, int64_t row, int column)
{
    int64_t sample = row / ((int64_t)a->y->h * a->y->w);
    struct finish f = {.y = (char *)row_at(a->y, row) + (size_t)column * dtype_bytes(a->y->dtype),
                       .y_dtype = a->y->dtype};

    if (a->conv->bias)
        f.bias = a->conv->bias + column;
    if (a->time)
        f.time = (const float *)row_at(a->time, sample) + column;
    if (a->residual) {
        f.residual = (const char *)row_at(a->residual, row) +
                     (size_t)column * dtype_bytes(a->residual->dtype);
        f.residual_dtype = a->residual->dtype;
    }
    return f;
}

/* ---- direct ---- */

/* y = c + time + residual; bias is in c already. */
static void add_rest(struct pass *pass, const struct conv2d *a, const struct tensor *c)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    int64_t rows = tensor_rows(c);

#pragma omp parallel for schedule(static) num_threads(cpu->base.threads)
    for (int64_t row = 0; row < rows; row++) {
        struct finish f = conv_finish(a, row, 0);
        f.bias = NULL;
        cpu->kernels->finish_as(row_at(c, row), c->dtype, c->c, &f);
    }
}

static void direct_path(struct pass *pass, const struct conv2d *a, enum dtype dtype)
{
    bool as_it_is = a->pre == NULL && a->x->dtype == dtype;
    bool whole = a->time == NULL && a->residual == NULL && a->y->dtype == dtype;
    struct tensor x = as_it_is ? *a->x : conv_input(pass, a->x, dtype, a->pre), y = *a->y;

    if (!whole)
        y = pass_tensor_of(pass, dtype, a->y->n, a->y->h, a->y->w, a->y->c);
    direct_conv2d(pass, a, &x, &y);
    if (!whole) {
        if (!pass->planning && !pass->failed)
            add_rest(pass, a, &y);
        pass_drop(pass, &y);
    }
    if (!as_it_is)
        pass_drop(pass, &x);
}

/* ---- additions, whatever the algorithm ---- */

struct adding {
    const struct cpu_backend *cpu;
    struct tensor *y;
};

static void added_emit(const void *context, int64_t row, int rows, int column, int columns,
                       const float *c, size_t ldc)
{
    const struct adding *to = context;
    struct tensor *y = to->y;

    for (int i = 0; i < rows; i++) {
        void *pixel = (char *)row_at(y, row + i) + (size_t)column * dtype_bytes(y->dtype);
        struct finish f = {
            .residual = pixel, .residual_dtype = y->dtype, .y = pixel, .y_dtype = y->dtype};
        to->cpu->kernels->finish(c + (size_t)i * ldc, columns, &f);
    }
}

/* y += additions */
static void add_additions(struct pass *pass, const struct conv2d *a)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    struct adding context = {.cpu = cpu, .y = a->y};
    struct added added[ADDITIONS_MAX];
    struct gemm_term terms[ADDITIONS_MAX];

    cpu_added_terms(cpu, a->additions, a->addition_count, added, terms);
    cpu_gemm(pass, &(struct gemm){.terms = terms,
                                  .term_count = a->addition_count,
                                  .rows = tensor_rows(a->y),
                                  .emit = added_emit,
                                  .context = &context});
}

void cpu_conv2d(struct pass *pass, const struct conv2d *a)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    enum dtype dtype = weight_is_exact(cpu, a->conv->weight) ? DTYPE_F32 : cpu->base.compute;

    switch (choose(cpu, a)) {
    case CONV_WINOGRAD:
        winograd_conv2d(pass, a);
        break;
    case CONV_DIRECT:
        direct_path(pass, a, dtype);
        break;
    default:
        im2col_conv2d(pass, a, dtype);
    }
    if (a->addition_count > 0)
        add_additions(pass, a);
}
