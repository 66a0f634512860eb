/*
 * stations.h: the devices of an embedded run. A station is one device with its engine, the models
 * loaded there and a pipeline; a machine has one for its processor, or one for each of its cards.
 *
 * Calls are made by one thread.
 */
#ifndef ATELIER_CLI_STATIONS_H
#define ATELIER_CLI_STATIONS_H

#include "cli/setup.h"
#include "worker/models.h"
#include "worker/pipeline.h"

#include <pthread.h>

#define STATIONS_MAX 16

struct station {
    struct engine *engine;
    struct models *models;
    struct pipeline *pipeline;
};

struct stations {
    struct station at[STATIONS_MAX];
    int count;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    bool woken; /* some task is through */
};

void stations_init(struct stations *stations);

/* Ends the pipelines, see pipeline_free, and closes all. */
void stations_release(struct stations *stations);

/* Opens the engines that the options ask for, at most `max`. On error what was opened is the
 * caller's to release all the same, here as below. */
int stations_open_engines(struct stations *stations, const struct setup_options *options, int max,
                          void (*warn)(void *user, const char *message), void *user,
                          struct err *err) must_check;

int stations_open_models(struct stations *stations, const struct catalogue *catalogue,
                         struct err *err) must_check;

/* Starts the pipelines; of `wanted` engine, models and wake are filled in here. */
int stations_start(struct stations *stations, struct pipeline_options wanted,
                   struct err *err) must_check;

/* A task that is through at any station, or NULL after `timeout_ms`. */
struct task *stations_take(struct stations *stations, int timeout_ms);

void stations_stop(struct stations *stations);

/* Of all stations together; step and size are those of the first that steps. */
struct pipeline_progress stations_progress(struct stations *stations);

/* The name of a model that is being loaded somewhere, or NULL. */
const char *stations_loading(struct stations *stations);
int stations_load_count(struct stations *stations);

#endif
