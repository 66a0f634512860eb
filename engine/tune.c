#include "engine/tune.h"

#include "engine/runtime.h"

#if defined(ATELIER_CUDA)

#include "engine/cuda/tune.h"
#include "engine/trial.h"

#include <stdio.h>
#include <stdlib.h>

#define SHAPES_MAX 1024
#define RUNS 5           /* the median counts */
#define WARM_RUNS 2      /* a list is captured at its second run */
#define RUN_SECONDS 1e-3 /* of one list, so that its launch counts little */
#define REPEATS_MAX 100  /* of a product in a list */
#define SLOW_SECONDS 0.1 /* such a run is an emulated card's and counts at once */
#define PIECE (1u << 20) /* values sent at a time */
#define SIDES_MAX 3
#define GUIDED 2 /* samples of a picture */

/* What is published and at which sizes people draw with it; the VAEs are of one kind. */
static const struct {
    const char *family;
    int sides[SIDES_MAX];
} PUBLISHED[] = {{"sd1", {512, 768, 1024}}, {"sdxl", {768, 1024}}};

/* ---- which products there are ---- */

struct shapes {
    struct product_shape at[SHAPES_MAX];
    int count;
};

static struct tuned key_of(int sm, const struct product_shape *s)
{
    return (struct tuned){
        .sm = sm, .out = s->out, .taps = s->taps, .in = s->in, .rows = (int64_t)s->h * s->w};
}

static int compare_shapes(const void *a, const void *b)
{
    struct tuned x = key_of(0, a), y = key_of(0, b);

    return tuned_compare(&x, &y);
}

/* Each layer and size once, as the first pass has it. */
static void add_shape(void *user, const struct product_shape *shape)
{
    struct shapes *shapes = user;

    for (int i = 0; i < shapes->count; i++)
        if (compare_shapes(&shapes->at[i], shape) == 0)
            return;
    if (shapes->count < SHAPES_MAX)
        shapes->at[shapes->count++] = *shape;
}

/* A plan that memory does not hold has told its products all the same. */
static int plan_size(struct model *model, int pictures, int width, int height, struct err *err)
{
    struct engine *engine = model->engine;
    int factor = model->info.vae_factor, h = height / factor, w = width / factor, rc;
    struct work_plan plan;

    fair_lock_take(&engine->lock);
    rc = work_plan_find_step(model, GUIDED * pictures, h, w, model->tokens,
                             &(struct work_variant){0}, &plan, err);
    if (rc == 0 || err->code == ERR_MEMORY)
        rc = work_plan_find(model, WORK_DECODE, 1, h, w, &plan, err);
    fair_lock_give(&engine->lock);
    return rc == 0 || err->code == ERR_MEMORY ? 0 : -1;
}

static int plan_published(struct engine *engine, const struct tune_options *o, struct err *err)
{
    const int count = sizeof(PUBLISHED) / sizeof(PUBLISHED[0]);

    for (int i = 0; i < count; i++) {
        const int *sides = PUBLISHED[i].sides;
        struct model *model = NULL;
        int rc = engine_load_synthetic(&model, engine, PUBLISHED[i].family, err);
        for (int j = 0; j < SIDES_MAX && sides[j] > 0 && rc == 0; j++)
            rc = plan_size(model, o->pictures, sides[j], sides[j], err);
        engine_unload(model);
        if (rc != 0)
            return -1;
    }
    return 0;
}

static int plan_model(struct engine *engine, const struct tune_options *o, struct err *err)
{
    struct model *model;
    int rc;

    if (engine_load(&model, engine, o->model, NULL, err) != 0)
        return -1;
    rc = plan_size(model, o->pictures, o->width, o->height, err);
    engine_unload(model);
    return rc;
}

static int list_shapes(struct engine *engine, const struct tune_options *o, struct shapes *shapes,
                       struct err *err)
{
    int rc;

    cuda_watch(engine->backend, add_shape, shapes);
    rc = (o->model != NULL ? plan_model : plan_published)(engine, o, err);
    cuda_watch(engine->backend, NULL, NULL);
    if (rc == 0 && shapes->count == 0)
        rc = err_set(err, ERR_UNSUPPORTED, ERR_FATAL,
                     "nothing to tune: in f32, or with widths that are no multiple of 8, no layer "
                     "takes tensor cores");
    qsort(shapes->at, (size_t)shapes->count, sizeof(shapes->at[0]), compare_shapes);
    return rc;
}

/* ---- one product ---- */

/* A layer by itself, over random values. */
struct product_trial {
    struct trial trial;
    struct weight *weight;
    struct tensor x, y;
    const struct product_shape *shape;
};

static void enqueue(struct product_trial *t)
{
    const struct product_shape *s = t->shape;
    struct linear linear = {.weight = t->weight, .in = s->in, .out = s->out};
    struct conv conv = {.weight = t->weight, .in = s->in, .out = s->out, .kernel = 3, .stride = 1};

    if (s->taps == 1)
        op_matmul(&t->trial.pass, &(struct matmul){.linear = &linear, .x = &t->x, .y = &t->y});
    else
        op_conv2d(&t->trial.pass, &(struct conv2d){.conv = &conv, .x = &t->x, .y = &t->y});
}

/* x piece by piece: transfers go through memory that should stay small. */
static void send_values(struct product_trial *t, const float *values)
{
    int64_t rows = tensor_rows(&t->x), most = PIECE / t->x.c;

    for (int64_t row = 0; row < rows; row += most) {
        struct tensor piece = t->x;
        piece.n = piece.h = 1;
        piece.w = (int)(rows - row < most ? rows - row : most);
        piece.data = (char *)t->x.data + (size_t)row * (size_t)t->x.c * dtype_bytes(t->x.dtype);
        op_upload(&t->trial.pass, &piece, values);
    }
    t->trial.backend->ops->finish(&t->trial.pass);
}

static size_t bytes_needed(const struct product_shape *s, const struct product_tile *tiles,
                           int count)
{
    size_t rows = (size_t)s->n * (size_t)s->h * (size_t)s->w, splits = 0;

    for (int i = 0; i < count; i++)
        if (tiles[i].splits > 1 && (size_t)tiles[i].splits > splits)
            splits = (size_t)tiles[i].splits;
    return rows * ((size_t)s->in + (size_t)s->out) * sizeof(uint16_t) +
           splits * rows * (size_t)s->out * sizeof(float) + 8 * ARENA_ALIGN_BYTES;
}

static int begin_product(struct product_trial *t, struct backend *backend,
                         const struct product_shape *s, size_t bytes, struct err *err)
{
    size_t count = (size_t)s->out * (size_t)s->in * (size_t)s->taps;
    float *values = trial_values(count > PIECE ? count : PIECE);
    struct weight_part part = {.data = values, .dtype = DTYPE_F32, .out = s->out};
    struct weight_spec spec = {
        .parts = &part, .part_count = 1, .in = s->in, .kernel = s->taps == 1 ? 1 : 3};

    *t = (struct product_trial){.shape = s};
    if (values == NULL || trial_begin(&t->trial, backend, bytes, err) != 0) {
        free(values);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to measure in");
    }
    t->x = pass_tensor(&t->trial.pass, s->n, s->h, s->w, s->in);
    t->y = pass_tensor(&t->trial.pass, s->n, s->h, s->w, s->out);
    if (backend->ops->weight_create(backend, &spec, &t->weight, err) == 0)
        send_values(t, values);
    free(values);
    if (t->weight != NULL && !t->trial.pass.failed)
        return 0;
    backend->ops->weight_free(backend, t->weight);
    trial_end(&t->trial);
    return -1;
}

static void end_product(struct product_trial *t)
{
    t->trial.backend->ops->weight_free(t->trial.backend, t->weight);
    trial_end(&t->trial);
}

static double seconds_of(struct product_trial *t, int repeats)
{
    double begin = trial_now();

    for (int i = 0; i < repeats; i++)
        enqueue(t);
    t->trial.backend->ops->finish(&t->trial.pass);
    return (trial_now() - begin) / repeats;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median_seconds(struct product_trial *t)
{
    double first = seconds_of(t, 1), times[RUNS];
    int repeats;

    if (first > SLOW_SECONDS)
        return first;
    first = seconds_of(t, 1); /* the one before loaded the kernel */
    repeats = (int)(RUN_SECONDS / (first > 1e-6 ? first : 1e-6));
    repeats = repeats < 1 ? 1 : repeats > REPEATS_MAX ? REPEATS_MAX : repeats;
    for (int i = 0; i < WARM_RUNS; i++)
        seconds_of(t, repeats);
    for (int i = 0; i < RUNS; i++)
        times[i] = seconds_of(t, repeats);
    qsort(times, RUNS, sizeof(times[0]), ascending);
    return times[RUNS / 2];
}

/* ---- all of them ---- */

static bool is_same(const struct product_tile *a, const struct product_tile *b)
{
    return a->rows == b->rows && a->columns == b->columns && a->splits == b->splits &&
           a->group == b->group && a->library == b->library;
}

static bool stopped(const struct tune_options *o)
{
    return o->stop != NULL && o->stop(o->user);
}

static void try_tile(struct product_trial *t, const struct product_tile *tile,
                     struct tune_result *result)
{
    double seconds;

    cuda_force(t->trial.backend, tile);
    seconds = median_seconds(t);
    cuda_force(t->trial.backend, NULL);
    if (is_same(tile, &result->as))
        result->as_seconds = seconds;
    if (result->tried == 0 || seconds < result->seconds) {
        result->seconds = seconds;
        result->tuned.tile = *tile;
    }
    result->tried++;
}

/* Times every tile, and last the library, which takes the fastest tile's place or has it for what
 * it does not take. */
static void try_tiles(struct product_trial *t, const struct tune_options *o,
                      const struct product_tile *tiles, int count, struct tune_result *result)
{
    for (int i = 0; i < count && !stopped(o) && !t->trial.pass.failed; i++)
        try_tile(t, &tiles[i], result);
    if (result->by_library && result->tried == count && !stopped(o)) {
        struct product_tile library = result->tuned.tile;
        library.library = true;
        if (result->as.library) /* whatever tile stands behind it */
            result->as = library;
        try_tile(t, &library, result);
    }
}

static void write_line(struct tune_result *r)
{
    const struct tuned *t = &r->tuned;

    snprintf(r->line, sizeof(r->line), "    {%d, %d, %d, %d, %lld, {%d, %d, %d, %s, %s}},", t->sm,
             t->out, t->taps, t->in, (long long)t->rows, t->tile.rows, t->tile.columns,
             t->tile.splits, t->tile.group ? "true" : "false", t->tile.library ? "true" : "false");
}

static int tune_shape(struct engine *engine, const struct tune_options *o,
                      const struct product_shape *s, struct tune_result *result, struct err *err)
{
    struct product_tile tiles[CANDIDATES_MAX];
    struct tuned *t = &result->tuned;
    struct product_trial trial;
    int count, rc = 0;

    *t = key_of(cuda_sm(engine->backend), s);
    result->as = choose_tile(t->sm, t->rows, t->out, t->taps, t->in);
    result->by_library = s->taps == 1 && cuda_has_library(engine->backend);
    result->as.library = result->as.library && result->by_library;
    count = choose_candidates(t->sm, t->rows, t->out, t->taps, t->in, tiles);
    if (begin_product(&trial, engine->backend, s, bytes_needed(s, tiles, count), err) != 0)
        return -1;
    try_tiles(&trial, o, tiles, count, result);
    rc = trial.trial.pass.failed ? -1 : 0;
    end_product(&trial);
    write_line(result);
    if (rc == 0 && result->tried == count + result->by_library && o->found != NULL)
        o->found(o->user, result);
    return rc;
}

int engine_tune(struct engine *engine, const struct tune_options *o, struct err *err)
{
    struct shapes *shapes = calloc(1, sizeof(*shapes));
    int rc = 0;

    if (shapes == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory for a list of products");
    if (strcmp(engine->info.backend, "cuda") != 0)
        rc = err_set(err, ERR_UNSUPPORTED, ERR_FATAL, "the %s back end has no tiles to choose from",
                     engine->info.backend);
    else
        rc = list_shapes(engine, o, shapes, err);
    if (rc == 0 && o->listed != NULL)
        o->listed(o->user, shapes->count);
    fair_lock_take(&engine->lock);
    for (int i = 0; i < shapes->count && rc == 0 && !stopped(o); i++) {
        struct tune_result result = {
            .number = i + 1, .count = shapes->count, .samples = shapes->at[i].n};
        rc = tune_shape(engine, o, &shapes->at[i], &result, err);
        if (rc != 0 && err->code == ERR_MEMORY)
            rc = 0; /* what the card does not hold it will not be asked for */
    }
    fair_lock_give(&engine->lock);
    free(shapes);
    return rc;
}

#else

int engine_tune(struct engine *engine, const struct tune_options *o, struct err *err)
{
    (void)engine;
    (void)o;
    return err_set(err, ERR_UNSUPPORTED, ERR_FATAL, "this build has no cuda back end");
}

#endif
