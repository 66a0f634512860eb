#include "worker/models.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum part_kind { PART_LORA, PART_CONTROL };

/* What stands beside a model: one of the two. */
struct part {
    struct part *next;
    struct adapter *adapter;
    struct control *control;
    enum part_kind kind;
    int holders;
    uint64_t used; /* order of the last release */
    char name[MODELS_ADAPTER_NAME_BYTES];
};

struct entry {
    struct model *model;
    struct part *parts; /* of that model; they go with it */
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

/* Forgets the parts of a model that is being unloaded. */
static void forget_parts(struct entry *entry)
{
    while (entry->parts) {
        struct part *first = entry->parts;
        entry->parts = first->next;
        free(first);
    }
}

void models_free(struct models *models)
{
    if (!models)
        return;
    for (size_t i = 0; i < models->catalogue->count; i++) {
        forget_parts(&models->entries[i]);
        if (models->entries[i].model)
            engine_unload(models->entries[i].model);
    }
    pthread_mutex_destroy(&models->lock);
    pthread_cond_destroy(&models->released);
    free(models->entries);
    free(models);
}

static void unload_part(const struct part *part)
{
    if (part->kind == PART_LORA)
        engine_unload_adapter(part->adapter);
    else
        engine_unload_control(part->control);
}

/* Unloads the part that was idle longest; false when none is idle. */
static bool drop_part(struct models *models)
{
    struct part **oldest = NULL, *dropped = NULL;
    pthread_mutex_lock(&models->lock);
    for (size_t i = 0; i < models->catalogue->count; i++)
        for (struct part **at = &models->entries[i].parts; *at; at = &(*at)->next)
            if ((*at)->holders == 0 && (!oldest || (*at)->used < (*oldest)->used))
                oldest = at;
    if (oldest) {
        dropped = *oldest;
        *oldest = dropped->next;
    }
    pthread_mutex_unlock(&models->lock);
    if (!dropped)
        return false;
    unload_part(dropped);
    free(dropped);
    return true;
}

/* The idle model that was used longest ago, or NULL. The lock is held. */
static struct entry *oldest_idle(struct models *models, int beside)
{
    struct entry *oldest = NULL;
    for (size_t i = 0; i < models->catalogue->count; i++) {
        struct entry *entry = &models->entries[i];
        if (entry->model && (int)i != beside && entry->holders == 0 &&
            (!oldest || entry->used < oldest->used))
            oldest = entry;
    }
    return oldest;
}

/* The lock is held, and not afterwards. */
static void drop_model(struct models *models, struct entry *entry)
{
    struct model *model = entry->model;
    entry->model = NULL;
    forget_parts(entry);
    pthread_mutex_unlock(&models->lock);
    engine_unload(model);
}

bool models_drop_idle(struct models *models)
{
    if (drop_part(models))
        return true;
    pthread_mutex_lock(&models->lock);
    struct entry *oldest = oldest_idle(models, -1);
    if (oldest)
        drop_model(models, oldest);
    else
        pthread_mutex_unlock(&models->lock);
    return oldest != NULL;
}

bool models_make_room(struct models *models, int beside)
{
    if (drop_part(models))
        return true;
    pthread_mutex_lock(&models->lock);
    for (;;) {
        struct entry *oldest = oldest_idle(models, beside);
        bool any = false;
        for (size_t i = 0; i < models->catalogue->count; i++)
            any = any || (models->entries[i].model && (int)i != beside);
        if (oldest) {
            drop_model(models, oldest);
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
    } while (err->code == ERR_MEMORY && models_make_room(models, beside));
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

/* ---- parts ---- */

/* What a job calls them, and where they lie in the models directory. */
static const char *const fields[] = {[PART_LORA] = "loras", [PART_CONTROL] = "controlnets"};

static int load_file(struct part *part, struct model *model, const char *path, struct err *err)
{
    return part->kind == PART_LORA ? engine_load_adapter(&part->adapter, model, path, err)
                                   : engine_load_control(&part->control, model, path, err);
}

static int load_part(struct models *models, int number, struct part *part, struct err *err)
{
    const char *field = fields[part->kind];
    char path[FILE_PATH_MAX_BYTES];
    if (catalogue_adapter(models->catalogue, field, part->name, path, err) != 0) {
        err->class = ERR_RETRY;
        return err_prefix(err, "%s: \"%.80s\"", field, part->name);
    }
    do {
        if (load_file(part, models->entries[number].model, path, err) == 0)
            return 0;
    } while (err->code == ERR_MEMORY && models_make_room(models, number));
    if (err->code == ERR_MEMORY)
        err->class = ERR_REJECT;
    return err_prefix(err, "%s: \"%.80s\"", field, part->name);
}

/* The part if it is loaded, held once more; else NULL. */
static struct part *hold_part(struct models *models, int number, enum part_kind kind,
                              const char *name)
{
    pthread_mutex_lock(&models->lock);
    struct part *at = models->entries[number].parts;
    while (at && (at->kind != kind || strcmp(at->name, name) != 0))
        at = at->next;
    if (at)
        at->holders++;
    pthread_mutex_unlock(&models->lock);
    return at;
}

static int acquire_part(struct models *models, int number, enum part_kind kind, const char *name,
                        struct part **out, struct err *err)
{
    struct entry *entry = &models->entries[number];
    struct part *part = hold_part(models, number, kind, name);
    *out = part;
    if (part)
        return 0;
    part = calloc(1, sizeof(*part));
    if (!part)
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for an adapter");
    part->kind = kind;
    part->holders = 1;
    snprintf(part->name, sizeof(part->name), "%s", name);
    if (load_part(models, number, part, err) != 0) {
        free(part);
        return -1;
    }
    pthread_mutex_lock(&models->lock);
    part->next = entry->parts;
    entry->parts = part;
    pthread_mutex_unlock(&models->lock);
    *out = part;
    return 0;
}

/* The one that is not NULL. */
static void release_part(struct models *models, int number, const struct adapter *adapter,
                         const struct control *control)
{
    pthread_mutex_lock(&models->lock);
    struct part *at = models->entries[number].parts;
    while (at && (at->adapter != adapter || at->control != control))
        at = at->next;
    ASSERT(at && at->holders > 0);
    at->holders--;
    at->used = ++models->clock;
    pthread_mutex_unlock(&models->lock);
}

int models_acquire_adapter(struct models *models, int number, const char *name,
                           struct adapter **adapter, struct err *err)
{
    struct part *part;
    if (acquire_part(models, number, PART_LORA, name, &part, err) != 0)
        return -1;
    *adapter = part->adapter;
    return 0;
}

void models_release_adapter(struct models *models, int number, const struct adapter *adapter)
{
    release_part(models, number, adapter, NULL);
}

int models_acquire_control(struct models *models, int number, const char *name,
                           struct control **control, struct err *err)
{
    struct part *part;
    if (acquire_part(models, number, PART_CONTROL, name, &part, err) != 0)
        return -1;
    *control = part->control;
    return 0;
}

void models_release_control(struct models *models, int number, const struct control *control)
{
    release_part(models, number, NULL, control);
}

size_t models_resident_adapters(struct models *models, char names[][MODELS_ADAPTER_NAME_BYTES],
                                size_t max)
{
    size_t count = 0;
    pthread_mutex_lock(&models->lock);
    for (size_t i = 0; i < models->catalogue->count; i++)
        for (struct part *at = models->entries[i].parts; at && count < max; at = at->next) {
            size_t same = 0;
            while (same < count && strcmp(names[same], at->name) != 0)
                same++;
            if (same == count)
                snprintf(names[count++], MODELS_ADAPTER_NAME_BYTES, "%s", at->name);
        }
    pthread_mutex_unlock(&models->lock);
    return count;
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
