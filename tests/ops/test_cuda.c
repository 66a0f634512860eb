/*
 * Every operator of the cuda back end against the reference, over odd shapes, all three types and,
 * sample by sample, against itself alone, byte for byte. One line per operator and type; exit
 * status 77: there is no card.
 *
 *     test_cuda [OPERATOR]
 *
 * OPERATOR is one's name; `none` for the card alone; `graphs` for whether a list of commands that
 * is written again is known again and runs as a graph; `cublas` for the published networks' layers
 * that cublasLt has an algorithm for on this card; `list`, which names the operators and needs no
 * card. Exit status 2: the card cannot be opened.
 */
#include "engine/cuda/cuda.h"
#include "tests/ops/cases.h"

#include <stdio.h>
#include <string.h>

static const struct shape CONV[] = {
    {.n = 1, .h = 5, .w = 7, .in = 3, .out = 11, .stride = 1},
    {.n = 2, .h = 8, .w = 8, .in = 4, .out = 32, .stride = 1, .pre = true},
    {.n = 2, .h = 11, .w = 13, .in = 33, .out = 17, .stride = 1, .pre = true, .time = true},
    {.n = 3, .h = 9, .w = 6, .in = 40, .out = 48, .stride = 1, .residual = true, .pre = true},
    {.n = 2, .h = 9, .w = 7, .in = 24, .out = 24, .stride = 2},
    {.n = 2, .h = 8, .w = 6, .in = 16, .out = 40, .stride = 2, .pad_end = true},
    {.n = 2, .h = 9, .w = 7, .in = 16, .out = 40, .stride = 2, .pad_end = true, .pre = true},
    {.n = 2, .h = 5, .w = 4, .in = 32, .out = 16, .stride = 1, .upsample = true},
    {.n = 2, .h = 5, .w = 3, .in = 20, .out = 36, .stride = 1, .upsample = true, .odd_up = true},
    {.n = 2, .h = 5, .w = 3, .in = 24, .out = 72, .stride = 1, .upsample = true, .odd_up = true},
    {.n = 1, .h = 17, .w = 19, .in = 64, .out = 4, .stride = 1, .pre = true},
    {.n = 2, .h = 7, .w = 10, .in = 128, .out = 160, .stride = 1, .residual = true, .time = true},
    {.n = 3, .h = 13, .w = 11, .in = 32, .out = 200, .stride = 1, .time = true},
};

static const struct shape MATMUL[] = {
    {.n = 1, .h = 1, .w = 1, .in = 5, .out = 7},
    {.n = 5, .h = 1, .w = 1, .in = 72, .out = 90, .act = ACT_SILU},
    {.n = 2, .h = 1, .w = 77, .in = 40, .out = 120, .act = ACT_QUICK_GELU},
    {.n = 3, .h = 5, .w = 7, .in = 33, .out = 65, .residual = true, .pre = true},
    {.n = 3, .h = 5, .w = 7, .in = 48, .out = 72, .residual = true, .pre = true},
    {.n = 2, .h = 11, .w = 13, .in = 24, .out = 80, .act = ACT_GEGLU},
    {.n = 2, .h = 11, .w = 13, .in = 40, .out = 96, .act = ACT_GEGLU},
    {.n = 2, .h = 11, .w = 13, .in = 40, .out = 96, .act = ACT_GEGLU, .residual = true},
    {.n = 2, .h = 3, .w = 5, .in = 13, .out = 200, .act = ACT_GEGLU},
    {.n = 2, .h = 1, .w = 9, .in = 64, .out = 48, .act = ACT_SILU},
    {.n = 2, .h = 1, .w = 9, .in = 64, .out = 48, .act = ACT_GELU},
    {.n = 2, .h = 1, .w = 3, .in = 2700, .out = 70, .residual = true},
    {.n = 2, .h = 1, .w = 3, .in = 2704, .out = 72, .residual = true},
    {.n = 2, .h = 16, .w = 16, .in = 96, .out = 304},
};

static const struct shape CHANGED_CONV[] = {
    {.n = 3, .h = 5, .w = 7, .in = 17, .out = 33, .stride = 1, .pre = true},
    {.n = 4, .h = 9, .w = 6, .in = 24, .out = 16, .stride = 2, .time = true},
    {.n = 3, .h = 4, .w = 5, .in = 16, .out = 40, .stride = 1, .upsample = true},
    {.n = 3, .h = 13, .w = 12, .in = 32, .out = 24, .stride = 1, .pre = true, .residual = true},
    {.n = 3, .h = 6, .w = 6, .in = 4, .out = 24, .stride = 1},
};

static const struct shape CHANGED_MATMUL[] = {
    {.n = 3, .h = 1, .w = 11, .in = 40, .out = 120, .act = ACT_QUICK_GELU},
    {.n = 5, .h = 5, .w = 7, .in = 33, .out = 65, .residual = true, .pre = true},
    {.n = 3, .h = 5, .w = 7, .in = 48, .out = 72, .residual = true, .pre = true},
    {.n = 3, .h = 11, .w = 13, .in = 24, .out = 80, .act = ACT_GEGLU},
    {.n = 4, .h = 3, .w = 5, .in = 13, .out = 200, .act = ACT_GEGLU},
    {.n = 3, .h = 1, .w = 1, .in = 64, .out = 48, .act = ACT_SILU},
    {.n = 3, .h = 1, .w = 3, .in = 2704, .out = 72, .residual = true},
    {.n = 3, .h = 16, .w = 16, .in = 96, .out = 304},
};

static const struct shape ATTENTION[] = {
    {.n = 1, .w = 1, .in = 8, .heads = 1, .keys = 1},
    {.n = 2, .w = 7, .in = 40, .heads = 8, .keys = 13},
    {.n = 2, .w = 77, .in = 64, .heads = 4, .keys = 77, .causal = true},
    {.n = 2, .w = 70, .in = 80, .heads = 2, .keys = 150},
    {.n = 2, .w = 131, .in = 80, .heads = 2, .keys = 77},
    {.n = 2, .w = 131, .in = 128, .heads = 2, .keys = 131, .causal = true},
    {.n = 1, .w = 65, .in = 160, .heads = 2, .keys = 200},
    {.n = 2, .w = 50, .in = 33, .heads = 3, .keys = 1100},
    {.n = 2, .w = 40, .in = 160, .heads = 1, .keys = 90},
    {.n = 1, .w = 20, .in = 160, .heads = 1, .keys = 513, .causal = true},
    {.n = 1, .w = 1, .in = 64, .heads = 1, .keys = 129},
    {.n = 1, .w = 63, .in = 64, .heads = 1, .keys = 64},
    {.n = 1, .w = 64, .in = 64, .heads = 1, .keys = 1},
    {.n = 3, .w = 65, .in = 80, .heads = 2, .keys = 63},
    {.n = 1, .w = 127, .in = 128, .heads = 2, .keys = 127},
    {.n = 2, .w = 129, .in = 48, .heads = 1, .keys = 65},
    {.n = 2, .w = 200, .in = 112, .heads = 2, .keys = 200},
    {.n = 1, .w = 20, .in = 64, .heads = 1, .keys = 600},
    {.n = 1, .w = 60, .in = 512, .heads = 1, .keys = 60},
    {.n = 2, .w = 33, .in = 264, .heads = 1, .keys = 131},
    {.n = 1, .w = 70, .in = 512, .heads = 1, .keys = 70, .causal = true},
};

static const struct shape LAYER_NORM[] = {
    {.n = 2, .h = 3, .w = 5, .in = 40},
    {.n = 1, .h = 1, .w = 7, .in = 77},
    {.n = 2, .h = 1, .w = 3, .in = 320},
};

static const struct shape CONCAT[] = {
    {.n = 2, .h = 3, .w = 5, .in = 13, .out = 7},
    {.n = 2, .h = 3, .w = 5, .in = 24, .out = 40},
};

static const struct shape SILU[] = {
    {.n = 2, .h = 3, .w = 5, .in = 13},
    {.n = 2, .h = 1, .w = 1, .in = 80},
};

static const struct shape EMBED[] = {{.n = 2, .h = 1, .w = 11, .in = 13}};

static const struct shape DAMP[] = {{.n = 2, .h = 3, .w = 5, .in = 13},
                                    {.n = 1, .h = 1, .w = 4, .in = 8},
                                    {.n = 1, .h = 2, .w = 1, .in = 77},
                                    {.n = 2, .h = 8, .w = 6, .in = 320}};

#define SHAPES(array) array, sizeof(array) / sizeof(array[0])

static const struct {
    const char *name;
    run_fn run;
    const struct shape *shapes;
    size_t count;
} OPERATORS[] = {
    {"conv2d", run_conv, SHAPES(CONV)},
    {"matmul", run_matmul, SHAPES(MATMUL)},
    {"changed_conv2d", run_changed_conv, SHAPES(CHANGED_CONV)},
    {"changed_matmul", run_changed_matmul, SHAPES(CHANGED_MATMUL)},
    {"attention", run_attention, SHAPES(ATTENTION)},
    {"layer_norm", run_layer_norm, SHAPES(LAYER_NORM)},
    {"concat", run_concat, SHAPES(CONCAT)},
    {"silu", run_silu, SHAPES(SILU)},
    {"add", run_add, SHAPES(SILU)},
    {"damp", run_damp, SHAPES(DAMP)},
    {"mean", run_mean, SHAPES(DAMP)},
    {"embed", run_embed, SHAPES(EMBED)},
};

static const enum dtype TYPES[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

/* One line; returns how many shapes failed. */
static int check(size_t op, enum dtype type)
{
    const struct backend_options options = {.compute = type, .isa = "auto"};
    double worst = 0;
    int failed = 0;

    for (size_t i = 0; i < OPERATORS[op].count; i++) {
        const struct shape *s = &OPERATORS[op].shapes[i];
        struct verdict v = cases_compare(backend_cuda_open, OPERATORS[op].run, s, &options);
        if (!v.close || v.strange >= 0) {
            failed++;
            printf("FAIL %s %s, shape %zu (%dx%dx%d %d->%d): ", OPERATORS[op].name,
                   dtype_name(type), i, s->n, s->h, s->w, s->in, s->out);
            if (!v.close)
                printf("relative error %.1e\n", v.error);
            else
                printf("sample %d differs from itself alone\n", v.strange);
        }
        if (!(v.error <= worst))
            worst = v.error;
    }
    printf("%-14s %-4s %3zu shapes, worst relative error %.1e  %s\n", OPERATORS[op].name,
           dtype_name(type), OPERATORS[op].count, worst, failed ? "FAIL" : "ok");
    fflush(stdout);
    return failed;
}

/* Linear layers of SD1.5 at 512² and SDXL at 1024² that are asked of a library: rows of a sample,
 * outputs, inputs, and whether a bias and a residual are added. */
static const struct {
    int each, out, in;
    bool bias, residual;
} LINEAR[] = {
    {4096, 320, 320, true, true},     {4096, 960, 320, false, false},
    {4096, 320, 1280, true, true},    {1024, 640, 640, true, true},
    {256, 1280, 1280, true, true},    {77, 640, 768, false, false},
    {4096, 640, 640, true, false},    {4096, 1920, 640, false, false},
    {4096, 640, 2560, true, true},    {1024, 1280, 1280, true, true},
    {1024, 3840, 1280, false, false}, {1024, 1280, 5120, true, true},
    {77, 1280, 2048, false, false},   {77, 2560, 2048, false, false},
    {16384, 320, 640, true, false},
};

/* Those that cublasLt leaves to the own kernels; without the library there is nothing to say. */
static int check_blas(struct backend *backend)
{
    const int count = sizeof(LINEAR) / sizeof(LINEAR[0]);
    struct blas *blas = ((struct cuda_backend *)backend)->blas;
    int served = 0;

    for (int i = 0; blas != NULL && i < count; i++) {
        struct blas_shape shape = {.dtype = DTYPE_BF16,
                                   .out = LINEAR[i].out,
                                   .in = LINEAR[i].in,
                                   .bias = LINEAR[i].bias,
                                   .residual = LINEAR[i].residual,
                                   .each = LINEAR[i].each};
        if (blas_find(blas, &shape) != NULL)
            served++;
        else
            printf("%d x %d of %d%s: left to own kernels\n", LINEAR[i].each, shape.out, shape.in,
                   shape.residual ? ", bias and residual" : "");
    }
    printf("cublasLt serves %d of %d layers\n", served, blas != NULL ? count : 0);
    return blas != NULL && served == 0;
}

/* Leaves other bytes where the next function's variables will be. */
static __attribute__((noinline)) void dirty_stack(int with)
{
    volatile char bytes[16384];

    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)with;
}

/* One of each kind of arguments, over 16 rows of 64 channels; all of it lies in `memory`. */
static __attribute__((noinline)) void write_list(struct queue *q, float *memory)
{
    enum { ROWS = 16, CHANNELS = 64, AREA = ROWS * CHANNELS };
    struct tensor t = {.data = memory, .n = 1, .h = 4, .w = 4, .c = CHANNELS, .ld = CHANNELS};
    struct matrix x = matrix_of(&t), y, row, pair;
    float *vectors = memory + 8 * AREA;
    t.data = memory + AREA;
    y = matrix_of(&t);
    t.data = memory + 2 * AREA;
    t.c = t.ld = 2 * CHANNELS;
    pair = matrix_of(&t);
    t.data = memory + 4 * AREA;
    t.h = t.w = 1;
    t.c = t.ld = CHANNELS;
    row = matrix_of(&t);
    kernel_group_norm(q, &x, 1, 8, 1e-5f, vectors, vectors, vectors + AREA, vectors + 2 * AREA,
                      vectors + 3 * AREA);
    kernel_layer_norm(q, &x, &y, 1e-5f, vectors, vectors);
    kernel_apply(q, &x, &y, ROWS, &(struct pre){.silu = 1});
    kernel_add(q, &x, 0.5f, &y);
    kernel_damp(q, &y, 4, 4, 0.5f);
    kernel_mean(q, &y, 4, 4, &row);
    kernel_concat(q, &x, &y, &pair);
    kernel_product_simple(q, &(struct product){.x = x.data,
                                               .w = pair.data,
                                               .y = y.data,
                                               .x_ld = CHANNELS,
                                               .y_ld = CHANNELS,
                                               .n = 1,
                                               .x_h = 4,
                                               .x_w = 4,
                                               .y_h = 4,
                                               .y_w = 4,
                                               .in = CHANNELS,
                                               .out = 2 * ROWS,
                                               .kernel = 1,
                                               .stride = 1,
                                               .splits = 1});
    kernel_attention_simple(q, &(struct attend){.q = x.data,
                                                .k = x.data,
                                                .v = x.data,
                                                .y = y.data,
                                                .q_ld = CHANNELS,
                                                .k_ld = CHANNELS,
                                                .v_ld = CHANNELS,
                                                .y_ld = CHANNELS,
                                                .n = 1,
                                                .tq = ROWS,
                                                .tk = ROWS,
                                                .heads = 1,
                                                .d = CHANNELS,
                                                .scale = 1});
}

/* The same commands, written again and again, must be the same bytes, or no graph is ever used. */
static int check_graphs(struct backend *backend)
{
    enum { RUNS = 4, BYTES = 1 << 20 };
    struct device *device = ((struct cuda_backend *)backend)->device;
    struct queue queue = {0};
    float *memory = device_alloc(device, BYTES);
    long launched = 0, captured = 0, before_launched, before_captured;
    int rc = memory == NULL;

    device_graphs(device, &before_launched, &before_captured);
    for (int i = 0; i < RUNS && rc == 0; i++) {
        queue_clear(&queue);
        for (int part = 0; part < 3; part++) {
            dirty_stack(i * 85 + part);
            write_list(&queue, memory);
        }
        rc = device_run(device, 0, &queue);
    }
    if (rc != 0)
        printf("FAIL %s\n", memory == NULL ? "no memory" : device_error(device));
    device_graphs(device, &launched, &captured);
    launched -= before_launched;
    captured -= before_captured;
    printf("a list of %d commands, %d times: %ld captured, %ld launched as a graph\n", queue.count,
           RUNS, captured, launched);
    queue_release(&queue);
    device_free(device, memory);
    return rc != 0 || captured != 1 || launched != RUNS - 1;
}

#define NO_CARD "no CUDA device" /* how every such message begins */

/* The card, what computes its products, and what is amiss with it. */
static int describe(const char *wanted)
{
    const struct backend_options options = {.compute = DTYPE_F32, .isa = "auto"};
    char blas[BLAS_TEXT_BYTES];
    struct backend *backend;
    struct err err;
    int rc;

    if (backend_cuda_open(&backend, &options, &err) != 0) {
        bool none = strncmp(err.message, NO_CARD, strlen(NO_CARD)) == 0;
        printf("%s %s\n", none ? "SKIP" : "FAIL", err.message);
        return none ? 77 : 2;
    }
    blas_describe(((struct cuda_backend *)backend)->blas, blas);
    printf("%s, %s\n%s\n", backend->device, backend->isa, blas);
    if (backend->warning != NULL)
        printf("WARNING %s\n", backend->warning);
    rc = strcmp(wanted, "cublas") == 0   ? check_blas(backend)
         : strcmp(wanted, "graphs") == 0 ? check_graphs(backend)
                                         : 0;
    backend->ops->destroy(backend);
    return rc;
}

static int list(void)
{
    for (size_t op = 0; op < sizeof(OPERATORS) / sizeof(OPERATORS[0]); op++)
        printf("%s\n", OPERATORS[op].name);
    return 0;
}

int main(int argc, char **argv)
{
    const char *wanted = argc > 1 ? argv[1] : "";
    bool alone = strcmp(wanted, "cublas") == 0 || strcmp(wanted, "graphs") == 0 ||
                 strcmp(wanted, "none") == 0;
    int failed = 0, lines = 0, rc;

    if (strcmp(wanted, "list") == 0)
        return list();
    rc = describe(wanted);
    if (rc != 0 || alone)
        return rc;
    for (size_t op = 0; op < sizeof(OPERATORS) / sizeof(OPERATORS[0]); op++)
        for (size_t type = 0; type < sizeof(TYPES) / sizeof(TYPES[0]); type++)
            if (*wanted == 0 || strcmp(wanted, OPERATORS[op].name) == 0) {
                failed += check(op, TYPES[type]);
                lines++;
            }
    printf("%d lines, %d shapes failed\n", lines, failed);
    return failed > 0 || lines == 0;
}
