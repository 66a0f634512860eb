/*
 * fleet.h: the fleet that a simulation is about: pools of workers, and the models that jobs name,
 * from a JSON file (docs/simulate.md):
 *
 *     {"pools": {"a10": {"workers": 4, "pictures_max": 8, "memory_gb": 24, "start_s": 120,
 *                        "scale": {"min": 1, "max": 20}}},
 *      "models": {"sdxl": {"family": "sdxl", "gb": 6.9}, "*": {"family": "sd15", "gb": 2}}}
 *
 * Models get numbers as they are met: "*" stands for each that the file does not name. Strings live
 * as long as the fleet.
 */
#ifndef ATELIER_SIMULATOR_FLEET_H
#define ATELIER_SIMULATOR_FLEET_H

#include "common/err.h"
#include "common/names.h"
#include "schema/catalogue.h"

#include <stdbool.h>
#include <stdint.h>

#define FLEET_POOLS_MAX 32
#define FLEET_WORKERS_MAX 100000 /* of all pools */
#define FLEET_MODELS_MAX 65536

struct json_doc;

/* Workers that are alike. */
struct fleet_pool {
    const char *name;
    const char *class; /* of devices, as the policy names it */
    int64_t workers;   /* at the beginning */
    int64_t pictures_max;
    uint64_t memory_bytes; /* for models */
    uint32_t offers;       /* enum need */
    double price_per_hour; /* negative: what the policy says of the class */
    double speed;          /* times the cost model's */
    double batch_speed;    /* how much faster a full worker is than one with a single picture */
    double start_s;        /* from the wish for a worker to its first job */
    double crashes_per_hour;
    double reclaims_per_hour; /* of a spot machine ... */
    double notice_s;          /* ... so long before it is taken away */
    /* What follows the scheduler's wanted workers; max 0: nothing does. */
    int64_t scale_min, scale_max;
    double scale_every_s, scale_idle_s; /* how often; how long too many workers are kept */
};

struct fleet {
    const char *file; /* as errors call it */
    struct fleet_pool pools[FLEET_POOLS_MAX];
    uint32_t pool_count;
    struct names model_names;
    struct catalogue_model *models; /* by number */
    uint32_t models_cap;
    struct catalogue_model others; /* "*" */
    bool has_others;
    double noise;    /* how far real times are from predicted ones: a log-normal's sigma */
    double failures; /* 0 … 1: attempts that fail and are repeated */
    struct json_doc *doc;
};

/* `path` is borrowed. On error nothing is left to release. */
int fleet_read(struct fleet *fleet, const char *path, struct err *err) must_check;
int fleet_parse(struct fleet *fleet, const char *text, size_t len, const char *name,
                struct err *err) must_check;
void fleet_release(struct fleet *fleet);

/* Adds the models of a catalogue, which is borrowed; the file's own stay as they are. */
int fleet_add_catalogue(struct fleet *fleet, const struct catalogue *catalogue,
                        struct err *err) must_check;

/* The model's number; NAMES_NONE, and the error, where it is not named and there is no "*". */
uint32_t fleet_model(struct fleet *fleet, const char *name, struct err *err);

/* The most workers there can be at once. */
uint32_t fleet_workers_max(const struct fleet *fleet);

#endif
