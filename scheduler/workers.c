/*
 * workers.c: workers by kind and by room, and which of those with room have a model. See state.h.
 */
#include "scheduler/state.h"

#define HASH 0x9E3779B97F4A7C15u
#define CHAIN_WALK_MAX 32

bool can_take(const struct kind *kind, const struct lane *lane)
{
    return lane->allowed & 1u << kind->device_class && (lane->needs & ~kind->offers) == 0 &&
           lane->memory_bytes <= kind->memory_bytes;
}

bool fits(const struct worker *worker, const struct slot *slot)
{
    if (worker->jobs == 0)
        return true;
    return !slot->alone && worker->alone == 0 && worker->jobs < SCHEDULER_WORKER_JOBS_MAX &&
           worker->pictures + slot->pictures <= (uint32_t)worker->is.pictures_max;
}

bool has_model(const struct worker *worker, uint32_t model)
{
    if (worker->has_model && worker->model == model)
        return true;
    for (uint32_t i = 0; i < worker->is.resident_count; i++)
        if (worker->is.resident[i] == model)
            return true;
    return false;
}

/* ---- who has a model ---- */

static struct resident_chain *chain_of(const struct scheduler *s, uint32_t device_class,
                                       uint32_t model)
{
    uint64_t h = (uint64_t)model * SCHEDULER_CLASSES_MAX + device_class;
    return &s->resident_buckets[(h * HASH) >> 32 & s->resident_mask];
}

static void list_model(struct scheduler *s, struct worker *worker, uint32_t model)
{
    struct resident *resident = &worker->residents[worker->resident_count++];
    struct resident_chain *chain = chain_of(s, worker->is.device_class, model);
    bool front = worker->open == IDLE;
    *resident = (struct resident){.model = model,
                                  .worker = worker,
                                  .next = front ? chain->first : NULL,
                                  .prev = front ? NULL : chain->last};
    *(resident->prev ? &resident->prev->next : &chain->first) = resident;
    *(resident->next ? &resident->next->prev : &chain->last) = resident;
}

static void list_models(struct scheduler *s, struct worker *worker)
{
    bool listed = false;
    for (uint32_t i = 0; i < worker->is.resident_count; i++) {
        list_model(s, worker, worker->is.resident[i]);
        listed = listed || (worker->has_model && worker->is.resident[i] == worker->model);
    }
    if (worker->has_model && !listed)
        list_model(s, worker, worker->model);
}

static void unlist_models(struct scheduler *s, struct worker *worker)
{
    while (worker->resident_count > 0) {
        struct resident *resident = &worker->residents[--worker->resident_count];
        struct resident_chain *chain = chain_of(s, worker->is.device_class, resident->model);
        *(resident->prev ? &resident->prev->next : &chain->first) = resident->next;
        *(resident->next ? &resident->next->prev : &chain->last) = resident->prev;
    }
}

struct worker *worker_with_model(const struct scheduler *s, uint32_t device_class,
                                 const struct slot *slot)
{
    const struct profile *profile = &s->profiles[slot->profile];
    const struct resident *resident = chain_of(s, device_class, slot->model)->first;
    for (int i = 0; resident && i < CHAIN_WALK_MAX; resident = resident->next, i++) {
        struct worker *worker = resident->worker;
        if (resident->model == slot->model && worker->is.device_class == device_class &&
            can_take(worker->kind, profile->lane) && fits(worker, slot) &&
            worker->charged_s <= (double)profile->is.switch_s[device_class])
            return worker;
    }
    return NULL;
}

/* ---- lists ---- */

static enum open open_of(const struct worker *worker)
{
    if (!worker->kind)
        return CLOSED;
    if (worker->promised)
        return fits(worker, worker->promised) ? DUE : CLOSED;
    if (worker->jobs == 0)
        return IDLE;
    return worker->alone == 0 && worker->jobs < SCHEDULER_WORKER_JOBS_MAX &&
                   worker->pictures < (uint32_t)worker->is.pictures_max
               ? PARTLY
               : CLOSED;
}

static void unfile(struct scheduler *s, struct worker *worker)
{
    if (worker->open == CLOSED)
        return;
    unlist_models(s, worker);
    *worker->link = worker->next;
    if (worker->next)
        worker->next->link = worker->link;
    worker->open = CLOSED;
}

void refile(struct scheduler *s, struct worker *worker)
{
    unfile(s, worker);
    worker->open = open_of(worker);
    if (worker->open == CLOSED)
        return;
    struct worker **list = worker->open == DUE    ? &s->due
                           : worker->open == IDLE ? &worker->kind->idle
                                                  : &worker->kind->partly;
    worker->next = *list;
    worker->link = list;
    if (worker->next)
        worker->next->link = &worker->next;
    *list = worker;
    if (worker->open != DUE)
        list_models(s, worker);
}

/* ---- kinds ---- */

static void enter_kind(struct scheduler *s, struct worker *worker)
{
    struct pool *pool = &s->pools[worker->is.device_class];
    struct kind *kind = pool->kinds;
    while (kind &&
           (kind->offers != worker->is.offers || kind->memory_bytes != worker->is.memory_bytes))
        kind = kind->next;
    worker->kind = kind;
    if (kind) {
        kind->workers++;
        return;
    }
    kind = s->free_kinds;
    if (kind)
        s->free_kinds = kind->next;
    else
        kind = &s->kinds[s->kinds_used++];
    *kind = (struct kind){.device_class = worker->is.device_class,
                          .offers = worker->is.offers,
                          .memory_bytes = worker->is.memory_bytes,
                          .workers = 1,
                          .next = pool->kinds};
    pool->kinds = kind;
    worker->kind = kind;
    update_takers(s, worker->is.device_class);
}

static void leave_kind(struct scheduler *s, struct worker *worker)
{
    struct kind *kind = worker->kind;
    struct kind **link = &s->pools[kind->device_class].kinds;
    worker->kind = NULL;
    if (--kind->workers > 0)
        return;
    while (*link != kind)
        link = &(*link)->next;
    *link = kind->next;
    kind->next = s->free_kinds;
    s->free_kinds = kind;
    update_takers(s, kind->device_class);
}

/* ---- coming and going ---- */

static void join_pool(struct scheduler *s, struct worker *worker)
{
    struct pool *pool = &s->pools[worker->is.device_class];
    pool->running += worker->jobs;
    pool->running_s += worker->charged_s;
    if (worker->is.draining) {
        pool->draining++;
        return;
    }
    pool->workers++;
    pool->prices += (double)worker->is.price_per_hour;
}

static void quit_pool(struct scheduler *s, struct worker *worker)
{
    struct pool *pool = &s->pools[worker->is.device_class];
    pool->running -= worker->jobs;
    pool->running_s -= worker->charged_s;
    if (worker->is.draining) {
        pool->draining--;
        return;
    }
    pool->prices -= (double)worker->is.price_per_hour;
    if (--pool->workers == 0)
        pool->prices = 0;
}

static bool same_kind(const struct scheduler_worker *a, const struct scheduler_worker *b)
{
    return a->device_class == b->device_class && a->draining == b->draining &&
           a->memory_bytes == b->memory_bytes && a->offers == b->offers;
}

void set_worker(struct scheduler *s, struct worker *worker, const struct scheduler_worker *is)
{
    ASSERT(is->device_class < s->options.classes_max &&
           is->resident_count <= SCHEDULER_RESIDENT_MAX);
    bool moves = !worker->present || !same_kind(&worker->is, is);
    if (moves && worker->promised)
        break_promise(s, worker->promised);
    unfile(s, worker);
    if (worker->present)
        quit_pool(s, worker);
    struct kind *old = worker->kind;
    worker->is = *is;
    worker->present = true;
    join_pool(s, worker);
    if (moves) {
        /* First into the new kind, so that lanes do not move house twice. */
        worker->kind = NULL;
        if (!is->draining)
            enter_kind(s, worker);
        if (old) {
            struct kind *kind = worker->kind;
            worker->kind = old;
            leave_kind(s, worker);
            worker->kind = kind;
        }
    }
    refile(s, worker);
}

void remove_worker(struct scheduler *s, struct worker *worker)
{
    ASSERT(worker->jobs == 0);
    if (worker->promised)
        break_promise(s, worker->promised);
    unfile(s, worker);
    if (worker->present)
        quit_pool(s, worker);
    if (worker->kind)
        leave_kind(s, worker);
    *worker = (struct worker){0};
}

void enter_worker(struct scheduler *s, struct slot *slot, struct worker *worker)
{
    struct pool *pool = &s->pools[worker->is.device_class];
    slot->state = RUNNING;
    slot->worker = (uint32_t)(worker - s->workers);
    slot->prev = NULL;
    slot->next = worker->first;
    if (slot->next)
        slot->next->prev = slot;
    worker->first = slot;
    worker->jobs++;
    worker->alone += slot->alone;
    worker->pictures += slot->pictures;
    worker->charged_s += (double)slot->placed.charged_s;
    pool->running++;
    pool->running_s += (double)slot->placed.charged_s;
    s->count.running++;
    unfile(s, worker);
    worker->model = slot->model;
    worker->width = slot->width;
    worker->height = slot->height;
    worker->has_model = true;
    refile(s, worker);
}

void leave_worker(struct scheduler *s, struct slot *slot)
{
    struct worker *worker = &s->workers[slot->worker];
    struct pool *pool = &s->pools[worker->is.device_class];
    *(slot->prev ? &slot->prev->next : &worker->first) = slot->next;
    if (slot->next)
        slot->next->prev = slot->prev;
    worker->jobs--;
    worker->alone -= slot->alone;
    worker->pictures -= slot->pictures;
    worker->charged_s = worker->jobs ? worker->charged_s - (double)slot->placed.charged_s : 0;
    pool->running--;
    pool->running_s = pool->running ? pool->running_s - (double)slot->placed.charged_s : 0;
    s->count.running--;
    s->tenants[slot->tenant].running--;
    judge_quota(s, slot->tenant);
    refile(s, worker);
}
