/*
 * scale.c: what an autoscaler does with the scheduler's wanted workers: as many at once as are
 * wanted; fewer only after there have been too many for a while, the least busy first. Workers of
 * other pools of the same class count, in the file's order.
 */
#include "simulator/state.h"

static bool is_there(const struct machine *machine)
{
    return machine->life == LIFE_UP || machine->life == LIFE_STARTING ||
           machine->life == LIFE_CRASHED;
}

static uint32_t count_there(const struct sim *sim, const struct pool_state *pool)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < pool->size; i++)
        count += is_there(&sim->machines[pool->first + i]);
    return count;
}

static bool start_some(struct sim *sim, struct pool_state *pool, uint32_t count)
{
    bool started = false;
    for (uint32_t i = 0; i < pool->size && count > 0; i++) {
        struct machine *machine = &sim->machines[pool->first + i];
        if (machine->life != LIFE_ABSENT)
            continue;
        machine_start(sim, machine, false);
        started = true;
        count--;
    }
    return started;
}

/* One that has not begun to work is lost most cheaply, then the one with the fewest jobs. */
static struct machine *cheapest_to_lose(struct sim *sim, const struct pool_state *pool)
{
    struct machine *best = NULL;
    for (uint32_t i = 0; i < pool->size; i++) {
        struct machine *machine = &sim->machines[pool->first + i];
        if (machine->life == LIFE_STARTING)
            return machine;
        if (machine->life == LIFE_UP && (!best || machine->jobs < best->jobs))
            best = machine;
    }
    return best;
}

static void end_some(struct sim *sim, struct pool_state *pool, uint32_t count)
{
    for (; count > 0; count--) {
        struct machine *machine = cheapest_to_lose(sim, pool);
        if (machine)
            machine_leave(sim, machine);
    }
}

static bool follow(struct sim *sim, struct pool_state *pool, uint32_t target)
{
    uint32_t there = count_there(sim, pool);
    if (there <= target)
        pool->surplus_ns = INT64_MAX;
    else if (pool->surplus_ns == INT64_MAX)
        pool->surplus_ns = sim->now_ns;
    if (there < target)
        return start_some(sim, pool, target - there);
    if (there > target && after(sim, -pool->is->scale_idle_s) >= pool->surplus_ns)
        end_some(sim, pool, there - target);
    return false;
}

bool scale_pools(struct sim *sim)
{
    struct scheduler_pool wishes[SCHEDULER_CLASSES_MAX];
    int64_t left[SCHEDULER_CLASSES_MAX];
    double every_s = INFINITY;
    bool started = false;
    scheduler_pools(sim->scheduler, wishes);
    for (uint32_t c = 0; c < policy_class_count(sim->options->policy); c++)
        left[c] = wishes[c].wanted;
    for (uint32_t p = 0; p < sim->fleet->pool_count; p++)
        if (sim->pools[p].is->scale_max == 0)
            left[sim->pools[p].class] -= count_there(sim, &sim->pools[p]);
    for (uint32_t p = 0; p < sim->fleet->pool_count; p++) {
        struct pool_state *pool = &sim->pools[p];
        int64_t target = left[pool->class];
        if (pool->is->scale_max == 0)
            continue;
        if (target < pool->is->scale_min)
            target = pool->is->scale_min;
        if (target > pool->is->scale_max)
            target = pool->is->scale_max;
        left[pool->class] -= target;
        started = follow(sim, pool, (uint32_t)target) || started;
        every_s = fmin(every_s, pool->is->scale_every_s);
    }
    if (isfinite(every_s))
        timer_set(sim, &sim->scale, after(sim, every_s));
    return started;
}
