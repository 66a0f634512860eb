/*
 * 3×3 convolutions as products of matrices, tap by tap, over the matrix driver.
 *
 * With stride 1 nothing is copied per tap: x is laid out once with a column of zeros after each row
 * and a row of zeros around each sample, where the pixels under a tap are as many elements ahead of
 * their outputs for the whole picture. Products are computed for the zeros, too, and dropped.
 */
#include "engine/cpu/direct.h"

#define SPREAD_WIDTH_MIN 8 /* below, the columns of zeros are too much of the work */

struct im2col {
    const struct cpu_backend *cpu;
    const struct conv2d *a;
    const struct tensor *x; /* what is read: dense, or spread out */
};

/* ---- any stride: pixels are copied for each tap ---- */

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

static void copy_fill(const void *context, int segment, int64_t row, int rows, void *a, size_t ld)
{
    const struct im2col *c = context;
    const struct panels *p = &c->a->conv->weight->panels;
    bool pairs = p->type == PANEL_PAIRS;
    size_t element = pairs ? 2 : 4;
    struct pre none = {0};

    for (int i = 0; i < rows; i++) {
        char *dst = (char *)a + (size_t)i * ld * element;
        const void *pixel = input_pixel(c->a, c->x, row + i, segment);
        if (pixel == NULL)
            memset(dst, 0, (size_t)p->segment_k * element);
        else if (pairs) {
            memcpy(dst, pixel, (size_t)c->x->c * sizeof(uint16_t));
            if (c->x->c & 1)
                ((uint16_t *)dst)[c->x->c] = 0;
        } else
            c->cpu->kernels->load_f32((float *)dst, pixel, c->x->dtype, c->x->c, &none);
    }
}

static void copy_emit(const void *context, int64_t row, int rows, int column, int columns,
                      const float *c, size_t ldc)
{
    const struct im2col *im = context;

    for (int i = 0; i < rows; i++) {
        struct finish f = conv_finish(im->a, row + i, column);
        im->cpu->kernels->finish(c + (size_t)i * ldc, columns, &f);
    }
}

static void copied(struct pass *pass, struct im2col *c, enum dtype dtype, struct gemm *gemm,
                   struct gemm_term *term)
{
    bool as_it_is = c->a->pre == NULL && c->a->x->dtype == dtype;
    struct tensor x = as_it_is ? *c->a->x : conv_input(pass, c->a->x, dtype, c->a->pre);

    c->x = &x;
    term->fill = copy_fill;
    gemm->rows = tensor_rows(c->a->y);
    gemm->emit = copy_emit;
    cpu_gemm(pass, gemm);
    if (!as_it_is)
        pass_drop(pass, &x);
}

/* ---- stride 1: x is spread out once ---- */

static int64_t row_pixels(const struct conv2d *a)
{
    return a->y->w + 1;
}

static int64_t sample_pixels(const struct conv2d *a)
{
    return (a->y->h + 1) * row_pixels(a);
}

/* The zeros before the first pixel, and after the last: what the farthest tap reads. */
static int64_t margin_pixels(const struct conv2d *a)
{
    return row_pixels(a) + 1;
}

/* What lies at a place of the spread picture, counted from the first pixel: one of y's, or not. */
static bool place(const struct conv2d *a, int64_t at, int64_t *n, int *y, int *x)
{
    *n = at / sample_pixels(a);
    *y = (int)(at % sample_pixels(a) / row_pixels(a));
    *x = (int)(at % row_pixels(a));
    return at >= 0 && *n < a->y->n && *y < a->y->h && *x < a->y->w;
}

/* pre(x), as large as y, among its zeros. */
static struct tensor spread(struct pass *pass, const struct conv2d *a, enum dtype dtype)
{
    const struct cpu_backend *cpu = cpu_of(pass);
    int64_t margin = margin_pixels(a), pixels = a->y->n * sample_pixels(a) + 2 * margin;
    int shift = a->upsample ? 1 : 0;
    struct tensor s = pass_tensor_of(pass, dtype, 1, 1, (int)pixels, a->x->c);

    if (pass->planning || pass->failed)
        return s;
#pragma omp parallel for schedule(static) num_threads(cpu->base.threads)
    for (int64_t at = 0; at < pixels; at++) {
        int64_t n;
        int y, x;
        if (!place(a, at - margin, &n, &y, &x)) {
            memset(row_at(&s, at), 0, (size_t)s.c * dtype_bytes(dtype));
            continue;
        }
        struct pre pre = pre_of(a->pre, n, s.c);
        const void *from = row_at(a->x, (n * a->x->h + (y >> shift)) * a->x->w + (x >> shift));
        load_row(cpu->kernels, row_at(&s, at), dtype, from, a->x->dtype, s.c, &pre);
    }
    return s;
}

static const void *spread_view(const void *context, int segment, int64_t row, size_t *ld)
{
    const struct im2col *c = context;
    int64_t ahead = (segment / 3 - 1) * row_pixels(c->a) + segment % 3 - 1;

    *ld = (size_t)c->x->ld;
    return row_at(c->x, margin_pixels(c->a) + row + ahead);
}

static void spread_emit(const void *context, int64_t row, int rows, int column, int columns,
                        const float *c, size_t ldc)
{
    const struct im2col *im = context;
    const struct tensor *to = im->a->y;

    for (int i = 0; i < rows; i++) {
        int64_t n;
        int y, x;
        if (!place(im->a, row + i, &n, &y, &x))
            continue;
        struct finish f = conv_finish(im->a, (n * to->h + y) * to->w + x, column);
        im->cpu->kernels->finish(c + (size_t)i * ldc, columns, &f);
    }
}

static void spread_out(struct pass *pass, struct im2col *c, enum dtype dtype, struct gemm *gemm,
                       struct gemm_term *term)
{
    struct tensor x = spread(pass, c->a, dtype);

    c->x = &x;
    term->view = spread_view;
    gemm->rows = c->a->y->n * sample_pixels(c->a);
    gemm->emit = spread_emit;
    cpu_gemm(pass, gemm);
    pass_drop(pass, &x);
}

void im2col_conv2d(struct pass *pass, const struct conv2d *a, enum dtype dtype)
{
    struct cpu_backend *cpu = cpu_of(pass);
    struct weight *w = a->conv->weight;
    struct im2col context = {.cpu = cpu, .a = a};
    struct gemm_term term = {.context = &context};
    struct gemm gemm = {.terms = &term, .term_count = 1, .context = &context};

    if (pass->planning)
        pass->prepare_bytes += weight_pack_bytes(cpu, w);
    else if (weight_pack(cpu, w, cpu->base.threads, pass->err) != 0) {
        pass->failed = true;
        return;
    }
    term.b = weight_panels(cpu, w);
    /* The driver must find x as it reads it: of the products' type and, of pairs, all whole. */
    if (a->conv->stride == 1 && a->y->w >= SPREAD_WIDTH_MIN &&
        (term.b.type == PANEL_PAIRS ? a->x->c % 2 == 0 : dtype == DTYPE_F32))
        spread_out(pass, &context, dtype, &gemm, &term);
    else
        copied(pass, &context, dtype, &gemm, &term);
}
