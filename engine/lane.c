#include "engine/lane.h"

#include "engine/runtime.h"

static void enter(struct engine *engine, struct lane *lane)
{
    uint64_t number = lane->next++;

    while (lane->serving != number)
        fair_lock_wait(&engine->lock);
}

static void leave(struct lane *lane)
{
    lane->serving++;
}

size_t lanes_bytes(const struct engine *engine)
{
    size_t bytes = 0;

    for (int i = 0; i < BACKEND_LANES_MAX; i++)
        bytes += engine->lanes[i].bytes;
    return bytes;
}

static void empty(struct engine *engine, struct lane *lane)
{
    engine->backend->ops->memory_free(engine->backend, lane->memory, lane->bytes);
    lane->memory = NULL;
    lane->bytes = 0;
}

/* Makes the lane's arena that large; false when the device has no room. */
static bool grow(struct engine *engine, struct lane *lane, size_t bytes)
{
    if (bytes <= lane->bytes)
        return true;
    empty(engine, lane);
    lane->memory = engine->backend->ops->memory_alloc(engine->backend, bytes);
    if (lane->memory == NULL)
        return false;
    lane->bytes = bytes;
    return true;
}

/* The same within the budget, beside the other lanes' arenas. */
static bool grow_beside(struct engine *engine, struct lane *lane, size_t bytes)
{
    size_t others = lanes_bytes(engine) - lane->bytes;

    if (bytes > lane->bytes &&
        engine->backend->weights_bytes + others + bytes > engine->memory_max_bytes)
        return false;
    return grow(engine, lane, bytes);
}

/* The first lane takes what memory the others have, if it must. */
static struct lane *enter_first(struct engine *engine, size_t bytes)
{
    struct lane *first = &engine->lanes[0];

    enter(engine, first);
    if (grow_beside(engine, first, bytes))
        return first;
    for (int i = 1; i < engine->backend->lanes; i++) {
        enter(engine, &engine->lanes[i]);
        empty(engine, &engine->lanes[i]);
        leave(&engine->lanes[i]);
    }
    if (grow(engine, first, bytes))
        return first;
    leave(first);
    return NULL;
}

static struct lane *lane_of(struct engine *engine, enum work work)
{
    return &engine->lanes[work == WORK_STEP ? 0 : engine->backend->lanes - 1];
}

/* The lane for the work, with an arena of so many bytes; NULL when the device has no room. */
static struct lane *enter_any(struct engine *engine, enum work work, size_t bytes)
{
    struct lane *own = lane_of(engine, work);

    if (own != &engine->lanes[0]) {
        enter(engine, own);
        if (grow_beside(engine, own, bytes))
            return own;
        leave(own);
    }
    return enter_first(engine, bytes);
}

bool engine_lost(const struct engine *engine, struct err *err)
{
    const struct backend *backend = engine->backend;
    const char *why = backend->ops->failure != NULL ? backend->ops->failure(backend) : NULL;

    if (why != NULL)
        err_set(err, ERR_DEVICE, ERR_FATAL, "%s", why);
    return why != NULL;
}

static int no_memory(const struct engine *engine, size_t bytes, struct err *err)
{
    if (!engine_lost(engine, err))
        err_set(err, ERR_MEMORY, ERR_RETRY, "the device has no memory for %zu MiB of activations",
                (bytes >> 20) + 1);
    return -1;
}

int work_reserve(struct model *model, const struct work_plan *plans, int count, struct err *err)
{
    struct engine *engine = model->engine;

    for (int i = 0; i < count; i++) {
        struct lane *lane = lane_of(engine, plans[i].work);
        if (plans[i].arena_bytes <= lane->bytes || plans[i].arena_bytes <= engine->lanes[0].bytes)
            continue; /* without waiting for a step */
        lane = enter_any(engine, plans[i].work, plans[i].arena_bytes);
        if (lane == NULL)
            return no_memory(engine, plans[i].arena_bytes, err);
        leave(lane);
    }
    return 0;
}

int work_begin(struct model *model, const struct work_plan *plan, struct pass *pass,
               struct err *err)
{
    struct engine *engine = model->engine;
    struct lane *lane = enter_any(engine, plan->work, plan->arena_bytes);

    if (lane == NULL)
        return no_memory(engine, plan->arena_bytes, err);
    arena_init(&lane->arena, lane->memory, lane->bytes);
    *pass = pass_begin(engine->backend, (int)(lane - engine->lanes), &lane->arena,
                       work_act(model, plan->work), err);
    pass->profile = engine->profile;
    return 0;
}

void work_end(struct model *model, const struct pass *pass)
{
    leave(&model->engine->lanes[pass->lane]);
}

bool lanes_spare(struct engine *engine)
{
    for (int i = 1; i < engine->backend->lanes; i++) {
        struct lane *lane = &engine->lanes[i];
        if (lane->next == lane->serving && lane->bytes > 0) {
            empty(engine, lane);
            return true;
        }
    }
    return false;
}

void lanes_release(struct engine *engine)
{
    for (int i = 0; i < engine->backend->lanes; i++) {
        enter(engine, &engine->lanes[i]);
        empty(engine, &engine->lanes[i]);
        leave(&engine->lanes[i]);
    }
}
