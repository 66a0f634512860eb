#include "tests/ops/cases.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARENA_BYTES (32u << 20)
#define SLOT 1

/* A back end with memory to run one operator in. */
struct bench {
    struct backend *backend;
    struct arena arena;
    struct pass pass;
    struct err err;
    void *memory;
    struct weight *weights[8];
    int weight_count;
    void *vectors[16];
    size_t vector_bytes[16];
    int vector_count;
};

static uint32_t lcg_state;

static float random_value(void)
{
    lcg_state = lcg_state * 1664525u + 1013904223u;
    return (float)(lcg_state >> 8) / (float)(1 << 24) * 2 - 1;
}

static float *random_array(size_t count)
{
    float *values = malloc(count * sizeof(float));
    for (size_t i = 0; i < count; i++)
        values[i] = random_value();
    return values;
}

static void bench_open(struct bench *b, open_fn open, const struct backend_options *options)
{
    *b = (struct bench){0};
    if (open(&b->backend, options, &b->err) != 0) {
        fprintf(stderr, "%s\n", b->err.message);
        abort();
    }
    b->memory = b->backend->ops->memory_alloc(b->backend, ARENA_BYTES);
    ASSERT(b->memory != NULL);
    arena_init(&b->arena, b->memory, ARENA_BYTES);
    b->pass = pass_begin(b->backend, 0, &b->arena, options->compute, &b->err);
}

static void bench_close(struct bench *b)
{
    const struct backend_ops *ops = b->backend->ops;

    if (b->pass.failed) {
        fprintf(stderr, "%s\n", b->err.message);
        abort();
    }
    for (int i = 0; i < b->weight_count; i++)
        ops->weight_free(b->backend, b->weights[i]);
    for (int i = 0; i < b->vector_count; i++)
        ops->memory_free(b->backend, b->vectors[i], b->vector_bytes[i]);
    ASSERT(b->backend->weights_bytes == 0);
    ops->memory_free(b->backend, b->memory, ARENA_BYTES);
    ops->destroy(b->backend);
}

/* A copy in the back end's memory. */
static const float *make_vector(struct bench *b, const float *values, int count)
{
    size_t bytes = vector_bytes(b->backend, (size_t)count);
    float *vector = b->backend->ops->memory_alloc(b->backend, bytes);

    ASSERT(vector != NULL);
    b->backend->ops->vector_upload(b->backend, vector, values, (size_t)count);
    b->vectors[b->vector_count] = vector;
    b->vector_bytes[b->vector_count++] = bytes;
    return vector;
}

static void create_weight(struct bench *b, const struct weight_spec *spec, struct weight **weight)
{
    int rc = b->backend->ops->weight_create(b->backend, spec, weight, &b->err);

    ASSERT(rc == 0);
}

static struct weight *make_weight(struct bench *b, const float *data, int in, int out, int kernel,
                                  bool geglu)
{
    struct weight_part parts[2] = {
        {.data = data, .dtype = DTYPE_F32, .out = out / 2},
        {.data = data + (size_t)(out / 2) * (size_t)(in * kernel * kernel),
         .dtype = DTYPE_F32,
         .out = out - out / 2}};
    struct weight_spec one = {
        .parts = &(struct weight_part){.data = data, .dtype = DTYPE_F32, .out = out},
        .part_count = 1,
        .in = in,
        .kernel = kernel,
        .geglu = geglu};
    struct weight_spec two = {
        .parts = parts, .part_count = 2, .in = in, .kernel = kernel, .geglu = geglu};
    struct weight **w = &b->weights[b->weight_count++];

    create_weight(b, kernel == 1 ? &two : &one, w);
    return *w;
}

static struct tensor make_tensor(struct bench *b, enum dtype dtype, int n, int h, int w, int c,
                                 const float *planes)
{
    struct tensor t = pass_tensor_of(&b->pass, dtype, n, h, w, c);
    if (planes != NULL)
        op_upload(&b->pass, &t, planes);
    return t;
}

/* ---- cases: each runs one operator and returns its output in planes ---- */

struct input {
    float *x, *w, *bias, *other, *more;
};

size_t run_conv(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes)
{
    int oh = s->stride == 2 ? (s->pad_end ? s->h / 2 : (s->h + 1) / 2)
             : s->upsample  ? 2 * s->h - (s->odd_up ? 1 : 0)
                            : s->h;
    int ow = s->stride == 2 ? (s->pad_end ? s->w / 2 : (s->w + 1) / 2)
             : s->upsample  ? 2 * s->w - (s->odd_up ? 1 : 0)
                            : s->w;
    size_t x_each = (size_t)s->in * (size_t)(s->h * s->w),
           y_each = (size_t)s->out * (size_t)(oh * ow);
    struct conv conv = {.in = s->in,
                        .out = s->out,
                        .kernel = 3,
                        .stride = s->stride,
                        .slot = SLOT,
                        .bias = make_vector(b, in->bias, s->out)};
    struct norm norm = {.gamma = make_vector(b, in->more, s->in),
                        .beta = make_vector(b, in->more + s->in, s->in),
                        .channels = s->in,
                        .groups = 1,
                        .eps = 1e-5f};
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * x_each);
    struct tensor y = make_tensor(b, b->pass.act, n, oh, ow, s->out, NULL), time = {0},
                  residual = {0};
    struct affine pre = {0};

    conv.weight = make_weight(b, in->w, s->in, s->out, 3, false);
    if (s->pre)
        pre = op_group_norm(&b->pass, &x, &norm, true);
    if (s->time)
        time = make_tensor(b, DTYPE_F32, n, 1, 1, s->out, in->other + first * s->out);
    if (s->residual)
        residual =
            make_tensor(b, b->pass.act, n, oh, ow, s->out, in->more + (size_t)first * y_each);
    op_conv2d(&b->pass, &(struct conv2d){.conv = &conv,
                                         .x = &x,
                                         .y = &y,
                                         .pre = s->pre ? &pre : NULL,
                                         .time = s->time ? &time : NULL,
                                         .residual = s->residual ? &residual : NULL,
                                         .upsample = s->upsample,
                                         .pad_end_only = s->pad_end});
    op_download(&b->pass, planes, &y);
    return y_each;
}

size_t run_matmul(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                  float *planes)
{
    int columns = s->act == ACT_GEGLU ? s->out / 2 : s->out;
    size_t x_each = (size_t)s->in * (size_t)(s->h * s->w),
           y_each = (size_t)columns * (size_t)(s->h * s->w);
    struct linear linear = {
        .in = s->in, .out = s->out, .slot = SLOT, .bias = make_vector(b, in->bias, s->out)};
    struct norm norm = {.gamma = make_vector(b, in->more, s->in),
                        .beta = make_vector(b, in->more + s->in, s->in),
                        .channels = s->in,
                        .groups = 1,
                        .eps = 1e-5f};
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * x_each);
    struct tensor y = make_tensor(b, b->pass.act, n, s->h, s->w, columns, NULL), residual = {0};
    struct affine pre = {0};

    linear.weight = make_weight(b, in->w, s->in, s->out, 1, s->act == ACT_GEGLU);
    if (s->pre)
        pre = op_group_norm(&b->pass, &x, &norm, false);
    if (s->residual)
        residual =
            make_tensor(b, b->pass.act, n, s->h, s->w, columns, in->more + (size_t)first * y_each);
    op_matmul(&b->pass, &(struct matmul){.linear = &linear,
                                         .x = &x,
                                         .y = &y,
                                         .act = s->act,
                                         .pre = s->pre ? &pre : NULL,
                                         .residual = s->residual ? &residual : NULL});
    op_download(&b->pass, planes, &y);
    return y_each;
}

#define RANK 9

/* Layers as samples see them: every third as it is, with one branch, with two and another layer in
 * place of the first. A sample's number decides, whatever batch it is in. */
struct variants {
    struct branch branches[2];
    max_align_t changes[2][8]; /* a struct change each */
    const struct change *by_slot[2];
    struct pass_run runs[8];
    struct linear linear;
    struct conv conv;
};

static void make_branch(struct bench *b, struct branch *branch, int in, int out, int kernel,
                        int stride, bool geglu, const float *values)
{
    struct weight *down = make_weight(b, values, in, RANK, kernel, false);
    struct weight_spec spec = {
        .parts = &(struct weight_part){.data = values + 4000, .dtype = DTYPE_F32, .out = out},
        .part_count = 1,
        .in = RANK,
        .kernel = 1,
        .geglu = geglu};
    struct weight **up = &b->weights[b->weight_count++];

    create_weight(b, &spec, up);
    *branch = (struct branch){.up = {.weight = *up, .in = RANK, .out = out}};
    if (kernel == 1)
        branch->down = (struct linear){.weight = down, .in = in, .out = RANK};
    else
        branch->down_filter = (struct conv){
            .weight = down, .in = in, .out = RANK, .kernel = kernel, .stride = stride};
}

static void make_variants(struct bench *b, struct variants *v, const struct shape *s, int kernel,
                          const struct input *in, int first, int n)
{
    bool geglu = s->act == ACT_GEGLU;

    *v = (struct variants){0};
    for (int i = 0; i < 2; i++)
        make_branch(b, &v->branches[i], s->in, s->out, kernel, s->stride, geglu,
                    in->w + 100000 + 50000 * i);
    v->linear =
        (struct linear){.in = s->in, .out = s->out, .bias = make_vector(b, in->other, s->out)};
    v->conv = (struct conv){.in = s->in,
                            .out = s->out,
                            .kernel = 3,
                            .stride = s->stride,
                            .bias = make_vector(b, in->other, s->out)};
    v->linear.weight = v->conv.weight = make_weight(b, in->w + 7, s->in, s->out, kernel, geglu);
    for (int i = 0; i < 2; i++) {
        struct change *change = (struct change *)v->changes[i];
        change->branch_count = 1 + i;
        for (int j = 0; j <= i; j++) {
            change->branches[j].branch = &v->branches[j];
            change->branches[j].scale = make_vector(b, in->bias + 20 * j, RANK);
        }
        change->linear = i == 1 && kernel == 1 ? &v->linear : NULL;
        change->conv = i == 1 && kernel > 1 ? &v->conv : NULL;
        v->by_slot[i] = change;
    }
    for (int i = 0; i < n; i++)
        v->runs[i] = (struct pass_run){
            .samples = 1, .changes = (first + i) % 3 ? &v->by_slot[(first + i) % 3 - 1] : NULL};
    b->pass.runs = v->runs;
    b->pass.run_count = n;
}

size_t run_changed_conv(struct bench *b, const struct shape *s, const struct input *in, int first,
                        int n, float *planes)
{
    struct variants v;

    make_variants(b, &v, s, 3, in, first, n);
    return run_conv(b, s, in, first, n, planes);
}

size_t run_changed_matmul(struct bench *b, const struct shape *s, const struct input *in, int first,
                          int n, float *planes)
{
    struct variants v;

    make_variants(b, &v, s, 1, in, first, n);
    return run_matmul(b, s, in, first, n, planes);
}

size_t run_attention(struct bench *b, const struct shape *s, const struct input *in, int first,
                     int n, float *planes)
{
    size_t q_each = (size_t)s->in * (size_t)s->w, k_each = (size_t)s->in * 2 * (size_t)s->keys;
    struct tensor q =
        make_tensor(b, b->pass.act, n, 1, s->w, s->in, in->x + (size_t)first * q_each);
    struct tensor kv =
        make_tensor(b, b->pass.act, n, 1, s->keys, 2 * s->in, in->more + (size_t)first * k_each);
    struct tensor k = tensor_columns(&kv, 0, s->in), v = tensor_columns(&kv, s->in, s->in);
    struct tensor y = make_tensor(b, b->pass.act, n, 1, s->w, s->in, NULL);

    op_attention(&b->pass, &(struct attention){.q = &q,
                                               .k = &k,
                                               .v = &v,
                                               .y = &y,
                                               .heads = s->heads,
                                               .scale = 3 / sqrtf((float)(s->in / s->heads)),
                                               .causal = s->causal});
    op_download(&b->pass, planes, &y);
    return q_each;
}

size_t run_layer_norm(struct bench *b, const struct shape *s, const struct input *in, int first,
                      int n, float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w);
    struct norm norm = {.gamma = make_vector(b, in->bias, s->in),
                        .beta = make_vector(b, in->more, s->in),
                        .channels = s->in,
                        .eps = 1e-5f};
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * each);
    struct tensor y = make_tensor(b, b->pass.act, n, s->h, s->w, s->in, NULL);

    op_layer_norm(&b->pass, &x, &norm, &y);
    op_download(&b->pass, planes, &y);
    return each;
}

size_t run_concat(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                  float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w),
           other = (size_t)s->out * (size_t)(s->h * s->w);
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * each);
    struct tensor z =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->out, in->more + (size_t)first * other);
    struct tensor y = make_tensor(b, b->pass.act, n, s->h, s->w, s->in + s->out, NULL);

    op_concat(&b->pass, &x, &z, &y);
    op_download(&b->pass, planes, &y);
    return each + other;
}

size_t run_silu(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w);
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * each);

    op_silu(&b->pass, &x, &x);
    op_download(&b->pass, planes, &x);
    return each;
}

size_t run_add(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
               float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w);
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * each);
    struct tensor y =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->more + (size_t)first * each);

    op_add(&b->pass, &x, 0.37f, &y);
    op_download(&b->pass, planes, &y);
    return each;
}

/* Each sample's mean, and twice that added to its pixels. */
size_t run_mean(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w);
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * each);
    struct tensor mean = pass_tensor_of(&b->pass, DTYPE_F32, n, 1, 1, s->in);

    op_mean(&b->pass, &x, &mean);
    for (int i = 0; i < n; i++) {
        struct tensor from = tensor_samples(&mean, i, 1), to = tensor_samples(&x, i, 1);
        op_add(&b->pass, &from, 2, &to);
    }
    op_download(&b->pass, planes, &x);
    return each;
}

size_t run_damp(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w);

    for (int i = 0; i < n; i++) {
        struct tensor x =
            make_tensor(b, b->pass.act, 1, s->h, s->w, s->in, in->x + (size_t)(first + i) * each);
        op_damp(&b->pass, &x, 0.2f);
        op_download(&b->pass, planes + (size_t)i * each, &x);
    }
    return each;
}

size_t run_embed(struct bench *b, const struct shape *s, const struct input *in, int first, int n,
                 float *planes)
{
    struct weight_part tokens = {.data = in->w, .dtype = DTYPE_F32, .out = 50};
    struct weight_part positions = {.data = in->more, .dtype = DTYPE_F32, .out = s->w};
    struct weight_spec spec = {
        .parts = &tokens, .part_count = 1, .in = s->in, .kernel = 1, .lookup = true};
    struct embedding t = {.rows = 50, .columns = s->in}, p = {.rows = s->w, .columns = s->in};
    struct tensor y = make_tensor(b, DTYPE_F32, n, 1, s->w, s->in, NULL);
    int ids[64];

    for (int i = 0; i < n * s->w; i++)
        ids[i] = (first * s->w + i) * 7 % 50;
    create_weight(b, &spec, &t.table);
    spec.parts = &positions;
    create_weight(b, &spec, &p.table);
    b->weights[b->weight_count++] = t.table;
    b->weights[b->weight_count++] = p.table;
    op_embed(&b->pass, ids, &t, &p, &y);
    op_download(&b->pass, planes, &y);
    return (size_t)s->in * (size_t)s->w;
}

/* ---- comparing ---- */

static double relative_error(const float *got, const float *want, size_t count)
{
    double difference = 0, size = 0;

    for (size_t i = 0; i < count; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += (double)want[i] * want[i];
    }
    return sqrt(difference / (size + 1e-30));
}

#define VALUES_MAX (1u << 20)

struct verdict cases_compare(open_fn open, run_fn run, const struct shape *s,
                             const struct backend_options *options)
{
    lcg_state = 12345;
    struct input in = {.x = random_array(VALUES_MAX),
                       .w = random_array(VALUES_MAX),
                       .bias = random_array(8192),
                       .other = random_array(8192),
                       .more = random_array(VALUES_MAX)};
    float *want = calloc(VALUES_MAX, sizeof(float)), *got = calloc(VALUES_MAX, sizeof(float));
    float *alone = calloc(VALUES_MAX, sizeof(float));
    double limit = options->compute == DTYPE_F32   ? 1e-5
                   : options->compute == DTYPE_F16 ? 2e-3
                                                   : 8e-3;
    struct verdict v = {.strange = -1};
    struct bench b;
    size_t each;

    bench_open(&b, backend_ref_open, options);
    each = run(&b, s, &in, 0, s->n, want);
    bench_close(&b);
    ASSERT(each * (size_t)s->n <= VALUES_MAX);
    bench_open(&b, open, options);
    run(&b, s, &in, 0, s->n, got);
    bench_close(&b);
    v.error = relative_error(got, want, each * (size_t)s->n);
    v.close = v.error <= limit;
    for (int i = 0; i < s->n && v.strange < 0; i++) {
        bench_open(&b, open, options);
        run(&b, s, &in, i, 1, alone);
        bench_close(&b);
        if (memcmp(alone, got + (size_t)i * each, each * sizeof(float)) != 0)
            v.strange = i;
    }
    free(in.x), free(in.w), free(in.bias), free(in.other), free(in.more);
    free(want), free(got), free(alone);
    return v;
}
