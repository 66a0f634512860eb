#include "simulator/fleet.h"

#include "common/file.h"
#include "common/json_read.h"
#include "common/nearest.h"
#include "scheduler/profiles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLEET_MAX_BYTES (8u << 20)
#define GB 1e9
#define PICTURES_MAX 128 /* SCHEDULER_WORKER_JOBS_MAX */

/* ---- pools ---- */

static int read_scale(const struct json_reader *r, const struct json *value, const char *place,
                      struct fleet_pool *pool)
{
    static const char *const known[] = {"min", "max", "every_s", "idle_s"};
    char at[JSON_PLACE_MAX_BYTES];
    if (!value)
        return 0;
    snprintf(at, sizeof(at), "%.200s.scale", place);
    if (JSON_CHECK_OBJECT(r, value, at, known) != 0 ||
        json_read_count(r, value, at, "min", 0, FLEET_WORKERS_MAX, &pool->scale_min) != 0 ||
        json_read_count(r, value, at, "max", 1, FLEET_WORKERS_MAX, &pool->scale_max) != 0 ||
        json_read_number(r, value, at, "every_s", 1, &pool->scale_every_s) != 0 ||
        json_read_number(r, value, at, "idle_s", 0, &pool->scale_idle_s) != 0)
        return -1;
    if (pool->scale_max == 0)
        return json_refuse(r, at, "needs \"max\", the most workers there may be");
    if (pool->scale_min > pool->scale_max)
        return json_refuse(r, at, "\"min\" is above \"max\"; swap them");
    return 0;
}

static int read_text(const struct json_reader *r, const struct json *object, const char *place,
                     const char *key, const char **out)
{
    char at[JSON_PLACE_MAX_BYTES];
    const struct json *value = json_get(object, key);
    if (!value)
        return 0;
    snprintf(at, sizeof(at), "%.200s.%s", place, key);
    if (value->type != JSON_STRING || value->text_len == 0)
        return json_refuse(r, at, "must be a name");
    *out = value->text;
    return 0;
}

static int read_offers(const struct json_reader *r, const struct json *value, const char *place,
                       struct fleet_pool *pool)
{
    const char *precisions = "f32,bf16";
    const struct json *confidential = json_get(value, "confidential");
    if (read_text(r, value, place, "precisions", &precisions) != 0)
        return -1;
    pool->offers = need_precisions(precisions);
    if (pool->offers == 0)
        return json_refuse(r, place, "\"precisions\" must name f32, bf16 or both: \"f32,bf16\"");
    if (confidential && confidential->type != JSON_BOOL)
        return json_refuse(r, place, "\"confidential\" must be true or false");
    if (confidential && confidential->boolean)
        pool->offers |= NEED_CONFIDENTIAL;
    return 0;
}

static int read_pool(const struct json_reader *r, const struct json *value, struct fleet *fleet)
{
    static const char *const known[] = {
        "class",       "workers",      "pictures_max",     "memory_gb",
        "precisions",  "confidential", "price_per_hour",   "speed",
        "batch_speed", "start_s",      "crashes_per_hour", "reclaims_per_hour",
        "notice_s",    "scale",
    };
    char place[JSON_PLACE_MAX_BYTES];
    double memory_gb = 0;
    struct fleet_pool pool = {.name = value->key,
                              .class = value->key,
                              .workers = 1,
                              .pictures_max = 1,
                              .price_per_hour = -1,
                              .speed = 1,
                              .batch_speed = 1,
                              .notice_s = 30,
                              .scale_every_s = 30,
                              .scale_idle_s = 300};
    snprintf(place, sizeof(place), "pools.%.128s", value->key);
    if (JSON_CHECK_OBJECT(r, value, place, known) != 0 ||
        read_text(r, value, place, "class", &pool.class) != 0 ||
        json_read_count(r, value, place, "workers", 0, FLEET_WORKERS_MAX, &pool.workers) != 0 ||
        json_read_count(r, value, place, "pictures_max", 1, PICTURES_MAX, &pool.pictures_max) !=
            0 ||
        json_read_number(r, value, place, "memory_gb", 0, &memory_gb) != 0 ||
        json_read_number(r, value, place, "price_per_hour", 0, &pool.price_per_hour) != 0 ||
        json_read_number(r, value, place, "speed", 1e-6, &pool.speed) != 0 ||
        json_read_number(r, value, place, "batch_speed", 1, &pool.batch_speed) != 0 ||
        json_read_number(r, value, place, "start_s", 0, &pool.start_s) != 0 ||
        json_read_number(r, value, place, "crashes_per_hour", 0, &pool.crashes_per_hour) != 0 ||
        json_read_number(r, value, place, "reclaims_per_hour", 0, &pool.reclaims_per_hour) != 0 ||
        json_read_number(r, value, place, "notice_s", 0, &pool.notice_s) != 0 ||
        read_offers(r, value, place, &pool) != 0 ||
        read_scale(r, json_get(value, "scale"), place, &pool) != 0)
        return -1;
    if (memory_gb <= 0)
        return json_refuse(r, place, "needs \"memory_gb\", what models may take of its memory");
    pool.memory_bytes = (uint64_t)(memory_gb * GB);
    if (pool.scale_max > 0 && (pool.workers < pool.scale_min || pool.workers > pool.scale_max))
        pool.workers = pool.scale_min;
    fleet->pools[fleet->pool_count++] = pool;
    return 0;
}

static int read_pools(const struct json_reader *r, const struct json *pools, struct fleet *fleet)
{
    if (!pools || pools->type != JSON_OBJECT || pools->count == 0)
        return json_refuse(r, "pools",
                           "must be an object with at least one pool of workers, such as "
                           "{\"a10\": {\"workers\": 4, \"pictures_max\": 8, \"memory_gb\": 24}}");
    if (pools->count > FLEET_POOLS_MAX)
        return json_refuse(r, "pools", "holds %zu pools; at most %d", pools->count,
                           FLEET_POOLS_MAX);
    for (const struct json *value = pools->child; value; value = value->next)
        if (read_pool(r, value, fleet) != 0)
            return -1;
    if (fleet_workers_max(fleet) > FLEET_WORKERS_MAX)
        return json_refuse(r, "pools", "hold up to %u workers together; at most %d",
                           fleet_workers_max(fleet), FLEET_WORKERS_MAX);
    return 0;
}

uint32_t fleet_workers_max(const struct fleet *fleet)
{
    int64_t sum = 0;
    for (uint32_t i = 0; i < fleet->pool_count; i++) {
        const struct fleet_pool *pool = &fleet->pools[i];
        sum += pool->scale_max > 0 ? pool->scale_max : pool->workers;
    }
    return (uint32_t)sum;
}

/* ---- models ---- */

static int enter(struct fleet *fleet, const char *name, const struct catalogue_model *is,
                 struct err *err)
{
    uint32_t count = fleet->model_names.count;
    if (count == fleet->models_cap) {
        uint32_t cap = fleet->models_cap ? fleet->models_cap * 2 : 64;
        void *bigger = realloc(fleet->models, cap * sizeof(*fleet->models));
        if (!bigger)
            return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for models");
        fleet->models = bigger;
        fleet->models_cap = cap;
    }
    uint32_t number = names_enter(&fleet->model_names, name);
    if (number == NAMES_NONE)
        return err_set(err, ERR_LIMIT, ERR_FATAL, "more than %d models", FLEET_MODELS_MAX);
    if (number == count) {
        fleet->models[number] = *is;
        fleet->models[number].name = fleet->model_names.names[number];
    }
    return 0;
}

static int check_choice(const struct json_reader *r, const char *place, const char *key,
                        const char *text, const char *const choices[], size_t count)
{
    char at[JSON_PLACE_MAX_BYTES], hint[NEAREST_HINT_BYTES], list[128];
    size_t len = 0;
    for (size_t i = 0; i < count; i++) {
        if (!text || strcmp(text, choices[i]) == 0)
            return 0;
        len += (size_t)snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", choices[i]);
    }
    snprintf(at, sizeof(at), "%.200s.%s", place, key);
    nearest_hint(hint, text, choices, count);
    return json_refuse(r, at, "\"%.80s\" is none of %s%s", text, list, hint);
}

static int read_model(const struct json_reader *r, const struct json *value, struct fleet *fleet)
{
    static const char *const known[] = {"family", "gb",    "tier",          "width",
                                        "height", "steps", "guidance_scale"};
    static const char *const families[] = {"sd15", "sd21", "sdxl", "sdxl-refiner"};
    static const char *const tiers[] = {"fast", "standard", "premium"};
    char place[JSON_PLACE_MAX_BYTES];
    int64_t width = 0, height = 0, steps = 0;
    double gb = 0;
    struct catalogue_model model = {.guidance_scale = -1};
    snprintf(place, sizeof(place), "models.%.128s", value->key);
    if (JSON_CHECK_OBJECT(r, value, place, known) != 0 ||
        read_text(r, value, place, "family", &model.family) != 0 ||
        check_choice(r, place, "family", model.family, families, 4) != 0 ||
        read_text(r, value, place, "tier", &model.tier) != 0 ||
        check_choice(r, place, "tier", model.tier, tiers, 3) != 0 ||
        json_read_number(r, value, place, "gb", 0, &gb) != 0 ||
        json_read_count(r, value, place, "width", 64, JOB_SIZE_MAX, &width) != 0 ||
        json_read_count(r, value, place, "height", 64, JOB_SIZE_MAX, &height) != 0 ||
        json_read_count(r, value, place, "steps", 1, 500, &steps) != 0 ||
        json_read_number(r, value, place, "guidance_scale", 0, &model.guidance_scale) != 0)
        return -1;
    model.bytes = (uint64_t)(gb * GB);
    model.width = (int)width;
    model.height = (int)height;
    model.steps = (int)steps;
    if (strcmp(value->key, "*") != 0)
        return enter(fleet, value->key, &model, r->err);
    fleet->others = model;
    fleet->has_others = true;
    return 0;
}

static int read_models(const struct json_reader *r, const struct json *models, struct fleet *fleet)
{
    if (!models)
        return 0;
    if (models->type != JSON_OBJECT)
        return json_refuse(r, "models", "must be an object of models by their names");
    for (const struct json *value = models->child; value; value = value->next)
        if (read_model(r, value, fleet) != 0)
            return -1;
    return 0;
}

int fleet_add_catalogue(struct fleet *fleet, const struct catalogue *catalogue, struct err *err)
{
    for (size_t i = 0; i < catalogue->count; i++)
        if (enter(fleet, catalogue->models[i].name, &catalogue->models[i], err) != 0)
            return -1;
    return 0;
}

uint32_t fleet_model(struct fleet *fleet, const char *name, struct err *err)
{
    char hint[NEAREST_HINT_BYTES];
    uint32_t number = names_find(&fleet->model_names, name);
    if (number != NAMES_NONE)
        return number;
    if (fleet->has_others) {
        if (enter(fleet, name, &fleet->others, err) != 0)
            return NAMES_NONE;
        return names_find(&fleet->model_names, name);
    }
    nearest_hint(hint, name, (const char *const *)fleet->model_names.names,
                 fleet->model_names.count);
    err_set(err, ERR_NOT_FOUND, ERR_FATAL,
            "model: \"%.80s\" is not under \"models\" of %s%s; name it there, or \"*\" for all "
            "others",
            name, fleet->file, hint);
    return NAMES_NONE;
}

/* ---- the file ---- */

static int read_fleet(const struct json_reader *r, struct fleet *fleet)
{
    static const char *const known[] = {"pools", "models", "noise", "failures"};
    const struct json *root = json_root(fleet->doc);
    if (JSON_CHECK_OBJECT(r, root, "", known) != 0 ||
        read_pools(r, json_get(root, "pools"), fleet) != 0 ||
        read_models(r, json_get(root, "models"), fleet) != 0 ||
        json_read_number(r, root, "", "noise", 0, &fleet->noise) != 0 ||
        json_read_number(r, root, "", "failures", 0, &fleet->failures) != 0)
        return -1;
    if (fleet->failures >= 1)
        return json_refuse(r, "failures", "must be below 1: the part of attempts that fail");
    return 0;
}

int fleet_parse(struct fleet *fleet, const char *text, size_t len, const char *name,
                struct err *err)
{
    struct json_reader reader = {name, err};
    *fleet = (struct fleet){.file = name};
    names_init(&fleet->model_names, FLEET_MODELS_MAX);
    if (json_parse(&fleet->doc, text, len, NULL, err) != 0) {
        err->class = ERR_FATAL;
        return err_prefix(err, "%s", name);
    }
    if (read_fleet(&reader, fleet) != 0) {
        fleet_release(fleet);
        return -1;
    }
    return 0;
}

int fleet_read(struct fleet *fleet, const char *path, struct err *err)
{
    struct buf text;
    buf_init(&text, FLEET_MAX_BYTES);
    int rc = file_read(&text, path, err);
    if (rc == 0)
        rc = fleet_parse(fleet, text.data, text.len, path, err);
    buf_release(&text);
    return rc;
}

void fleet_release(struct fleet *fleet)
{
    names_release(&fleet->model_names);
    free(fleet->models);
    json_doc_free(fleet->doc);
    *fleet = (struct fleet){0};
}
