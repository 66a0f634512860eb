/*
 * Every operator of the dnnl back end against the reference, over odd shapes, both types and every
 * instruction set that this processor has; and each sample of a batch against the sample alone,
 * byte for byte.
 */
#include "engine/backend.h"
#include "engine/cpu/kernels.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ARENA_BYTES (64u << 20)

/* A back end with memory to run one operator in. */
struct bench {
    struct backend *backend;
    struct arena arena;
    struct pass pass;
    struct err err;
    void *memory;
    struct weight *weights[8];
    int weight_count;
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

static void bench_open(struct bench *b, bool ref, const struct backend_options *options)
{
    *b = (struct bench){.memory = aligned_alloc(64, ARENA_BYTES)};
    assert_int_equal(ref ? backend_ref_open(&b->backend, options, &b->err)
                         : backend_dnnl_open(&b->backend, options, &b->err),
                     0);
    arena_init(&b->arena, b->memory, ARENA_BYTES);
    b->pass = pass_begin(b->backend, &b->arena, options->compute, &b->err);
}

static void bench_close(struct bench *b)
{
    assert_false(b->pass.failed);
    for (int i = 0; i < b->weight_count; i++)
        b->backend->ops->weight_free(b->backend, b->weights[i]);
    assert_int_equal(b->backend->weights_bytes, 0);
    b->backend->ops->destroy(b->backend);
    free(b->memory);
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

    assert_int_equal(
        b->backend->ops->weight_create(b->backend, kernel == 1 ? &two : &one, w, &b->err), 0);
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

struct shape {
    int n, h, w, in, out;
    int stride;
    bool upsample, odd_up, pad_end, pre, time, residual;
    enum activation act;
    int heads, keys;
    bool causal;
};

typedef size_t (*run_fn)(struct bench *b, const struct shape *s, const struct input *in, int first,
                         int n, float *planes);

static size_t run_conv(struct bench *b, const struct shape *s, const struct input *in, int first,
                       int n, float *planes)
{
    int oh = s->stride == 2 ? (s->pad_end ? s->h / 2 : (s->h + 1) / 2)
             : s->upsample  ? 2 * s->h - (s->odd_up ? 1 : 0)
                            : s->h;
    int ow = s->stride == 2 ? (s->pad_end ? s->w / 2 : (s->w + 1) / 2)
             : s->upsample  ? 2 * s->w - (s->odd_up ? 1 : 0)
                            : s->w;
    size_t x_each = (size_t)s->in * (size_t)(s->h * s->w),
           y_each = (size_t)s->out * (size_t)(oh * ow);
    struct conv conv = {
        .in = s->in, .out = s->out, .kernel = 3, .stride = s->stride, .bias = in->bias};
    struct norm norm = {
        .gamma = in->more, .beta = in->more + s->in, .channels = s->in, .groups = 1, .eps = 1e-5f};
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

static size_t run_matmul(struct bench *b, const struct shape *s, const struct input *in, int first,
                         int n, float *planes)
{
    int columns = s->act == ACT_GEGLU ? s->out / 2 : s->out;
    size_t x_each = (size_t)s->in * (size_t)(s->h * s->w),
           y_each = (size_t)columns * (size_t)(s->h * s->w);
    struct linear linear = {.in = s->in, .out = s->out, .bias = in->bias};
    struct norm norm = {
        .gamma = in->more, .beta = in->more + s->in, .channels = s->in, .groups = 1, .eps = 1e-5f};
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

static size_t run_attention(struct bench *b, const struct shape *s, const struct input *in,
                            int first, int n, float *planes)
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

static size_t run_layer_norm(struct bench *b, const struct shape *s, const struct input *in,
                             int first, int n, float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w);
    struct norm norm = {.gamma = in->bias, .beta = in->more, .channels = s->in, .eps = 1e-5f};
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * each);
    struct tensor y = make_tensor(b, b->pass.act, n, s->h, s->w, s->in, NULL);

    op_layer_norm(&b->pass, &x, &norm, &y);
    op_download(&b->pass, planes, &y);
    return each;
}

static size_t run_concat(struct bench *b, const struct shape *s, const struct input *in, int first,
                         int n, float *planes)
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

static size_t run_silu(struct bench *b, const struct shape *s, const struct input *in, int first,
                       int n, float *planes)
{
    size_t each = (size_t)s->in * (size_t)(s->h * s->w);
    struct tensor x =
        make_tensor(b, b->pass.act, n, s->h, s->w, s->in, in->x + (size_t)first * each);

    op_silu(&b->pass, &x, &x);
    op_download(&b->pass, planes, &x);
    return each;
}

static size_t run_embed(struct bench *b, const struct shape *s, const struct input *in, int first,
                        int n, float *planes)
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
    assert_int_equal(b->backend->ops->weight_create(b->backend, &spec, &t.table, &b->err), 0);
    spec.parts = &positions;
    assert_int_equal(b->backend->ops->weight_create(b->backend, &spec, &p.table, &b->err), 0);
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

static void compare(const char *name, run_fn run, const struct shape *s,
                    struct backend_options options)
{
    struct input in = {.x = random_array(VALUES_MAX),
                       .w = random_array(VALUES_MAX),
                       .bias = random_array(8192),
                       .other = random_array(8192),
                       .more = random_array(VALUES_MAX)};
    float *want = calloc(VALUES_MAX, sizeof(float)), *got = calloc(VALUES_MAX, sizeof(float));
    float *alone = calloc(VALUES_MAX, sizeof(float));
    double limit = options.compute == DTYPE_F32 ? 1e-5 : 8e-3, error;
    struct bench b;
    size_t each;

    bench_open(&b, true, &options);
    each = run(&b, s, &in, 0, s->n, want);
    bench_close(&b);
    bench_open(&b, false, &options);
    run(&b, s, &in, 0, s->n, got);
    bench_close(&b);
    error = relative_error(got, want, each * (size_t)s->n);
    if (!(error <= limit))
        fail_msg("%s %s %s %dx%dx%d %d->%d: relative error %g", name, options.isa,
                 dtype_name(options.compute), s->n, s->h, s->w, s->in, s->out, error);
    for (int i = 0; i < s->n; i++) {
        bench_open(&b, false, &options);
        run(&b, s, &in, i, 1, alone);
        bench_close(&b);
        if (memcmp(alone, got + (size_t)i * each, each * sizeof(float)) != 0)
            fail_msg("%s %s %s %dx%dx%d %d->%d: sample %d differs from itself alone", name,
                     options.isa, dtype_name(options.compute), s->n, s->h, s->w, s->in, s->out, i);
    }
    free(in.x), free(in.w), free(in.bias), free(in.other), free(in.more);
    free(want), free(got), free(alone);
}

static void everywhere(const char *name, run_fn run, const struct shape *shapes, size_t count)
{
    static const char *ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16"};
    static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_BF16};
    bool conv = run == run_conv;

    for (size_t i = 0; i < count; i++)
        for (size_t isa = 0; isa < 4; isa++)
            for (int type = 0; type < 2; type++)
                for (int algorithm = 0; algorithm < (conv ? 4 : 1); algorithm++) {
                    if (cpu_kernels_find(ISAS[isa]) == NULL)
                        continue;
                    if (algorithm == CONV_DIRECT && isa > 0)
                        continue; /* oneDNN's own choice of instructions: once is enough */
                    lcg_state = 12345;
                    compare(name, run, &shapes[i],
                            (struct backend_options){.compute = TYPES[type],
                                                     .isa = ISAS[isa],
                                                     .threads = 3,
                                                     .conv = (enum conv_algorithm)algorithm});
                }
}

#define EVERYWHERE(run, shapes) everywhere(#run, run, shapes, sizeof(shapes) / sizeof(shapes[0]))

static void test_conv2d(void **state)
{
    static const struct shape SHAPES[] = {
        {.n = 1, .h = 5, .w = 7, .in = 3, .out = 11, .stride = 1},
        {.n = 2, .h = 8, .w = 8, .in = 4, .out = 32, .stride = 1, .pre = true},
        {.n = 2, .h = 11, .w = 13, .in = 33, .out = 17, .stride = 1, .pre = true, .time = true},
        {.n = 3, .h = 9, .w = 6, .in = 40, .out = 48, .stride = 1, .residual = true, .pre = true},
        {.n = 2, .h = 9, .w = 7, .in = 24, .out = 20, .stride = 2},
        {.n = 2, .h = 8, .w = 6, .in = 16, .out = 20, .stride = 2, .pad_end = true},
        {.n = 2, .h = 5, .w = 4, .in = 32, .out = 16, .stride = 1, .upsample = true},
        {.n = 2,
         .h = 5,
         .w = 3,
         .in = 20,
         .out = 36,
         .stride = 1,
         .upsample = true,
         .odd_up = true},
        {.n = 1, .h = 17, .w = 19, .in = 64, .out = 4, .stride = 1, .pre = true},
        {.n = 2,
         .h = 7,
         .w = 10,
         .in = 128,
         .out = 160,
         .stride = 1,
         .residual = true,
         .time = true},
    };
    (void)state;
    EVERYWHERE(run_conv, SHAPES);
}

/* Large enough that Winograd's threads share one block. */
static void test_conv2d_shared(void **state)
{
    static const struct shape SHAPES[] = {
        {.n = 2, .h = 13, .w = 9, .in = 264, .out = 200, .stride = 1, .pre = true, .time = true},
    };
    (void)state;
    EVERYWHERE(run_conv, SHAPES);
}

static void test_matmul(void **state)
{
    static const struct shape SHAPES[] = {
        {.n = 1, .h = 1, .w = 1, .in = 5, .out = 7},
        {.n = 2, .h = 1, .w = 77, .in = 40, .out = 120, .act = ACT_QUICK_GELU},
        {.n = 3, .h = 5, .w = 7, .in = 33, .out = 65, .residual = true, .pre = true},
        {.n = 2, .h = 11, .w = 13, .in = 24, .out = 80, .act = ACT_GEGLU},
        {.n = 2, .h = 3, .w = 5, .in = 13, .out = 200, .act = ACT_GEGLU},
        {.n = 2, .h = 1, .w = 9, .in = 64, .out = 48, .act = ACT_SILU},
        {.n = 2, .h = 1, .w = 9, .in = 64, .out = 48, .act = ACT_GELU},
        {.n = 2, .h = 1, .w = 3, .in = 2700, .out = 70, .residual = true},
        {.n = 2, .h = 16, .w = 16, .in = 96, .out = 300},
    };
    (void)state;
    EVERYWHERE(run_matmul, SHAPES);
}

static void test_attention(void **state)
{
    static const struct shape SHAPES[] = {
        {.n = 1, .w = 1, .in = 8, .heads = 1, .keys = 1},
        {.n = 2, .w = 7, .in = 40, .heads = 8, .keys = 13},
        {.n = 2, .w = 77, .in = 64, .heads = 4, .keys = 77, .causal = true},
        {.n = 2, .w = 131, .in = 80, .heads = 2, .keys = 77},
        {.n = 2, .w = 50, .in = 33, .heads = 3, .keys = 1100},
        {.n = 1, .w = 60, .in = 512, .heads = 1, .keys = 60},
        {.n = 1, .w = 20, .in = 160, .heads = 1, .keys = 513, .causal = true},
    };
    (void)state;
    EVERYWHERE(run_attention, SHAPES);
}

static void test_layer_norm(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 3, .w = 5, .in = 40},
                                          {.n = 1, .h = 1, .w = 7, .in = 77},
                                          {.n = 2, .h = 1, .w = 3, .in = 320}};
    (void)state;
    EVERYWHERE(run_layer_norm, SHAPES);
}

static void test_concat(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 3, .w = 5, .in = 13, .out = 7}};
    (void)state;
    EVERYWHERE(run_concat, SHAPES);
}

static void test_silu(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 3, .w = 5, .in = 13},
                                          {.n = 2, .h = 1, .w = 1, .in = 77}};
    (void)state;
    EVERYWHERE(run_silu, SHAPES);
}

static void test_embed(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 1, .w = 11, .in = 13}};
    (void)state;
    EVERYWHERE(run_embed, SHAPES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv2d),     cmocka_unit_test(test_conv2d_shared),
        cmocka_unit_test(test_matmul),     cmocka_unit_test(test_attention),
        cmocka_unit_test(test_layer_norm), cmocka_unit_test(test_concat),
        cmocka_unit_test(test_silu),       cmocka_unit_test(test_embed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
