/*
 * atelier bench switch: what it takes to go from one model or LoRA to another. A full-size SD1.5 is
 * written to TMPDIR (2 GB) and read back from the page cache, against the rate at which this
 * machine's threads copy memory, or its bus to the card.
 */
#include "cli/bench.h"
#include "common/json.h"
#include "engine/measure.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COPY_BYTES ((size_t)256 << 20) /* of each thread; more than any cache holds */
#define COPY_THREADS_MAX 64
#define SIDE 512

struct switch_figures {
    double copy; /* bytes per second: what loading is held against */
    bool bus;    /* it is a card's bus */
    uint64_t file_bytes;
    double first_load, load;         /* seconds; into memory that is new, and the best of several */
    double step, first_step;         /* after loading: the first one brings weights into form */
    double changing_step;            /* when the step before was another model's */
    double beside_step, beside_load; /* drawing and loading at once */
    struct bench_lora lora;
};

/* ---- the ceiling ---- */

struct copying {
    pthread_barrier_t *start;
    char *from, *to;
    double begin, end;
};

static void *copy(void *user)
{
    struct copying *c = user;

    memset(c->from, 1, COPY_BYTES);
    memset(c->to, 2, COPY_BYTES);
    pthread_barrier_wait(c->start);
    c->begin = bench_now();
    for (int i = 0; i < BENCH_REPEATS; i++)
        memcpy(c->to, c->from, COPY_BYTES);
    c->end = bench_now();
    return NULL;
}

/* All threads at once, from the first one's start to the last one's end. */
static int measure_copy(int threads, double *rate, struct err *err)
{
    struct copying copies[COPY_THREADS_MAX];
    pthread_t ids[COPY_THREADS_MAX];
    pthread_barrier_t start;
    double begin = 1e30, end = 0;
    int count = threads < 1 ? 1 : threads < COPY_THREADS_MAX ? threads : COPY_THREADS_MAX;
    char *memory = malloc(2 * COPY_BYTES * (size_t)count);

    if (memory == NULL)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no memory to measure copying with");
    pthread_barrier_init(&start, NULL, (unsigned)count);
    for (int i = 0; i < count; i++) {
        copies[i] = (struct copying){.start = &start,
                                     .from = memory + 2 * (size_t)i * COPY_BYTES,
                                     .to = memory + (2 * (size_t)i + 1) * COPY_BYTES};
        if (pthread_create(&ids[i], NULL, copy, &copies[i]) != 0) {
            fprintf(stderr, "atelier bench: no thread can be started\n");
            abort(); /* the others wait for it */
        }
    }
    for (int i = 0; i < count; i++) {
        pthread_join(ids[i], NULL);
        begin = copies[i].begin < begin ? copies[i].begin : begin;
        end = copies[i].end > end ? copies[i].end : end;
    }
    *rate = (double)BENCH_REPEATS * (double)count * (double)COPY_BYTES / (end - begin);
    pthread_barrier_destroy(&start);
    free(memory);
    return 0;
}

/* ---- models ---- */

static int write_model(struct engine *engine, const char *path, struct err *err)
{
    struct model *model;
    int rc;

    if (engine_load_synthetic(&model, engine, "sd1", err) != 0)
        return -1;
    rc = measure_file(model, path, err);
    engine_unload(model);
    return rc;
}

/* The last one stays loaded. */
static int load(struct engine *engine, const char *path, struct model **model,
                struct switch_figures *f, struct err *err)
{
    f->load = 1e30;
    for (int i = 0; i <= BENCH_REPEATS; i++) {
        double begin = bench_now(), seconds;
        if (engine_load(model, engine, path, NULL, err) != 0)
            return -1;
        seconds = bench_now() - begin;
        f->first_load = i == 0 ? seconds : f->first_load;
        f->load = seconds < f->load ? seconds : f->load;
        f->file_bytes = model_info(*model)->file_bytes;
        if (i < BENCH_REPEATS)
            engine_unload(*model);
    }
    return 0;
}

static int begin_drawing(struct model *model, int steps, struct session **session, struct err *err)
{
    struct draw draw = DRAW_INIT;

    draw.prompt = "a lighthouse on a cliff at dusk, oil painting";
    draw.width = draw.height = SIDE;
    draw.steps = steps;
    draw.sampler = SAMPLER_DDIM;
    return session_create(session, model, &draw, NULL, err);
}

static int timed_step(struct session *session, double *seconds, struct err *err)
{
    double begin = bench_now();
    int rc = engine_step(session_model(session), &session, 1, err);

    *seconds = bench_now() - begin;
    return rc;
}

/* The first of the sessions by itself, then both in turn. */
static int alternate(struct session *sessions[2], struct switch_figures *f, struct err *err)
{
    double seconds;

    f->step = f->changing_step = 1e30;
    if (timed_step(sessions[0], &f->first_step, err) != 0 ||
        timed_step(sessions[1], &seconds, err) != 0 || timed_step(sessions[0], &seconds, err) != 0)
        return -1;
    for (int i = 0; i < BENCH_REPEATS; i++) {
        if (timed_step(sessions[0], &seconds, err) != 0)
            return -1;
        f->step = seconds < f->step ? seconds : f->step;
    }
    for (int i = 0; i < 2 * BENCH_REPEATS; i++) {
        if (timed_step(sessions[(i + 1) % 2], &seconds, err) != 0)
            return -1;
        f->changing_step = seconds < f->changing_step ? seconds : f->changing_step;
    }
    return 0;
}

static int change_models(struct model *const models[2], struct switch_figures *f, struct err *err)
{
    struct session *sessions[2] = {NULL, NULL};
    int rc = 0;

    for (int i = 0; i < 2 && rc == 0; i++)
        rc = begin_drawing(models[i], 3 * BENCH_REPEATS, &sessions[i], err);
    if (rc == 0)
        rc = alternate(sessions, f, err);
    session_free(sessions[0]);
    session_free(sessions[1]);
    return rc;
}

/* ---- both at once ---- */

struct loader {
    struct engine *engine;
    const char *path;
    struct model *model;
    double seconds;
    int rc;
    struct err err;
};

static void *load_beside(void *user)
{
    struct loader *l = user;
    double begin = bench_now();

    l->rc = engine_load(&l->model, l->engine, l->path, NULL, &l->err);
    l->seconds = bench_now() - begin;
    return NULL;
}

/* Steps begin before the load does, and one ends after it. */
static int draw_beside(struct session *session, struct loader *loader, struct switch_figures *f,
                       struct err *err)
{
    pthread_t thread;
    int rc;

    if (pthread_create(&thread, NULL, load_beside, loader) != 0)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "no thread can be started");
    rc = timed_step(session, &f->beside_step, err);
    pthread_join(thread, NULL);
    f->beside_load = loader->seconds;
    if (rc == 0 && loader->rc != 0) {
        *err = loader->err;
        rc = -1;
    }
    return rc;
}

static int load_and_draw(struct engine *engine, struct model *model, const char *path,
                         struct switch_figures *f, struct err *err)
{
    struct loader loader = {.engine = engine, .path = path};
    struct session *session = NULL;
    int rc = begin_drawing(model, 1, &session, err);

    if (rc == 0)
        rc = draw_beside(session, &loader, f, err);
    session_free(session);
    engine_unload(loader.model);
    return rc;
}

/* ---- the whole ---- */

static int measure(struct engine *engine, const struct bench_options *o, const char *path,
                   struct switch_figures *f, struct err *err)
{
    struct model *models[2];
    struct adapter *adapter;

    bench_say(o, "copying");
    f->copy = engine_bus_rate(engine);
    f->bus = f->copy > 0;
    if (!f->bus && measure_copy(engine_info(engine)->threads, &f->copy, err) != 0)
        return -1;
    bench_say(o, "loading");
    if (write_model(engine, path, err) != 0 || load(engine, path, &models[0], f, err) != 0)
        return -1;
    bench_say(o, "a LoRA");
    if (bench_load_lora(models[0], &adapter, &f->lora, err) != 0)
        return -1;
    engine_unload_adapter(adapter);
    bench_say(o, "two models in turn");
    if (engine_load(&models[1], engine, path, NULL, err) != 0 || change_models(models, f, err) != 0)
        return -1;
    engine_unload(models[1]);
    bench_say(o, "loading while drawing");
    return load_and_draw(engine, models[0], path, f, err);
}

static void print_text(const struct engine_info *info, const struct switch_figures *f)
{
    double rate = (double)f->file_bytes / f->load, whole = f->step + f->load;
    double both = f->beside_step > f->beside_load ? f->beside_step : f->beside_load;

    printf("%s, %s, %s, %s, %d threads\n", info->processor, info->backend, info->isa,
           bench_precision(info->precision), info->threads);
    printf("%s: %.1f GB/s\n", f->bus ? "the bus, from pinned memory" : "copying memory",
           f->copy / 1e9);
    printf("SD1.5 from the page cache, %.2f GB: %.3f s, %.1f GB/s, %.0f %% of that; the first time "
           "%.3f s\n",
           (double)f->file_bytes / 1e9, f->load, rate / 1e9, 100 * rate / f->copy, f->first_load);
    printf("its first step %d x %d: %.3f s, the next %.3f s\n", SIDE, SIDE, f->first_step, f->step);
    printf("a step after a step of another resident model: %.3f s, %+.1f ms\n", f->changing_step,
           1e3 * (f->changing_step - f->step));
    printf("LoRA, rank %d, %.0f MB: load %.1f ms, switch %.2f ms\n", BENCH_LORA_RANK,
           (double)f->lora.is.bytes / 1e6, 1e3 * f->lora.load, 1e3 * f->lora.change);
    printf("a step and a load begun together: %.3f s and %.3f s; one after the other %.3f s, "
           "%.2f x\n",
           f->beside_step, f->beside_load, whole, whole / both);
}

static void print_json(const struct engine_info *info, const struct switch_figures *f)
{
    struct buf out;

    buf_init(&out, 1u << 16);
    buf_str(&out, "{\"processor\":");
    json_write_string(&out, info->processor, strlen(info->processor));
    buf_printf(
        &out,
        ",\"backend\":\"%s\",\"isa\":\"%s\",\"precision\":\"%s\",\"threads\":%d,"
        "\"copy_bytes_per_s\":%.4g,\"copies_to\":\"%s\",\"file_bytes\":%llu,\"first_load_s\":%.6f,"
        "\"load_s\":%.6f,\"step_s\":%.6f,"
        "\"first_step_s\":%.6f,\"changing_step_s\":%.6f,\"lora_load_s\":%.6f,"
        "\"lora_switch_s\":%.6f,\"beside_step_s\":%.6f,\"beside_load_s\":%.6f}\n",
        info->backend, info->isa, bench_precision(info->precision), info->threads, f->copy,
        f->bus ? "card" : "memory", (unsigned long long)f->file_bytes, f->first_load, f->load,
        f->step, f->first_step, f->changing_step, f->lora.load, f->lora.change, f->beside_step,
        f->beside_load);
    fputs(out.data, stdout);
    buf_release(&out);
}

int bench_switch(struct engine *engine, const struct bench_options *o, struct err *err)
{
    struct switch_figures figures = {0};
    char path[BENCH_PATH_BYTES];
    int rc;

    if (bench_temporary(path, err) != 0)
        return -1;
    rc = measure(engine, o, path, &figures, err);
    unlink(path);
    if (rc == 0 && o->json)
        print_json(engine_info(engine), &figures);
    else if (rc == 0)
        print_text(engine_info(engine), &figures);
    return rc;
}
