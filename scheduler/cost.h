/*
 * cost.h: the cost model: how many seconds a picture takes on a device class, and a model to load.
 *
 * A built-in table gives a first guess per device class and model family: seconds per evaluation of
 * the UNet, which grow with the pixels to a power, and fixed seconds per picture and job. Every
 * report of a finished job then corrects it: the ratio of measured to guessed seconds is kept, as
 * an exponentially weighted mean, per (class, model, size) and, for what has not been seen yet, per
 * (class, model), (class, family) and class. A prediction starts from the coarsest and is drawn to
 * the finer the more these have seen.
 *
 * The memory is bounded: the least recently used ratios make room. No I/O; what was learned can be
 * written as JSON and read back. One thread at a time.
 *
 *     cost_create(&cost, NULL, &err);
 *     struct cost_query query = {"a10", "sd15", "realistic-v5", 512, 512, 20, 1, true};
 *     double seconds = cost_predict(cost, &query);
 *     cost_learn(cost, &query, measured_s);
 *     cost_free(cost);
 */
#ifndef ATELIER_SCHEDULER_COST_H
#define ATELIER_SCHEDULER_COST_H

#include "common/buf.h"
#include "common/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cost;
struct json;

struct cost_options {
    uint32_t entries_max; /* ratios that are kept; rounded up to a power of two */
    double learning;      /* weight of a new report, once a few are in */
};
#define COST_OPTIONS_INIT                                                                          \
    {                                                                                              \
        .entries_max = 16384, .learning = 0.1                                                      \
    }

struct cost_query {
    const char *class;  /* device class; one that is not in the table starts as "cpu" */
    const char *family; /* "sd15", "sd21", "sdxl", …; another one starts as "sd15"; may be NULL */
    const char *model;  /* may be NULL */
    int width, height, steps;
    int images;
    bool guidance; /* two evaluations a step */
    double work;   /* of an evaluation beside the model's own, see cost_work; 0: as much */
};

/* `options` may be NULL. */
int cost_create(struct cost **cost, const struct cost_options *options, struct err *err) must_check;
void cost_free(struct cost *cost);

/* How much an evaluation takes beside the family's own where so many ControlNets go with it, each
 * counted by its part of the steps, and where a model of the family `refiner`, or none with NULL,
 * draws the part `refined` of the steps by itself. */
double cost_work(const char *family, double controls, const char *refiner, double refined);

/* Seconds of the whole job, on a worker that has the model. Always above 0. */
double cost_predict(struct cost *cost, const struct cost_query *query);

/* A finished job took `seconds` of a worker's time (shared with others: its share). Values that are
 * not above 0 are ignored; single ones count at most ten times too long or too short. */
void cost_learn(struct cost *cost, const struct cost_query *query, double seconds);

/* Seconds to load a model of so many bytes that is on the worker's disk. */
double cost_switch(struct cost *cost, const char *class, uint64_t bytes);
void cost_learn_switch(struct cost *cost, const char *class, uint64_t bytes, double seconds);

/* What was learned, as a JSON object; and back, in place of what is there. A wrong form is
 * ERR_FORMAT (ERR_REJECT) and leaves the model as built in. */
void cost_write(const struct cost *cost, struct buf *out);
int cost_read(struct cost *cost, const struct json *value, struct err *err) must_check;

#endif
