/*
 * Every operator of the dnnl back end against the reference, over odd shapes, both types and every
 * instruction set that this processor has; and each sample of a batch against the sample alone,
 * byte for byte.
 *
 *     test_ops [ISA]        one instruction set alone
 */
#include "engine/cpu/kernels.h"
#include "tests/ops/cases.h"
#include "tests/unit/unit.h"

#include <stdio.h>

static const char *only_isa; /* NULL: all */

static void compare(const char *name, run_fn run, const struct shape *s,
                    struct backend_options options)
{
    struct verdict v = cases_compare(backend_dnnl_open, run, s, &options);

    if (!v.close)
        fail_msg("%s %s %s %dx%dx%d %d->%d: relative error %g", name, options.isa,
                 dtype_name(options.compute), s->n, s->h, s->w, s->in, s->out, v.error);
    if (v.strange >= 0)
        fail_msg("%s %s %s %dx%dx%d %d->%d: sample %d differs from itself alone", name, options.isa,
                 dtype_name(options.compute), s->n, s->h, s->w, s->in, s->out, v.strange);
}

static void everywhere(const char *name, run_fn run, const struct shape *shapes, size_t count)
{
    static const char *ISAS[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
    static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_BF16};
    bool conv = run == run_conv || run == run_changed_conv;

    for (size_t i = 0; i < count; i++)
        for (size_t isa = 0; isa < sizeof(ISAS) / sizeof(ISAS[0]); isa++)
            for (int type = 0; type < 2; type++)
                for (int algorithm = 0; algorithm < (conv ? 4 : 1); algorithm++) {
                    if (only_isa != NULL && strcmp(ISAS[isa], only_isa) != 0)
                        continue;
                    if (cpu_kernels_find(ISAS[isa]) == NULL)
                        continue;
                    if (algorithm == CONV_DIRECT && isa > 0)
                        continue; /* oneDNN's own choice of instructions: once is enough */
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
        {.n = 2, .h = 1, .w = 3, .in = 383, .out = 37}, /* one short of full blocks */
        {.n = 2, .h = 16, .w = 16, .in = 96, .out = 300},
    };
    (void)state;
    EVERYWHERE(run_matmul, SHAPES);
}

static void test_changed_conv2d(void **state)
{
    static const struct shape SHAPES[] = {
        {.n = 3, .h = 5, .w = 7, .in = 17, .out = 33, .stride = 1, .pre = true},
        {.n = 4, .h = 9, .w = 6, .in = 24, .out = 16, .stride = 2, .time = true},
        {.n = 3, .h = 4, .w = 5, .in = 16, .out = 40, .stride = 1, .upsample = true},
        {.n = 3, .h = 26, .w = 24, .in = 32, .out = 20, .stride = 1, .pre = true, .residual = true},
        {.n = 3, .h = 6, .w = 6, .in = 4, .out = 24, .stride = 1},
    };
    (void)state;
    EVERYWHERE(run_changed_conv, SHAPES);
}

static void test_changed_matmul(void **state)
{
    static const struct shape SHAPES[] = {
        {.n = 3, .h = 1, .w = 11, .in = 40, .out = 120, .act = ACT_QUICK_GELU},
        {.n = 5, .h = 5, .w = 7, .in = 33, .out = 65, .residual = true, .pre = true},
        {.n = 3, .h = 11, .w = 13, .in = 24, .out = 80, .act = ACT_GEGLU},
        {.n = 4, .h = 3, .w = 5, .in = 13, .out = 200, .act = ACT_GEGLU},
        {.n = 3, .h = 1, .w = 1, .in = 64, .out = 48, .act = ACT_SILU},
        {.n = 3, .h = 1, .w = 3, .in = 2700, .out = 70, .residual = true},
        {.n = 3, .h = 16, .w = 16, .in = 96, .out = 300},
    };
    (void)state;
    EVERYWHERE(run_changed_matmul, SHAPES);
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

static void test_add(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 3, .w = 5, .in = 13},
                                          {.n = 3, .h = 2, .w = 1, .in = 72}};
    (void)state;
    EVERYWHERE(run_add, SHAPES);
}

static void test_mean(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 3, .w = 5, .in = 13},
                                          {.n = 3, .h = 7, .w = 11, .in = 72},
                                          {.n = 2, .h = 1, .w = 1, .in = 40}};
    (void)state;
    EVERYWHERE(run_mean, SHAPES);
}

/* FreeU's filter, also where an axis has one pixel. */
static void test_damp(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 3, .w = 5, .in = 13},
                                          {.n = 1, .h = 1, .w = 4, .in = 8},
                                          {.n = 1, .h = 2, .w = 1, .in = 77},
                                          {.n = 2, .h = 8, .w = 6, .in = 320}};
    (void)state;
    EVERYWHERE(run_damp, SHAPES);
}

static void test_embed(void **state)
{
    static const struct shape SHAPES[] = {{.n = 2, .h = 1, .w = 11, .in = 13}};
    (void)state;
    EVERYWHERE(run_embed, SHAPES);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv2d),         cmocka_unit_test(test_conv2d_shared),
        cmocka_unit_test(test_matmul),         cmocka_unit_test(test_changed_conv2d),
        cmocka_unit_test(test_changed_matmul), cmocka_unit_test(test_attention),
        cmocka_unit_test(test_layer_norm),     cmocka_unit_test(test_concat),
        cmocka_unit_test(test_silu),           cmocka_unit_test(test_add),
        cmocka_unit_test(test_embed),          cmocka_unit_test(test_damp),
        cmocka_unit_test(test_mean),
    };
    only_isa = argc > 1 ? argv[1] : NULL;
    if (only_isa != NULL && cpu_kernels_find(only_isa) == NULL) {
        printf("SKIP this processor or build has no '%s'\n", only_isa);
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
