#include "engine/measure.h"

#include "engine/runtime.h"
#include "engine/synthetic.h"
#include "engine/trial.h"

#if defined(ATELIER_CUDA)
#include "engine/cuda/tune.h"
#endif

#if defined(ATELIER_CUDA)
#include "engine/cuda/cuda.h"
#endif

#include <stdio.h>
#include <stdlib.h>

#define TRIES 6
#define CARD_TRIES 200 /* a third of a second: an idle card's clock has to rise first */

static const char *const NAMES[OP_KIND_COUNT] = {
    [OP_CONV3X3] = "conv 3x3",      [OP_CONV_STRIDED] = "conv strided",
    [OP_MATMUL] = "matmul",         [OP_ATTENTION] = "attention",
    [OP_GROUP_NORM] = "group norm", [OP_LAYER_NORM] = "layer norm",
    [OP_OTHER] = "other",
};

const char *op_kind_name(enum op_kind kind)
{
    return NAMES[kind];
}

void engine_profile(struct engine *engine, struct profile *profile)
{
    fair_lock_take(&engine->lock);
    engine->profile = profile;
    fair_lock_give(&engine->lock);
}

int measure_file(const struct model *model, const char *path, struct err *err)
{
    return synthetic_write(model->checkpoint, path, err);
}

int measure_controlnet(const struct model *model, const char *path, struct err *err)
{
    return synthetic_write_controlnet(model->checkpoint, &model->unet.config, path, err);
}

static int measure_matmul(struct engine *engine, double *rate, struct err *err)
{
    bool card = engine->backend->device != NULL; /* 8192³ fills one, and half a minute here */
    int rows = card ? 8192 : 4096, in = card ? 8192 : 1024, out = card ? 8192 : 4096;
    struct linear linear = {.in = in, .out = out};
    struct weight_part part = {.dtype = DTYPE_F32, .out = out};
    struct weight_spec spec = {.parts = &part, .part_count = 1, .in = in, .kernel = 1};
    size_t larger = (size_t)in * (size_t)(out > rows ? out : rows);
    float *values = trial_values(larger);
    struct trial t;
    double best = 1e30;
    int rc = -1;

    part.data = values;
    if (values == NULL ||
        trial_begin(&t, engine->backend, card ? 1u << 30 : 256u << 20, err) != 0) {
        free(values);
        return values ? -1 : err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to measure in");
    }
    if (t.backend->ops->weight_create(t.backend, &spec, &linear.weight, err) != 0)
        goto out;
    struct tensor x = pass_tensor(&t.pass, 1, 1, rows, in),
                  y = pass_tensor(&t.pass, 1, 1, rows, out);
    op_upload(&t.pass, &x, values);
    t.backend->ops->finish(&t.pass);
    for (int i = 0; i < (card ? CARD_TRIES : TRIES) && !t.pass.failed; i++) {
        double begin = trial_now();
        op_matmul(&t.pass, &(struct matmul){.linear = &linear, .x = &x, .y = &y});
        t.backend->ops->finish(&t.pass);
        best = best < trial_now() - begin ? best : trial_now() - begin;
    }
    t.backend->ops->weight_free(t.backend, linear.weight);
    *rate = 2.0 * rows * in * out / best;
    rc = t.pass.failed ? -1 : 0;
out:
    trial_end(&t);
    free(values);
    return rc;
}

static int measure_direct(struct engine *engine, double *rate, struct err *err)
{
    enum { SIDE = 64, WIDTH = 512 };
    struct conv conv = {.in = WIDTH, .out = WIDTH, .kernel = 3, .stride = 1};
    struct weight_part part = {.dtype = DTYPE_F32, .out = WIDTH};
    struct weight_spec spec = {.parts = &part, .part_count = 1, .in = WIDTH, .kernel = 3};
    float *values = trial_values((size_t)WIDTH * WIDTH * 9); /* more than x has */
    enum conv_algorithm before = engine->backend->conv;
    double best = 1e30;
    struct trial t;
    int rc = -1;

    part.data = values;
    conv.bias = values;
    if (values == NULL || trial_begin(&t, engine->backend, 256u << 20, err) != 0) {
        free(values);
        return values ? -1 : err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to measure in");
    }
    if (t.backend->ops->weight_create(t.backend, &spec, &conv.weight, err) != 0)
        goto out;
    struct tensor x = pass_tensor(&t.pass, 1, SIDE, SIDE, WIDTH);
    struct tensor y = pass_tensor(&t.pass, 1, SIDE, SIDE, WIDTH);
    op_upload(&t.pass, &x, values);
    engine->backend->conv = CONV_DIRECT;
    for (int i = 0; i < TRIES && !t.pass.failed; i++) {
        double begin = trial_now();
        op_conv2d(&t.pass, &(struct conv2d){.conv = &conv, .x = &x, .y = &y});
        best = best < trial_now() - begin ? best : trial_now() - begin;
    }
    engine->backend->conv = before;
    t.backend->ops->weight_free(t.backend, conv.weight);
    *rate = 2.0 * SIDE * SIDE * 9 * WIDTH * WIDTH / best;
    rc = t.pass.failed ? -1 : 0;
out:
    trial_end(&t);
    free(values);
    return rc;
}

double engine_bus_rate(struct engine *engine)
{
    double rate = 0;

#if defined(ATELIER_CUDA)
    fair_lock_take(&engine->lock);
    if (strcmp(engine->info.backend, "cuda") == 0)
        rate = cuda_bus_rate(engine->backend);
    fair_lock_give(&engine->lock);
#else
    (void)engine;
#endif
    return rate;
}

int engine_ceiling(struct engine *engine, struct ceiling *ceiling, struct err *err)
{
    int rc;

    *ceiling = (struct ceiling){0};
    fair_lock_take(&engine->lock);
    rc = measure_matmul(engine, &ceiling->matmul, err);
    if (rc == 0 && strcmp(engine->info.backend, "dnnl") == 0)
        rc = measure_direct(engine, &ceiling->direct, err);
    fair_lock_give(&engine->lock);
    return rc;
}

void measure_library(const struct engine *engine, char *text, size_t bytes)
{
    *text = 0;
#if defined(ATELIER_CUDA)
    if (strcmp(engine->info.backend, "cuda") == 0) {
        char found[BLAS_TEXT_BYTES];
        blas_describe(((struct cuda_backend *)engine->backend)->blas, found);
        snprintf(text, bytes, "%s", found);
    }
#else
    (void)engine;
    (void)bytes;
#endif
}
