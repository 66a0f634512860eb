/*
 * place.c: which job a worker with room gets, and whether a job may leave home for it.
 *
 * A job away from home costs what it costs there: seconds and loading at the worker's price, and
 * being late. It goes only if that is less than every better class of its route asks, where the
 * expected wait (queued and running work there, by the workers there) counts at the stated worth of
 * waiting. A better class with room is always waited for: its turn comes in the same step.
 */
#include "scheduler/state.h"

#define AISLE_WALK_MAX 64
#define PARTLY_WALK_MAX 16

struct choice {
    struct slot *slot; /* NULL: nothing */
    enum placement placement;
    struct placed placed;
};

/* ---- what waiting costs ---- */

bool has_open(const struct pool *pool, const struct lane *lane)
{
    for (const struct kind *kind = pool->kinds; kind; kind = kind->next)
        if ((kind->idle || kind->partly) && can_take(kind, lane))
            return true;
    return false;
}

double expected_wait(const struct pool *pool, enum job_class class, double own_s)
{
    double work = pool->running_s - own_s;
    for (int better = 0; better <= (int)class; better++)
        work += pool->home_s[better];
    return pool->workers > 0 && work > 0 ? work / pool->workers : 0;
}

static double cost_of(const struct scheduler *s, const struct slot *slot, double seconds,
                      double price_per_hour, double wait_s)
{
    double late = 0;
    if (slot->deadline_ns != SCHEDULER_TIME_NONE) {
        double left = (double)(slot->deadline_ns - s->now_ns) * 1e-9;
        late = wait_s + seconds > left ? wait_s + seconds - left : 0;
    }
    return (seconds * price_per_hour + wait_s * s->options.waiting_per_hour +
            late * s->options.lateness_per_hour) /
           3600;
}

static double switch_s(const struct scheduler *s, const struct worker *worker,
                       const struct slot *slot)
{
    uint32_t class = worker->is.device_class;
    if (has_model(worker, slot->model) || worker_with_model(s, class, slot))
        return 0;
    return (double)s->profiles[slot->profile].is.switch_s[class];
}

/* Whether the job may go to the worker, and what was compared. */
static bool may_go(const struct scheduler *s, const struct worker *worker, struct choice *choice)
{
    const struct slot *slot = choice->slot;
    const struct lane *lane = s->profiles[slot->profile].lane;
    uint32_t class = worker->is.device_class;
    double seconds = seconds_on(s, slot, class), least = -1;
    double here =
        cost_of(s, slot, seconds + switch_s(s, worker, slot), (double)worker->is.price_per_hour, 0);
    choice->placed = (struct placed){.charged_s = (float)seconds, .here = (float)here};
    choice->placement = lane->route[0] == class ? PLACEMENT_PREFERRED : PLACEMENT_NO_WORKER;
    for (int i = 0; i < lane->route_count && lane->route[i] != class; i++) {
        uint32_t better = lane->route[i];
        const struct pool *pool = &s->pools[better];
        if (!(lane->takers & 1u << better))
            continue;
        if (has_open(pool, lane))
            return false;
        double there = seconds_on(s, slot, better);
        double wait = expected_wait(pool, slot->class, lane->home == better ? there : 0);
        double price = pool->prices / pool->workers;
        double cost = cost_of(s, slot, there, price, wait);
        if (lane->home == better)
            choice->placed.wait_s = (float)wait;
        if (least < 0 || cost < least)
            least = cost;
        choice->placement = PLACEMENT_OVERFLOW;
    }
    choice->placed.waiting = least < 0 ? 0 : (float)least;
    return least < 0 || here < least;
}

/* ---- choosing ---- */

/* The oldest job of a home that the worker can take, if it has been overtaken enough. */
static struct slot *starving(const struct scheduler *s, const struct worker *worker, uint32_t home)
{
    struct slot *oldest = NULL;
    for (const struct lane *lane = s->busy; lane; lane = lane->next) {
        if (lane->home != home || !lane->ages.top || !can_take(worker->kind, lane))
            continue;
        struct slot *slot = FROM_NODE(struct stall, by_age, lane->ages.top)->first;
        if (!oldest || slot->place < oldest->place)
            oldest = slot;
    }
    return oldest && overtaken(s, oldest) >= s->options.overtake_max ? oldest : NULL;
}

static bool is_urgent(const struct scheduler *s, const struct slot *slot)
{
    return slot->deadline_ns != SCHEDULER_TIME_NONE &&
           slot->deadline_ns - s->now_ns <
               s->options.urgent_ns + (int64_t)(seconds_preferred(s, slot) * 1e9);
}

/* A shelf, as one worker sees it. */
struct view {
    const struct scheduler *s;
    const struct worker *worker;
    uint32_t home;
    enum job_class class;
    double most_served; /* that a tenant may be, to have a turn */
};

static bool has_turn(const struct view *view, const struct stall *stall)
{
    return view->s->tenants[stall->tenant].served <= view->most_served &&
           can_take(view->worker->kind, stall->lane);
}

/* The oldest leader of the groups with a model; those of the worker's last size first. */
static struct slot *first_of_model(const struct view *view, uint32_t model)
{
    const struct scheduler *s = view->s;
    const struct worker *worker = view->worker;
    struct slot *best = NULL;
    bool best_shape = false;
    const struct group *group = *aisle_of(s, model, view->home, view->class);
    for (int i = 0; group && i < AISLE_WALK_MAX; group = group->aisle_next, i++) {
        const struct stall *stall = group->stall;
        if (group->model != model || group->home != view->home || stall->class != view->class ||
            stall->blocked || !has_turn(view, stall))
            continue;
        struct slot *slot = leader(group);
        bool shape = worker->model == model && slot->width == worker->width &&
                     slot->height == worker->height;
        if (!best || shape > best_shape || (shape == best_shape && slot->place < best->place)) {
            best = slot;
            best_shape = shape;
        }
    }
    return best;
}

/* A job of a model that the worker has: of its latest, or the oldest of the others. */
static struct slot *first_at_hand(const struct view *view)
{
    const struct worker *worker = view->worker;
    struct slot *best = worker->has_model ? first_of_model(view, worker->model) : NULL;
    if (best)
        return best;
    for (uint32_t i = 0; i < worker->is.resident_count; i++) {
        struct slot *slot = first_of_model(view, worker->is.resident[i]);
        if (slot && (!best || slot->place < best->place))
            best = slot;
    }
    return best;
}

/* Of a home's jobs of a priority: an urgent one of a tenant that has not had more than its share,
 * one whose model is at hand, or the oldest. */
static struct slot *best_of_shelf(const struct scheduler *s, const struct worker *worker,
                                  uint32_t home, enum job_class class)
{
    const struct stall *shelf = s->pools[home].shelves[class];
    struct view view = {s, worker, home, class, -1};
    struct slot *urgent = NULL, *oldest = NULL;
    for (const struct stall *stall = shelf; stall; stall = stall->next) {
        double served = s->tenants[stall->tenant].served;
        if ((view.most_served < 0 || served < view.most_served) &&
            can_take(worker->kind, stall->lane))
            view.most_served = served;
    }
    if (view.most_served < 0)
        return NULL;
    view.most_served += s->options.fairness_s;
    for (const struct stall *stall = shelf; stall; stall = stall->next) {
        if (!has_turn(&view, stall))
            continue;
        struct slot *slot = leader(FROM_NODE(struct group, by_leader, stall->groups.top));
        if (is_urgent(s, slot) && (!urgent || slot->deadline_ns < urgent->deadline_ns))
            urgent = slot;
        if (!oldest || slot->place < oldest->place)
            oldest = slot;
    }
    if (urgent)
        return urgent;
    struct slot *at_hand = first_at_hand(&view);
    return at_hand ? at_hand : oldest;
}

/* The visitor that saves most by coming here. */
static struct choice best_visitor(const struct scheduler *s, const struct worker *worker,
                                  enum job_class class)
{
    struct choice best = {0};
    for (uint32_t home = 0; home < s->options.classes_max; home++) {
        struct choice choice = {0};
        if (home == worker->is.device_class || !s->pools[home].shelves[class])
            continue;
        choice.slot = starving(s, worker, home);
        if (!choice.slot)
            choice.slot = best_of_shelf(s, worker, home, class);
        if (!choice.slot || !may_go(s, worker, &choice))
            continue;
        if (!best.slot ||
            choice.placed.waiting - choice.placed.here > best.placed.waiting - best.placed.here)
            best = choice;
    }
    return best;
}

static struct choice choose(const struct scheduler *s, const struct worker *worker)
{
    uint32_t home = worker->is.device_class;
    struct choice choice = {.slot = starving(s, worker, home)};
    for (int class = 0; !choice.slot && class < CLASS_COUNT; class ++) {
        choice.slot = best_of_shelf(s, worker, home, class);
        if (choice.slot)
            break;
        choice = best_visitor(s, worker, class);
        if (choice.slot)
            return choice;
    }
    if (choice.slot && !may_go(s, worker, &choice))
        choice.slot = NULL;
    return choice;
}

/* ---- placing ---- */

static void say_assigned(struct scheduler *s, const struct slot *slot, bool change_model)
{
    act(s, ACTION_ASSIGN, slot);
    struct scheduler_action *action = &s->actions[s->action_count - 1];
    action->worker = slot->worker;
    action->attempt = (int)slot->attempt;
    action->change_model = change_model;
    action->alone = slot->alone;
}

static void assign(struct scheduler *s, struct slot *slot, struct worker *worker)
{
    bool change_model = worker->has_model && !has_model(worker, slot->model);
    slot->attempt++;
    enter_worker(s, slot, worker);
    say_assigned(s, slot, change_model);
}

/* What was compared shares its memory with the place in line, so it is noted after leaving. */
static void engage(struct scheduler *s, const struct choice *choice, const struct worker *worker)
{
    struct slot *slot = choice->slot;
    struct tenant *tenant = &s->tenants[slot->tenant];
    uint32_t home = s->profiles[slot->profile].lane->home;
    if (home != worker->is.device_class)
        s->pools[worker->is.device_class].departed++;
    tenant->served += (double)choice->placed.charged_s / tenant->weight;
    tenant->running++;
    slot->placed = choice->placed;
    slot->placement = choice->placement;
    judge_quota(s, slot->tenant);
}

static void promise(struct scheduler *s, const struct choice *choice, struct worker *worker)
{
    leave_ready(s, choice->slot);
    engage(s, choice, worker);
    choice->slot->state = PROMISED;
    choice->slot->worker = (uint32_t)(worker - s->workers);
    s->count.ready++;
    worker->promised = choice->slot;
    refile(s, worker);
}

void break_promise(struct scheduler *s, struct slot *slot)
{
    struct worker *worker = &s->workers[slot->worker];
    ASSERT(worker->promised == slot);
    worker->promised = NULL;
    s->count.ready--;
    s->tenants[slot->tenant].running--;
    judge_quota(s, slot->tenant);
    enter_ready(s, slot);
    refile(s, worker);
}

/* Where a job that one worker has chosen had better go: where its model is, or where it fits. */
static struct worker *better_worker(const struct scheduler *s, struct worker *worker,
                                    const struct slot *slot)
{
    struct worker *other = NULL;
    if (!has_model(worker, slot->model))
        other = worker_with_model(s, worker->is.device_class, slot);
    if (other || fits(worker, slot))
        return other ? other : worker;
    other = worker->kind->partly;
    for (int i = 0; other && i < PARTLY_WALK_MAX; other = other->next, i++)
        if (fits(other, slot))
            return other;
    return worker;
}

/* Places one job on a worker of the kind, or finds that there is none. */
static bool place_one(struct scheduler *s, struct kind *kind)
{
    struct worker *worker = kind->idle ? kind->idle : kind->partly;
    if (!worker || s->count.ready == 0)
        return false;
    struct choice choice = choose(s, worker);
    if (!choice.slot)
        return false;
    worker = better_worker(s, worker, choice.slot);
    if (!fits(worker, choice.slot)) {
        promise(s, &choice, worker);
        return true;
    }
    leave_waiting(s, choice.slot);
    engage(s, &choice, worker);
    assign(s, choice.slot, worker);
    return true;
}

static void keep_promise(struct scheduler *s, struct worker *worker)
{
    struct slot *slot = worker->promised;
    leave_waiting(s, slot);
    s->tenants[slot->tenant].running++;
    judge_quota(s, slot->tenant);
    assign(s, slot, worker);
}

bool fill_workers(struct scheduler *s)
{
    bool placed = !s->paused;
    while (placed) {
        placed = false;
        while (s->due && s->action_count < SCHEDULER_ACTIONS_MAX)
            keep_promise(s, s->due);
        for (uint32_t class = 0; class < s->options.classes_max; class ++) {
            struct kind *kind = s->pools[class].kinds;
            for (; kind && s->count.ready > 0; kind = kind->next)
                while (s->action_count < SCHEDULER_ACTIONS_MAX && place_one(s, kind))
                    placed = true;
        }
        if (s->action_count == SCHEDULER_ACTIONS_MAX)
            return false;
    }
    return true;
}
