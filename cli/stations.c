#include "cli/stations.h"

#include "worker/support.h"

#include <errno.h>

void stations_init(struct stations *stations)
{
    pthread_condattr_t monotonic;
    *stations = (struct stations){.count = 0};
    pthread_mutex_init(&stations->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&stations->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void stations_release(struct stations *stations)
{
    for (int i = 0; i < stations->count; i++)
        pipeline_free(stations->at[i].pipeline);
    for (int i = 0; i < stations->count; i++) {
        models_free(stations->at[i].models);
        engine_free(stations->at[i].engine);
    }
    pthread_cond_destroy(&stations->changed);
    pthread_mutex_destroy(&stations->lock);
}

int stations_open_engines(struct stations *stations, const struct setup_options *options, int max,
                          void (*warn)(void *user, const char *message), void *user,
                          struct err *err)
{
    int count = support_device_count(options->device);
    if (max > STATIONS_MAX)
        max = STATIONS_MAX;
    if (count > max)
        count = max;
    for (int i = 0; i < count; i++) {
        char name[SUPPORT_DEVICE_BYTES];
        struct setup_options one = *options;
        one.device = count > 1 ? support_device_name(i, name) : options->device;
        if (setup_engine(&stations->at[i].engine, &one, warn, user, err) != 0)
            return -1;
        stations->count++;
    }
    return 0;
}

int stations_open_models(struct stations *stations, const struct catalogue *catalogue,
                         struct err *err)
{
    for (int i = 0; i < stations->count; i++)
        if (models_create(&stations->at[i].models, stations->at[i].engine, catalogue, err) != 0)
            return -1;
    return 0;
}

/* From a pipeline's thread. */
static void wake(void *user)
{
    struct stations *stations = user;
    pthread_mutex_lock(&stations->lock);
    stations->woken = true;
    pthread_cond_signal(&stations->changed);
    pthread_mutex_unlock(&stations->lock);
}

int stations_start(struct stations *stations, struct pipeline_options wanted, struct err *err)
{
    for (int i = 0; i < stations->count; i++) {
        struct station *station = &stations->at[i];
        wanted.engine = station->engine;
        wanted.models = station->models;
        wanted.wake = wake;
        wanted.user = stations;
        if (pipeline_create(&station->pipeline, &wanted, err) != 0)
            return -1;
    }
    return 0;
}

static struct task *take_any(struct stations *stations)
{
    for (int i = 0; i < stations->count; i++) {
        struct task *task = pipeline_take(stations->at[i].pipeline, 0);
        if (task)
            return task;
    }
    return NULL;
}

static void wait_for_any(struct stations *stations, int timeout_ms)
{
    struct timespec until = clock_deadline(timeout_ms);
    pthread_mutex_lock(&stations->lock);
    while (!stations->woken &&
           pthread_cond_timedwait(&stations->changed, &stations->lock, &until) != ETIMEDOUT)
        ;
    stations->woken = false;
    pthread_mutex_unlock(&stations->lock);
}

struct task *stations_take(struct stations *stations, int timeout_ms)
{
    struct task *task = take_any(stations);
    if (task || timeout_ms == 0)
        return task;
    wait_for_any(stations, timeout_ms);
    return take_any(stations);
}

void stations_stop(struct stations *stations)
{
    for (int i = 0; i < stations->count; i++)
        pipeline_stop(stations->at[i].pipeline);
}

struct pipeline_progress stations_progress(struct stations *stations)
{
    struct pipeline_progress all = pipeline_progress(stations->at[0].pipeline);
    for (int i = 1; i < stations->count; i++) {
        struct pipeline_progress sum = all, one = pipeline_progress(stations->at[i].pipeline);
        if (sum.active == 0)
            sum = one;
        sum.pictures_done = all.pictures_done + one.pictures_done;
        sum.steps_done = all.steps_done + one.steps_done;
        sum.active = all.active + one.active;
        all = sum;
    }
    return all;
}

const char *stations_loading(struct stations *stations)
{
    const char *name = NULL;
    for (int i = 0; i < stations->count && !name; i++)
        name = models_loading(stations->at[i].models);
    return name;
}

int stations_load_count(struct stations *stations)
{
    int count = 0;
    for (int i = 0; i < stations->count; i++)
        count += models_load_count(stations->at[i].models);
    return count;
}
