#include "scheduler/state.h"

#include <math.h>

const char *waiting_name(enum waiting why)
{
    static const char *const names[] = {
        [WAITING_NOT] = "unknown",      [WAITING_RUNNING] = "running",
        [WAITING_TIME] = "time",        [WAITING_HELD] = "held",
        [WAITING_PAUSED] = "paused",    [WAITING_QUOTA] = "quota",
        [WAITING_WORKER] = "no_worker", [WAITING_CLASS_BUSY] = "class_busy",
        [WAITING_ROOM] = "room",        [WAITING_TURN] = "turn",
    };
    return names[why];
}

const char *placement_name(enum placement placement)
{
    static const char *const names[] = {
        [PLACEMENT_NONE] = "none",         [PLACEMENT_PREFERRED] = "preferred",
        [PLACEMENT_OVERFLOW] = "overflow", [PLACEMENT_NO_WORKER] = "no_better_worker",
        [PLACEMENT_ADOPTED] = "adopted",
    };
    return names[placement];
}

/* ---- a job ---- */

static enum waiting why(const struct scheduler *s, const struct slot *slot)
{
    const struct lane *lane = s->profiles[slot->profile].lane;
    switch (slot->state) {
    case FREE:
        return WAITING_NOT;
    case RUNNING:
        return WAITING_RUNNING;
    case PROMISED:
        return WAITING_ROOM;
    case HELD:
        return WAITING_HELD;
    case DELAYED:
        return WAITING_TIME;
    }
    if (lane->takers == 0)
        return WAITING_WORKER;
    if (s->paused)
        return WAITING_PAUSED;
    if (slot->group->stall->blocked)
        return WAITING_QUOTA;
    return has_open(&s->pools[lane->home], lane) ? WAITING_TURN : WAITING_CLASS_BUSY;
}

/* The work at home that is first, by priority and place: of its own priority, the share of the jobs
 * before it. */
static double expected_start(const struct scheduler *s, const struct slot *slot, uint32_t ahead)
{
    const struct lane *lane = s->profiles[slot->profile].lane;
    const struct pool *pool = &s->pools[lane->home];
    double behind = pool->home_s[slot->class];
    if (lane->takers == 0)
        return -1;
    if (slot->state == READY && pool->ready > 0)
        behind *= 1 - (double)ahead / pool->ready;
    double wait = has_open(pool, lane) && ahead == 0 ? 0 : expected_wait(pool, slot->class, behind);
    if (slot->state == DELAYED) {
        double delay = (double)(slot->wake_ns - s->now_ns) * 1e-9;
        return delay > wait ? delay : wait;
    }
    return wait;
}

static void explain_placed(const struct scheduler *s, const struct slot *slot,
                           struct scheduler_explanation *e)
{
    const struct worker *worker = &s->workers[slot->worker];
    e->worker = slot->worker;
    e->class = worker->is.device_class;
    e->placement = slot->placement;
    e->cost_here = (double)slot->placed.here;
    e->cost_waiting = (double)slot->placed.waiting;
    e->wait_s = (double)slot->placed.wait_s;
    e->price = (double)slot->placed.charged_s * (double)worker->is.price_per_hour / 3600;
    e->start_s = slot->state == RUNNING ? 0 : worker->charged_s;
}

void scheduler_explain(const struct scheduler *s, uint32_t number, struct scheduler_explanation *e)
{
    const struct slot *slot = &s->slots[number];
    *e = (struct scheduler_explanation){.why = why(s, slot),
                                        .preferred = SCHEDULER_CLASS_NONE,
                                        .home = SCHEDULER_CLASS_NONE,
                                        .worker = SCHEDULER_WORKER_NONE,
                                        .class = SCHEDULER_CLASS_NONE,
                                        .start_s = -1};
    ASSERT(number < s->options.jobs_max);
    if (slot->state == FREE)
        return;
    const struct lane *lane = s->profiles[slot->profile].lane;
    e->preferred = lane->route[0];
    e->home = lane_home(lane);
    e->attempt = (int)slot->attempt;
    e->crashes = slot->crashes;
    e->alone = slot->alone;
    for (int i = 0; i < lane->route_count; i++)
        e->seconds[lane->route[i]] = seconds_on(s, slot, lane->route[i]);
    if (slot->state == RUNNING || slot->state == PROMISED) {
        explain_placed(s, slot, e);
        return;
    }
    const struct pool *pool = &s->pools[e->home];
    if (slot->state == READY)
        e->ahead = order_before(&pool->order, slot->place);
    if (pool->workers > 0)
        e->price = e->seconds[e->home] * pool->prices / pool->workers / 3600;
    if (slot->state != HELD)
        e->start_s = expected_start(s, slot, e->ahead);
}

/* ---- pools ---- */

void scheduler_pools(const struct scheduler *s, struct scheduler_pool out[])
{
    for (uint32_t c = 0; c < s->options.classes_max; c++) {
        const struct pool *pool = &s->pools[c];
        double work = pool->preferring_s + pool->running_s;
        out[c] = (struct scheduler_pool){
            .workers = pool->workers,
            .draining = pool->draining,
            .queued = pool->preferring,
            .running = pool->running,
            .queued_s = pool->preferring_s,
            .running_s = pool->running_s,
            .wait_s = expected_wait(pool, CLASS_BULK, 0),
            .price_per_hour = pool->workers ? pool->prices / pool->workers : 0,
            .wanted = (uint32_t)ceil(work / s->options.target_wait_s),
        };
        for (const struct kind *kind = pool->kinds; kind; kind = kind->next) {
            for (const struct worker *w = kind->idle; w; w = w->next)
                out[c].idle++;
            for (const struct worker *w = kind->partly; w; w = w->next)
                out[c].open++;
        }
        out[c].open += out[c].idle;
    }
}
