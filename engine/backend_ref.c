/*
 * The reference back end: plain loops, one thread, double accumulation. It is the specification
 * that the other back ends are held against, so it does each thing in the most obvious way, and the
 * only liberty is that weights become f32 (rounded to bf16 first when the engine computes in bf16).
 */
#include "engine/backend.h"
#include "engine/freeu.h"

#include <math.h>
#include <stdlib.h>

struct weight {
    int out, in, kernel;
    enum dtype compute; /* what products are rounded to */
    size_t bytes;
    float data[]; /* out × kernel × kernel × in */
};

static float get(const struct tensor *t, int64_t row, int c)
{
    return element_to_f32(t->data, t->dtype, (size_t)(row * t->ld + c));
}

static void put(struct tensor *t, int64_t row, int c, double v)
{
    size_t i = (size_t)(row * t->ld + c);

    if (t->dtype == DTYPE_F32)
        ((float *)t->data)[i] = (float)v;
    else
        ((uint16_t *)t->data)[i] =
            t->dtype == DTYPE_BF16 ? bf16_from_f32((float)v) : f16_from_f32((float)v);
}

static int ref_weight_create(struct backend *backend, const struct weight_spec *spec,
                             struct weight **weight, struct err *err)
{
    int taps = spec->kernel * spec->kernel, out = 0, row = 0;
    size_t count, bytes;
    struct weight *w;

    for (int p = 0; p < spec->part_count; p++)
        out += spec->parts[p].out;
    count = (size_t)out * (size_t)spec->in * (size_t)taps;
    bytes = sizeof(*w) + count * sizeof(float);
    w = malloc(bytes);
    if (w == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a weight of %zu bytes", bytes);
    *w = (struct weight){.out = out,
                         .in = spec->in,
                         .kernel = spec->kernel,
                         .compute = spec->lookup ? DTYPE_F32 : weight_compute(backend, spec, out),
                         .bytes = bytes};
    for (int p = 0; p < spec->part_count; p++) {
        const struct weight_part *part = &spec->parts[p];
        for (int o = 0; o < part->out; o++, row++)
            for (int i = 0; i < spec->in; i++)
                for (int t = 0; t < taps; t++) {
                    size_t from =
                        ((size_t)o * (size_t)spec->in + (size_t)i) * (size_t)taps + (size_t)t;
                    size_t to =
                        ((size_t)row * (size_t)taps + (size_t)t) * (size_t)spec->in + (size_t)i;
                    float v = element_to_f32(part->data, part->dtype, from);
                    w->data[to] = round_to_dtype(w->compute, v);
                }
    }
    backend->weights_bytes += bytes;
    *weight = w;
    return 0;
}

static void ref_weight_free(struct backend *backend, struct weight *weight)
{
    if (weight != NULL)
        backend->weights_bytes -= weight->bytes;
    free(weight);
}

static size_t ref_weight_bytes(const struct weight *weight)
{
    return weight->bytes;
}

static void *ref_memory_alloc(struct backend *backend, size_t bytes)
{
    (void)backend;
    return aligned_alloc(ARENA_ALIGN_BYTES,
                         (bytes + ARENA_ALIGN_BYTES - 1) / ARENA_ALIGN_BYTES * ARENA_ALIGN_BYTES);
}

static void ref_memory_free(struct backend *backend, void *memory, size_t bytes)
{
    (void)backend, (void)bytes;
    free(memory);
}

static void ref_vector_upload(struct backend *backend, float *dst, const float *src, size_t count)
{
    (void)backend;
    memcpy(dst, src, count * sizeof(float));
}

static void ref_upload(struct pass *pass, struct tensor *y, const float *planes)
{
    int64_t pixels = (int64_t)y->h * y->w;

    (void)pass;
    for (int n = 0; n < y->n; n++)
        for (int c = 0; c < y->c; c++)
            for (int64_t i = 0; i < pixels; i++)
                put(y, n * pixels + i, c, planes[(n * (int64_t)y->c + c) * pixels + i]);
}

static void ref_download(struct pass *pass, float *planes, const struct tensor *x)
{
    int64_t pixels = (int64_t)x->h * x->w;

    (void)pass;
    for (int n = 0; n < x->n; n++)
        for (int c = 0; c < x->c; c++)
            for (int64_t i = 0; i < pixels; i++)
                planes[(n * (int64_t)x->c + c) * pixels + i] = get(x, n * pixels + i, c);
}

static double silu(double v)
{
    return v / (1 + exp(-v));
}

static double apply(enum activation act, double v)
{
    switch (act) {
    case ACT_SILU:
        return silu(v);
    case ACT_GELU:
        return 0.5 * v * (1 + erf(v * M_SQRT1_2));
    case ACT_QUICK_GELU:
        return v / (1 + exp(-1.702 * v));
    default:
        return v;
    }
}

/* What an operator reads: x after its affine, rounded as the back end's products take it, dense.
 * Scratch; NULL when there is nothing to compute. */
static float *read_input(struct pass *pass, const struct tensor *x, const struct affine *pre,
                         enum dtype compute)
{
    int64_t rows = tensor_rows(x), rows_per_sample = (int64_t)x->h * x->w;
    float *dense = pass_scratch(pass, (size_t)rows * (size_t)x->c * sizeof(float));

    if (pass->planning || pass->failed) {
        pass_scratch_drop(pass, dense);
        return NULL;
    }
    for (int64_t row = 0; row < rows; row++)
        for (int c = 0; c < x->c; c++) {
            size_t at = (size_t)(row / rows_per_sample) * (size_t)x->c + (size_t)c;
            double v = get(x, row, c);
            if (pre != NULL)
                v = v * pre->scale[at] + pre->shift[at];
            if (pre != NULL && pre->silu)
                v = silu(v);
            dense[row * x->c + c] = round_to_dtype(compute, (float)v);
        }
    return dense;
}

/* The additions of one row and column. Their input is rounded as the weight's products take it. */
static double added_at(const struct addition *additions, int count, int64_t row, int o)
{
    double sum = 0;

    for (int i = 0; i < count; i++) {
        const struct addition *a = &additions[i];
        const struct weight *up = a->up->weight;
        const float *w = up->data + (size_t)o * (size_t)up->in;
        for (int r = 0; r < up->in; r++)
            sum += (double)w[r] * round_to_dtype(up->compute, get(a->t, row, r) * a->scale[r]);
    }
    return sum;
}

static double conv_at(const struct conv2d *a, const float *in, int n, int y, int x, int o)
{
    const struct weight *w = a->conv->weight;
    int k = a->conv->kernel, up = a->upsample ? 2 : 1;
    int height = a->upsample ? a->y->h : a->x->h, width = a->upsample ? a->y->w : a->x->w;
    int pad = a->pad_end_only ? 0 : k / 2;
    double sum = a->conv->bias ? a->conv->bias[o] : 0;

    for (int ky = 0; ky < k; ky++)
        for (int kx = 0; kx < k; kx++) {
            int iy = y * a->conv->stride + ky - pad, ix = x * a->conv->stride + kx - pad;
            const float *filter = w->data + (size_t)((o * k + ky) * k + kx) * (size_t)w->in;
            if (iy < 0 || ix < 0 || iy >= height || ix >= width)
                continue;
            const float *pixel =
                in + (((int64_t)n * a->x->h + iy / up) * a->x->w + ix / up) * w->in;
            for (int c = 0; c < w->in; c++)
                sum += (double)filter[c] * pixel[c];
        }
    return sum;
}

static void ref_conv2d(struct pass *pass, const struct conv2d *a)
{
    float *in = read_input(pass, a->x, a->pre, a->conv->weight->compute);
    int64_t row = 0;

    if (in == NULL)
        return;
    for (int n = 0; n < a->y->n; n++)
        for (int y = 0; y < a->y->h; y++)
            for (int x = 0; x < a->y->w; x++, row++)
                for (int o = 0; o < a->conv->out; o++) {
                    double v = conv_at(a, in, n, y, x, o) +
                               added_at(a->additions, a->addition_count, row, o);
                    if (a->time)
                        v += get(a->time, n, o);
                    if (a->residual)
                        v += get(a->residual, row, o);
                    put(a->y, row, o, v);
                }
    pass_scratch_drop(pass, in);
}

static double dot_row(const struct matmul *a, const float *in, int64_t row, int o)
{
    const struct linear *linear = a->linear;
    const float *w = linear->weight->data + (size_t)o * (size_t)linear->in;
    double sum = linear->bias ? linear->bias[o] : 0;

    for (int i = 0; i < linear->in; i++)
        sum += (double)w[i] * in[i];
    return sum + added_at(a->additions, a->addition_count, row, o);
}

static void ref_matmul(struct pass *pass, const struct matmul *a)
{
    float *in = read_input(pass, a->x, a->pre, a->linear->weight->compute);
    int columns = a->y->c;

    if (in == NULL)
        return;
    for (int64_t row = 0; row < tensor_rows(a->x); row++)
        for (int o = 0; o < columns; o++) {
            const float *x = in + row * a->x->c;
            double v = dot_row(a, x, row, o);
            if (a->act == ACT_GEGLU)
                v *= apply(ACT_GELU, dot_row(a, x, row, columns + o));
            else
                v = apply(a->act, v);
            if (a->residual)
                v += get(a->residual, row, o);
            put(a->y, row, o, v);
        }
    pass_scratch_drop(pass, in);
}

/* One row of scores, softmax, weighted sum. `scores` holds a->k->w values. */
static void attend(const struct attention *a, int n, int head, int i, float *scores)
{
    int d = a->q->c / a->heads, tq = a->q->h * a->q->w, tk = a->k->h * a->k->w;
    int keys = a->causal && i + 1 < tk ? i + 1 : tk;
    int64_t q = (int64_t)n * tq + i, k = (int64_t)n * tk;
    double max = -INFINITY, sum = 0;

    for (int j = 0; j < keys; j++) {
        double s = 0;
        for (int c = 0; c < d; c++)
            s += (double)get(a->q, q, head * d + c) * get(a->k, k + j, head * d + c);
        scores[j] = (float)(s * a->scale);
        max = fmax(max, scores[j]);
    }
    for (int j = 0; j < keys; j++) {
        scores[j] = (float)exp(scores[j] - max);
        sum += scores[j];
    }
    for (int c = 0; c < d; c++) {
        double v = 0;
        for (int j = 0; j < keys; j++)
            v += (double)scores[j] * get(a->v, k + j, head * d + c);
        put(a->y, q, head * d + c, v / sum);
    }
}

static void ref_attention(struct pass *pass, const struct attention *a)
{
    int tq = a->q->h * a->q->w, tk = a->k->h * a->k->w;
    float *scores = pass_scratch(pass, (size_t)tk * sizeof(float));

    for (int n = 0; n < a->q->n && !pass->planning && !pass->failed; n++)
        for (int head = 0; head < a->heads; head++)
            for (int i = 0; i < tq; i++)
                attend(a, n, head, i, scores);
    pass_scratch_drop(pass, scores);
}

static void ref_group_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                           struct affine *out)
{
    int64_t pixels = (int64_t)x->h * x->w;
    int width = x->c / norm->groups;

    if (pass->planning)
        return;
    for (int n = 0; n < x->n; n++)
        for (int c = 0; c < x->c; c++) {
            int first = c / width * width;
            double sum = 0, squares = 0, count = (double)pixels * width, mean, rstd;
            if (c != first) {
                continue;
            }
            for (int64_t i = n * pixels; i < (n + 1) * pixels; i++)
                for (int j = first; j < first + width; j++)
                    sum += get(x, i, j);
            mean = sum / count;
            for (int64_t i = n * pixels; i < (n + 1) * pixels; i++)
                for (int j = first; j < first + width; j++)
                    squares += (get(x, i, j) - mean) * (get(x, i, j) - mean);
            rstd = 1 / sqrt(squares / count + norm->eps);
            for (int j = first; j < first + width; j++) {
                size_t at = (size_t)n * (size_t)x->c + (size_t)j;
                out->scale[at] = (float)(norm->gamma[j] * rstd);
                out->shift[at] = (float)(norm->beta[j] - mean * norm->gamma[j] * rstd);
            }
        }
}

static void ref_layer_norm(struct pass *pass, const struct tensor *x, const struct norm *norm,
                           struct tensor *y)
{
    (void)pass;
    for (int64_t row = 0; row < tensor_rows(x); row++) {
        double mean = 0, squares = 0;
        for (int c = 0; c < x->c; c++)
            mean += get(x, row, c);
        mean /= x->c;
        for (int c = 0; c < x->c; c++)
            squares += (get(x, row, c) - mean) * (get(x, row, c) - mean);
        for (int c = 0; c < x->c; c++)
            put(y, row, c,
                (get(x, row, c) - mean) / sqrt(squares / x->c + norm->eps) * norm->gamma[c] +
                    norm->beta[c]);
    }
}

static void ref_concat(struct pass *pass, const struct tensor *a, const struct tensor *b,
                       struct tensor *y)
{
    (void)pass;
    for (int64_t row = 0; row < tensor_rows(y); row++) {
        for (int c = 0; c < a->c; c++)
            put(y, row, c, get(a, row, c));
        for (int c = 0; c < b->c; c++)
            put(y, row, a->c + c, get(b, row, c));
    }
}

static void ref_silu(struct pass *pass, const struct tensor *x, struct tensor *y)
{
    (void)pass;
    for (int64_t row = 0; row < tensor_rows(y); row++)
        for (int c = 0; c < y->c; c++)
            put(y, row, c, silu(get(x, row, c)));
}

static void ref_add(struct pass *pass, const struct tensor *x, float scale, struct tensor *y)
{
    (void)pass;
    for (int64_t row = 0; row < tensor_rows(y); row++)
        for (int c = 0; c < y->c; c++)
            put(y, row, c, get(y, row, c) + (double)scale * get(x, row, c));
}

static void ref_mean(struct pass *pass, const struct tensor *x, struct tensor *y)
{
    int64_t pixels = (int64_t)x->h * x->w;

    (void)pass;
    for (int n = 0; n < x->n; n++)
        for (int c = 0; c < x->c; c++) {
            double sum = 0;
            for (int64_t i = 0; i < pixels; i++)
                sum += get(x, n * pixels + i, c);
            put(y, n, c, sum / (double)pixels);
        }
}

static void ref_damp(struct pass *pass, struct tensor *x, float by)
{
    double waves[FREEU_WAVES], sums[FREEU_WAVES];
    double factor = ((double)by - 1) / ((double)x->h * x->w);

    (void)pass;
    for (int c = 0; c < x->c; c++) {
        memset(sums, 0, sizeof(sums));
        for (int64_t row = 0; row < tensor_rows(x); row++) {
            freeu_waves(waves, (int)(row / x->w), x->h, (int)(row % x->w), x->w);
            for (int k = 0; k < FREEU_WAVES; k++)
                sums[k] += waves[k] * get(x, row, c);
        }
        for (int64_t row = 0; row < tensor_rows(x); row++) {
            double low = 0;
            freeu_waves(waves, (int)(row / x->w), x->h, (int)(row % x->w), x->w);
            for (int k = 0; k < FREEU_WAVES; k++)
                low += waves[k] * sums[k];
            put(x, row, c, get(x, row, c) + factor * low);
        }
    }
}

static void ref_embed(struct pass *pass, const int *ids, const struct embedding *tokens,
                      const struct embedding *positions, struct tensor *y)
{
    (void)pass;
    for (int64_t row = 0; row < tensor_rows(y); row++)
        for (int c = 0; c < y->c; c++)
            put(y, row, c,
                tokens->table->data[(size_t)ids[row] * (size_t)y->c + (size_t)c] +
                    positions->table->data[(size_t)(row % y->w) * (size_t)y->c + (size_t)c]);
}

static void ref_finish(struct pass *pass)
{
    (void)pass; /* operators are done when they return */
}

static void ref_destroy(struct backend *backend)
{
    free(backend);
}

static const struct backend_ops REF_OPS = {
    .name = "ref",
    .weight_create = ref_weight_create,
    .weight_free = ref_weight_free,
    .weight_bytes = ref_weight_bytes,
    .memory_alloc = ref_memory_alloc,
    .memory_free = ref_memory_free,
    .upload = ref_upload,
    .download = ref_download,
    .vector_upload = ref_vector_upload,
    .conv2d = ref_conv2d,
    .matmul = ref_matmul,
    .attention = ref_attention,
    .group_norm = ref_group_norm,
    .layer_norm = ref_layer_norm,
    .concat = ref_concat,
    .silu = ref_silu,
    .add = ref_add,
    .damp = ref_damp,
    .mean = ref_mean,
    .embed = ref_embed,
    .finish = ref_finish,
    .destroy = ref_destroy,
};

int backend_ref_open(struct backend **backend, const struct backend_options *options,
                     struct err *err)
{
    struct backend *ref = malloc(sizeof(*ref));

    if (ref == NULL)
        return err_set(err, ERR_MEMORY, ERR_FATAL, "no memory for the ref back end");
    *ref = (struct backend){.ops = &REF_OPS,
                            .compute = options->compute,
                            .isa = "plain C",
                            .threads = 1,
                            .step_pixels_max = CPU_STEP_PIXELS,
                            .batch_pixels = CPU_BATCH_PIXELS,
                            .lanes = 1};
    *backend = ref;
    return 0;
}
