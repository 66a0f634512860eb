/*
 * 3×3 convolutions: which algorithm, and the two that are not Winograd's, im2col over the matrix
 * driver and oneDNN's direct form.
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
 * as large in f32, and memory decides. */
static enum conv_algorithm by_table(const struct cpu_backend *cpu, const struct conv2d *a)
{
    int64_t pixels = (int64_t)a->y->h * a->y->w;
    int64_t weights = (int64_t)a->conv->in * a->conv->out;
    bool direct =
        !a->upsample && direct_supports(cpu->direct, cpu->base.compute) && !cpu->emulated_bf16;

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

/* x after its affine, dense, in the type that products are computed in. */
static struct tensor materialise(struct pass *pass, const struct tensor *x, enum dtype dtype,
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
        if (y.dtype == DTYPE_BF16)
            cpu->kernels->load_bf16(row_at(&y, row), row_at(x, row), x->dtype, x->c, &p);
        else
            cpu->kernels->load_f32(row_at(&y, row), row_at(x, row), x->dtype, x->c, &p);
    }
    return y;
}

/* ---- im2col, tap by tap ---- */

struct im2col {
    const struct cpu_backend *cpu;
    const struct conv2d *a;
    const struct tensor *x; /* materialised */
};

/* The input pixel under tap (ky, kx) of an output pixel, or NULL in the padding. */
static const void *input_pixel(const struct conv2d *a, const struct tensor *x, int64_t row, int tap)
{
    int pad = a->pad_end_only ? 0 : 1, shift = a->upsample ? 1 : 0;
    int64_t per_sample = (int64_t)a->y->h * a->y->w, n = row / per_sample;
    int y = (int)(row % per_sample / a->y->w), col = (int)(row % a->y->w);
    int iy = y * a->conv->stride + tap / 3 - pad, ix = col * a->conv->stride + tap % 3 - pad;
    int height = a->upsample ? a->y->h : x->h, width = a->upsample ? a->y->w : x->w;

    if (iy < 0 || ix < 0 || iy >= height || ix >= width)
        return NULL;
    return row_at(x, (n * x->h + (iy >> shift)) * x->w + (ix >> shift));
}

static void im2col_fill(const void *context, int segment, int64_t row, int rows, void *a, size_t ld)
{
    const struct im2col *c = context;
    const struct panels *p = &c->a->conv->weight->panels;
    size_t element = p->type == PANEL_PAIRS ? 2 : 4;
    struct pre none = {0};

    for (int i = 0; i < rows; i++) {
        char *dst = (char *)a + (size_t)i * ld * element;
        const void *pixel = input_pixel(c->a, c->x, row + i, segment);
        if (pixel == NULL)
            memset(dst, 0, (size_t)p->segment_k * element);
        else if (p->type == PANEL_PAIRS) {
            memcpy(dst, pixel, (size_t)c->x->c * sizeof(uint16_t));
            if (c->x->c & 1)
                ((uint16_t *)dst)[c->x->c] = 0;
        } else
            c->cpu->kernels->load_f32((float *)dst, pixel, c->x->dtype, c->x->c, &none);
    }
}

/* Bias, time and residual for columns [column, column + columns) of one pixel. */
static struct finish finish_at(const struct conv2d *a, int64_t row, int column)
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

static void im2col_emit(const void *context, int64_t row, int rows, int column, int columns,
                        const float *c, size_t ldc)
{
    const struct im2col *im = context;

    for (int i = 0; i < rows; i++) {
        struct finish f = finish_at(im->a, row + i, column);
        im->cpu->kernels->finish(c + (size_t)i * ldc, columns, &f);
    }
}

static void gemm_conv2d(struct pass *pass, const struct conv2d *a, const struct tensor *x)
{
    struct cpu_backend *cpu = cpu_of(pass);
    struct weight *w = a->conv->weight;
    struct im2col context = {.cpu = cpu, .a = a, .x = x};

    if (pass->planning)
        pass->prepare_bytes += weight_pack_bytes(cpu, w);
    else if (weight_pack(cpu, w, cpu->base.threads, pass->err) != 0) {
        pass->failed = true;
        return;
    }
    cpu_gemm(pass, &(struct gemm){.terms = &(struct gemm_term){.b = weight_panels(cpu, w),
                                                               .fill = im2col_fill,
                                                               .context = &context},
                                  .term_count = 1,
                                  .rows = tensor_rows(a->y),
                                  .emit = im2col_emit,
                                  .context = &context});
}

/* ---- direct ---- */

/* y = c + time + residual; bias is in c already. */
static void add_rest(struct pass *pass, const struct conv2d *a, const struct tensor *c)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    int64_t rows = tensor_rows(c);

#pragma omp parallel for schedule(static) num_threads(cpu->base.threads)
    for (int64_t row = 0; row < rows; row++) {
        struct finish f = finish_at(a, row, 0);
        f.bias = NULL;
        cpu->kernels->finish_as(row_at(c, row), c->dtype, c->c, &f);
    }
}

static void direct_path(struct pass *pass, const struct conv2d *a, const struct tensor *x)
{
    bool whole = a->time == NULL && a->residual == NULL && a->y->dtype == x->dtype;
    struct tensor c = *a->y;

    if (!whole)
        c = pass_tensor_of(pass, x->dtype, a->y->n, a->y->h, a->y->w, a->y->c);
    direct_conv2d(pass, a, x, &c);
    if (whole)
        return;
    if (!pass->planning && !pass->failed)
        add_rest(pass, a, &c);
    pass_drop(pass, &c);
}

/* ---- additions, whatever the algorithm ---- */

static void added_emit(const void *context, int64_t row, int rows, int column, int columns,
                       const float *c, size_t ldc)
{
    const struct im2col *im = context;
    const struct tensor *y = im->a->y;

    for (int i = 0; i < rows; i++) {
        void *pixel = (char *)row_at(y, row + i) + (size_t)column * dtype_bytes(y->dtype);
        struct finish f = {
            .residual = pixel, .residual_dtype = y->dtype, .y = pixel, .y_dtype = y->dtype};
        im->cpu->kernels->finish(c + (size_t)i * ldc, columns, &f);
    }
}

/* y += additions */
static void add_additions(struct pass *pass, const struct conv2d *a)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    struct im2col context = {.cpu = cpu, .a = a};
    struct added added[ADDITIONS_MAX];
    struct gemm_term terms[ADDITIONS_MAX];

    cpu_added_terms(cpu, a->additions, a->addition_count, added, terms);
    cpu_gemm(pass, &(struct gemm){.terms = terms,
                                  .term_count = a->addition_count,
                                  .rows = tensor_rows(a->y),
                                  .emit = added_emit,
                                  .context = &context});
}

static void convolve(struct pass *pass, const struct conv2d *a)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    enum conv_algorithm algorithm = choose(cpu, a);
    enum dtype dtype = weight_is_exact(cpu, a->conv->weight) ? DTYPE_F32 : cpu->base.compute;
    bool as_it_is = a->pre == NULL && a->x->dtype == dtype;
    struct tensor x = *a->x;

    if (algorithm == CONV_WINOGRAD) {
        winograd_conv2d(pass, a);
        return;
    }
    if (!as_it_is)
        x = materialise(pass, a->x, dtype, a->pre);
    if (algorithm == CONV_DIRECT)
        direct_path(pass, a, &x);
    else
        gemm_conv2d(pass, a, &x);
    if (!as_it_is)
        pass_drop(pass, &x);
}

void cpu_conv2d(struct pass *pass, const struct conv2d *a)
{
    convolve(pass, a);
    if (a->addition_count > 0)
        add_additions(pass, a);
}
