#include "worker/models.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct entry {
    struct model *model;
    int holders;
    uint64_t used; /* order of the last release */
    bool broken;   /* `err` says why; not tried again */
    struct err err;
};

struct models {
    struct engine *engine;
    const struct catalogue *catalogue;
    pthread_mutex_t lock;
    pthread_cond_t released;
    struct entry *entries; /* as many as the catalogue has */
    uint64_t clock;
    const char *loading;
    models_locate_fn *locate;
    void *user;
    int loads;
};

int models_create(struct models **out, struct engine *engine, const struct catalogue *catalogue,
                  struct err *err)
{
    struct models *models = calloc(1, sizeof(*models));
    *out = NULL;
    if (models)
        models->entries = calloc(catalogue->count, sizeof(*models->entries));
    if (!models || !models->entries) {
        free(models);
        return err_set(err, ERR_MEMORY, ERR_FATAL, "out of memory for the models' list");
    }
    models->engine = engine;
    models->catalogue = catalogue;
    pthread_mutex_init(&models->lock, NULL);
    pthread_cond_init(&models->released, NULL);
    *out = models;
    return 0;
}

void models_free(struct models *models)
{
    if (!models)
        return;
    for (size_t i = 0; i < models->catalogue->count; i++)
        if (models->entries[i].model)
            engine_unload(models->entries[i].model);
    pthread_mutex_destroy(&models->lock);
    pthread_cond_destroy(&models->released);
    free(models->entries);
    free(models);
}

/* Unloads the longest idle model; waits for one to become idle. False when none is loaded but
 * `beside`, which stays. */
static bool make_room(struct models *models, int beside)
{
    pthread_mutex_lock(&models->lock);
    for (;;) {
        struct entry *oldest = NULL;
        bool any = false;
        for (size_t i = 0; i < models->catalogue->count; i++) {
            struct entry *entry = &models->entries[i];
            any = any || (entry->model && (int)i != beside);
            if (entry->model && (int)i != beside && entry->holders == 0 &&
                (!oldest || entry->used < oldest->used))
                oldest = entry;
        }
        if (oldest) {
            struct model *model = oldest->model;
            oldest->model = NULL;
            pthread_mutex_unlock(&models->lock);
            engine_unload(model);
            return true;
        }
        if (!any)
            break;
        pthread_cond_wait(&models->released, &models->lock);
    }
    pthread_mutex_unlock(&models->lock);
    return false;
}

static int find_path(struct models *models, const struct catalogue_model *entry,
                     char path[FILE_PATH_MAX_BYTES], struct err *err)
{
    if (entry->path) {
        snprintf(path, FILE_PATH_MAX_BYTES, "%s", entry->path); /* listed: it fits */
        return 0;
    }
    if (models->locate)
        return models->locate(models->user, entry, path, err);
    return err_set(err, ERR_NOT_FOUND, ERR_REJECT,
                   "model %s is not in the models directory; only workers of a fleet fetch it from "
                   "its source",
                   entry->name);
}

void models_set_locate(struct models *models, models_locate_fn *locate, void *user)
{
    models->locate = locate;
    models->user = user;
}

static int load(struct models *models, int number, int beside, struct model **model,
                struct err *err)
{
    const struct catalogue_model *entry = &models->catalogue->models[number];
    struct model_options options = {.prediction = entry->prediction};
    char path[FILE_PATH_MAX_BYTES];
    if (find_path(models, entry, path, err) != 0)
        return -1;
    do {
        if (engine_load(model, models->engine, path, &options, err) == 0)
            return 0;
    } while (err->code == ERR_MEMORY && make_room(models, beside));
    /* Alone, or beside the one that its job needs with it, it does not fit either. */
    if (err->code == ERR_MEMORY)
        err->class = ERR_REJECT;
    return err_prefix(err, "model %s", entry->name);
}

int models_acquire(struct models *models, int number, int beside, struct model **model,
                   struct err *err)
{
    struct entry *entry = &models->entries[number];
    int rc = 0;
    pthread_mutex_lock(&models->lock);
    if (!entry->model && !entry->broken) {
        struct model *fresh = NULL;
        models->loading = models->catalogue->models[number].name;
        pthread_mutex_unlock(&models->lock);
        rc = load(models, number, beside, &fresh, &entry->err);
        pthread_mutex_lock(&models->lock);
        models->loading = NULL;
        models->loads += rc == 0;
        entry->model = fresh;
        entry->broken = rc != 0 && entry->err.class == ERR_REJECT &&
                        (beside < 0 || entry->err.code != ERR_MEMORY);
    }
    if (entry->model) {
        entry->holders++;
        *model = entry->model;
    } else {
        rc = err_set(err, entry->err.code, entry->err.class, "%s", entry->err.message);
    }
    pthread_mutex_unlock(&models->lock);
    return rc;
}

void models_release(struct models *models, int number)
{
    struct entry *entry = &models->entries[number];
    pthread_mutex_lock(&models->lock);
    ASSERT(entry->holders > 0);
    entry->holders--;
    entry->used = ++models->clock;
    pthread_cond_broadcast(&models->released);
    pthread_mutex_unlock(&models->lock);
}

const char *models_loading(struct models *models)
{
    pthread_mutex_lock(&models->lock);
    const char *name = models->loading;
    pthread_mutex_unlock(&models->lock);
    return name;
}

int models_load_count(struct models *models)
{
    pthread_mutex_lock(&models->lock);
    int loads = models->loads;
    pthread_mutex_unlock(&models->lock);
    return loads;
}

size_t models_resident(struct models *models, int *numbers, size_t max)
{
    size_t count = 0;
    pthread_mutex_lock(&models->lock);
    for (size_t i = 0; i < models->catalogue->count && count < max; i++)
        if (models->entries[i].model)
            numbers[count++] = (int)i;
    pthread_mutex_unlock(&models->lock);
    return count;
}
