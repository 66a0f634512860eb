/*
 * scheduler.c: the scheduler's life and its events. How jobs and workers are kept is in state.h,
 * how one is chosen for the other in place.c.
 */
#include "scheduler/state.h"

#include <stdlib.h>

#define NO_WORKER UINT32_MAX
#define PLACES_PER_JOB 4 /* places in line are numbered anew every 3 windows of jobs or so */
#define HASH 0x9E3779B97F4A7C15u

/* ---- creation ---- */

static bool wakes_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct slot *x = FROM_NODE(const struct slot, by_order, a);
    const struct slot *y = FROM_NODE(const struct slot, by_order, b);
    return x->wake_ns < y->wake_ns || (x->wake_ns == y->wake_ns && x < y);
}

static bool ends_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct slot *x = FROM_NODE(const struct slot, by_end, a);
    const struct slot *y = FROM_NODE(const struct slot, by_end, b);
    return x->deadline_ns < y->deadline_ns;
}

static uint32_t power_of_two(uint64_t at_least, uint32_t at_most)
{
    uint32_t size = 16;
    while (size < at_least && size < at_most)
        size *= 2;
    return size;
}

static void *take(struct scheduler *s, uint64_t count, size_t size)
{
    s->memory_bytes += (size_t)count * size;
    return calloc((size_t)count, size);
}

static bool allocate(struct scheduler *s)
{
    const struct scheduler_options *o = &s->options;
    uint32_t buckets = power_of_two(o->jobs_max, 1u << 30);
    uint32_t aisles = power_of_two(o->jobs_max, 1u << 16);
    uint32_t residents = power_of_two((uint64_t)o->workers_max * 4, 1u << 16);
    uint64_t places = (uint64_t)o->jobs_max * PLACES_PER_JOB;
    s->places =
        (uint32_t)((places < INT32_MAX ? places : INT32_MAX) / ORDER_PLACES + 1) * ORDER_PLACES;
    uint64_t words = s->places / ORDER_PLACES;
    s->bucket_mask = buckets - 1;
    s->aisle_mask = aisles - 1;
    s->resident_mask = residents - 1;
    s->slots = take(s, o->jobs_max, sizeof(*s->slots));
    s->groups = take(s, o->jobs_max, sizeof(*s->groups));
    s->stalls = take(s, o->jobs_max, sizeof(*s->stalls));
    s->workers = take(s, o->workers_max, sizeof(*s->workers));
    s->kinds = take(s, (uint64_t)o->workers_max + 1, sizeof(*s->kinds));
    s->tenants = take(s, o->tenants_max, sizeof(*s->tenants));
    s->profiles = take(s, o->profiles_max, sizeof(*s->profiles));
    s->lanes = take(s, (uint64_t)o->profiles_max + 1, sizeof(*s->lanes));
    s->group_buckets = take(s, buckets, sizeof(*s->group_buckets));
    s->stall_buckets = take(s, buckets, sizeof(*s->stall_buckets));
    s->aisles = take(s, aisles, sizeof(*s->aisles));
    s->resident_buckets = take(s, residents, sizeof(*s->resident_buckets));
    s->order_bits = take(s, words * o->classes_max, sizeof(*s->order_bits));
    s->order_sums = take(s, (words + 1) * o->classes_max, sizeof(*s->order_sums));
    s->renumbered = take(s, words, sizeof(*s->renumbered));
    for (uint32_t c = 0; c < o->classes_max && s->order_bits && s->order_sums; c++)
        s->pools[c].order = (struct order){.bits = s->order_bits + c * words,
                                           .sums = s->order_sums + c * (words + 1),
                                           .words = (uint32_t)words};
    return s->slots && s->groups && s->stalls && s->workers && s->kinds && s->tenants &&
           s->profiles && s->lanes && s->group_buckets && s->stall_buckets && s->aisles &&
           s->resident_buckets && s->order_bits && s->order_sums && s->renumbered;
}

int scheduler_create(struct scheduler **out, const struct scheduler_options *options,
                     struct err *err)
{
    struct scheduler *s = calloc(1, sizeof(*s));
    *out = NULL;
    ASSERT(options->classes_max > 0 && options->classes_max <= SCHEDULER_CLASSES_MAX &&
           options->profiles_max <= UINT16_MAX);
    if (s) {
        s->options = *options;
        s->memory_bytes = sizeof(*s);
    }
    if (!s || !allocate(s)) {
        scheduler_free(s);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a window of %u jobs",
                       options->jobs_max);
    }
    s->now_ns = INT64_MIN;
    s->delayed.before = wakes_before;
    s->ending.before = ends_before;
    for (uint32_t i = 0; i < options->tenants_max; i++)
        s->tenants[i].weight = 1;
    *out = s;
    return 0;
}

void scheduler_free(struct scheduler *s)
{
    if (!s)
        return;
    free(s->slots);
    free(s->groups);
    free(s->stalls);
    free(s->workers);
    free(s->kinds);
    free(s->tenants);
    free(s->profiles);
    free(s->lanes);
    free(s->group_buckets);
    free(s->stall_buckets);
    free(s->aisles);
    free(s->resident_buckets);
    free(s->order_bits);
    free(s->order_sums);
    free(s->renumbered);
    free(s);
}

/* ---- a job's states ---- */

void act(struct scheduler *s, enum action_type type, const struct slot *slot)
{
    ASSERT(s->action_count < SCHEDULER_ACTIONS_MAX);
    s->actions[s->action_count++] =
        (struct scheduler_action){.type = type, .slot = slot_number(s, slot), .worker = NO_WORKER};
}

static void count_waiting(struct scheduler *s, const struct slot *slot, int by)
{
    struct profile *profile = &s->profiles[slot->profile];
    profile->waiting += by * (double)slot->units;
    s->count.work_s += by * seconds_preferred(s, slot);
}

void enter_waiting(struct scheduler *s, struct slot *slot, int64_t wake_ns)
{
    count_waiting(s, slot, 1);
    if (slot->deadline_ns != SCHEDULER_TIME_NONE)
        heap_insert(&s->ending, &slot->by_end);
    if (slot->held) {
        slot->state = HELD;
        slot->wake_ns = wake_ns;
        s->count.held++;
    } else if (wake_ns <= s->now_ns) {
        enter_ready(s, slot);
    } else {
        slot->state = DELAYED;
        slot->wake_ns = wake_ns;
        s->count.delayed++;
        heap_insert(&s->delayed, &slot->by_order);
    }
}

static void leave_promise(struct scheduler *s, const struct slot *slot)
{
    struct worker *worker = &s->workers[slot->worker];
    worker->promised = NULL;
    s->count.ready--;
    s->tenants[slot->tenant].running--;
    judge_quota(s, slot->tenant);
    refile(s, worker);
}

void leave_waiting(struct scheduler *s, struct slot *slot)
{
    if (slot->deadline_ns != SCHEDULER_TIME_NONE)
        heap_remove(&s->ending, &slot->by_end);
    switch (slot->state) {
    case READY:
        leave_ready(s, slot);
        break;
    case PROMISED:
        leave_promise(s, slot);
        break;
    case HELD:
        s->count.held--;
        break;
    case DELAYED:
        heap_remove(&s->delayed, &slot->by_order);
        s->count.delayed--;
        break;
    }
    count_waiting(s, slot, -1);
    if (s->count.ready + s->count.delayed + s->count.held == 0)
        s->count.work_s = 0; /* sums of what comes and goes drift */
}

static void free_slot(struct scheduler *s, struct slot *slot)
{
    s->bytes -= slot->bytes;
    slot->state = FREE;
}

static void give_up(struct scheduler *s, struct slot *slot, enum give_up reason)
{
    act(s, ACTION_GIVE_UP, slot);
    s->actions[s->action_count - 1].reason = reason;
    free_slot(s, slot);
}

/* ---- events ---- */

static bool pass_time(struct scheduler *s)
{
    while (s->ending.top) {
        struct slot *slot = FROM_NODE(struct slot, by_end, s->ending.top);
        if (slot->deadline_ns > s->now_ns)
            break;
        /* Some stay for the event's own: a worker that is gone may end all its jobs. */
        if (s->action_count + SCHEDULER_WORKER_JOBS_MAX >= SCHEDULER_ACTIONS_MAX)
            return false;
        act(s, ACTION_EXPIRE, slot);
        leave_waiting(s, slot);
        free_slot(s, slot);
    }
    while (s->delayed.top) {
        struct slot *slot = FROM_NODE(struct slot, by_order, s->delayed.top);
        if (slot->wake_ns > s->now_ns)
            break;
        heap_remove(&s->delayed, &slot->by_order);
        s->count.delayed--;
        enter_ready(s, slot);
    }
    return true;
}

static void submit(struct scheduler *s, struct slot *slot, const struct scheduler_job *job)
{
    ASSERT(slot->state == FREE);
    ASSERT(job->tenant < s->options.tenants_max && job->class < CLASS_COUNT);
    ASSERT(job->profile < s->options.profiles_max && s->profiles[job->profile].is.route_count > 0);
    ASSERT(job->pictures > 0 && job->pictures <= UINT16_MAX && job->width >= 0 &&
           job->width <= UINT16_MAX && job->height >= 0 && job->height <= UINT16_MAX &&
           job->bytes <= UINT32_MAX && job->attempts_max <= UINT8_MAX);
    *slot = (struct slot){.model = job->model,
                          .tenant = job->tenant,
                          .profile = (uint16_t)job->profile,
                          .width = (uint16_t)job->width,
                          .height = (uint16_t)job->height,
                          .pictures = (uint16_t)job->pictures,
                          .units = (float)(job->pictures * (job->effort > 0 ? job->effort : 1)),
                          .bytes = (uint32_t)job->bytes,
                          .deadline_ns = job->deadline_ns,
                          .class = job->class,
                          .attempts_max = (uint8_t)job->attempts_max,
                          .alone = job->alone || job->crashes > 0,
                          .held = job->held,
                          .attempt = (uint32_t)job->attempts,
                          .crashes = (uint16_t)job->crashes,
                          .returns = (uint16_t)job->returns};
    s->bytes += job->bytes;
    enter_waiting(s, slot, job->not_before_ns);
}

/* Exponential, and shortened by a part that is drawn from slot and attempt, so that what failed
 * together does not come back together. */
static int64_t backoff_ns(const struct scheduler *s, const struct slot *slot, uint32_t failures)
{
    uint64_t h = ((uint64_t)slot_number(s, slot) << 16 ^ slot->attempt) * HASH;
    int64_t wait = s->options.retry_first_ns;
    while (--failures > 0 && wait < s->options.retry_max_ns)
        wait *= 2;
    if (wait > s->options.retry_max_ns)
        wait = s->options.retry_max_ns;
    h = (h ^ h >> 32) * HASH;
    double drawn = (double)(h >> 11) / (double)(1ull << 53);
    return wait - (int64_t)((double)wait * s->options.retry_jitter * drawn);
}

static void finish(struct scheduler *s, struct slot *slot, enum outcome outcome)
{
    ASSERT(slot->state == RUNNING);
    leave_worker(s, slot);
    if (outcome == OUTCOME_DONE) {
        free_slot(s, slot);
    } else if (outcome == OUTCOME_RETRY) {
        uint32_t failures = slot->attempt - slot->crashes - slot->returns;
        if (failures >= slot->attempts_max)
            give_up(s, slot, GIVE_UP_ATTEMPTS);
        else
            enter_waiting(s, slot, s->now_ns + backoff_ns(s, slot, failures));
    } else {
        slot->returns++;
        enter_waiting(s, slot, s->now_ns);
    }
}

static void crash(struct scheduler *s, struct slot *slot)
{
    slot->crashes++;
    slot->alone = true;
    if (slot->crashes >= s->options.crashes_max)
        give_up(s, slot, GIVE_UP_CRASHES);
    else
        enter_waiting(s, slot, s->now_ns);
}

static void lose_worker(struct scheduler *s, struct worker *worker, bool crashed)
{
    while (worker->first) {
        struct slot *slot = worker->first;
        leave_worker(s, slot);
        if (crashed) {
            crash(s, slot);
        } else {
            slot->returns++;
            enter_waiting(s, slot, s->now_ns);
        }
    }
    remove_worker(s, worker);
}

static void adopt(struct scheduler *s, struct slot *slot, struct worker *worker, int attempt)
{
    uint32_t class = worker->is.device_class;
    ASSERT(slot->state != FREE && slot->state != RUNNING && worker->present &&
           worker->jobs < SCHEDULER_WORKER_JOBS_MAX);
    leave_waiting(s, slot);
    struct tenant *tenant = &s->tenants[slot->tenant];
    double seconds = seconds_on(s, slot, class);
    if (seconds <= 0)
        seconds = seconds_preferred(s, slot);
    slot->placed = (struct placed){.charged_s = (float)seconds};
    slot->placement = PLACEMENT_ADOPTED;
    if (slot->attempt < (uint32_t)attempt)
        slot->attempt = (uint32_t)attempt;
    tenant->served += seconds / tenant->weight;
    tenant->running++;
    judge_quota(s, slot->tenant);
    enter_worker(s, slot, worker);
}

static void cancel(struct scheduler *s, struct slot *slot)
{
    ASSERT(slot->state != FREE);
    if (slot->state == RUNNING)
        return;
    leave_waiting(s, slot);
    free_slot(s, slot);
}

static void hold(struct scheduler *s, struct slot *slot, bool held)
{
    ASSERT(slot->state != FREE);
    if (slot->held == held)
        return;
    slot->held = held;
    if (slot->state == RUNNING)
        return;
    bool timed = slot->state == DELAYED || slot->state == HELD;
    int64_t wake = timed ? slot->wake_ns : SCHEDULER_TIME_NONE;
    leave_waiting(s, slot);
    enter_waiting(s, slot, wake);
}

static void set_tenant(struct scheduler *s, const struct scheduler_event *event)
{
    struct tenant *tenant = &s->tenants[event->tenant];
    ASSERT(event->weight > 0);
    tenant->weight = event->weight;
    tenant->running_max = event->running_max;
    judge_quota(s, event->tenant);
}

static void take_event(struct scheduler *s, const struct scheduler_event *event)
{
    struct slot *slot = &s->slots[event->slot];
    struct worker *worker = &s->workers[event->worker];
    ASSERT(event->slot < s->options.jobs_max && event->worker < s->options.workers_max &&
           event->tenant < s->options.tenants_max);
    switch (event->type) {
    case EVENT_TICK:
        break;
    case EVENT_SUBMIT:
        submit(s, slot, &event->job);
        break;
    case EVENT_ADOPT:
        adopt(s, slot, worker, event->attempt);
        break;
    case EVENT_CANCEL:
        cancel(s, slot);
        break;
    case EVENT_HOLD:
    case EVENT_RELEASE:
        hold(s, slot, event->type == EVENT_HOLD);
        break;
    case EVENT_FINISH:
        finish(s, slot, event->outcome);
        break;
    case EVENT_WORKER:
        set_worker(s, worker, &event->worker_is);
        break;
    case EVENT_WORKER_GONE:
    case EVENT_WORKER_LEFT:
        lose_worker(s, worker, event->type == EVENT_WORKER_GONE);
        break;
    case EVENT_PROFILE:
        set_profile(s, event->number, &event->profile);
        break;
    case EVENT_TENANT:
        set_tenant(s, event);
        break;
    case EVENT_PAUSE:
    case EVENT_RESUME:
        s->paused = event->type == EVENT_PAUSE;
        break;
    }
}

static int64_t next_wake(const struct scheduler *s)
{
    int64_t wake = SCHEDULER_TIME_NONE;
    if (s->delayed.top)
        wake = FROM_NODE(struct slot, by_order, s->delayed.top)->wake_ns;
    if (s->ending.top) {
        int64_t end = FROM_NODE(struct slot, by_end, s->ending.top)->deadline_ns;
        if (wake == SCHEDULER_TIME_NONE || end < wake)
            wake = end;
    }
    return wake;
}

void scheduler_step(struct scheduler *s, const struct scheduler_event *event,
                    struct scheduler_actions *actions)
{
    s->action_count = 0;
    if (event->now_ns > s->now_ns)
        s->now_ns = event->now_ns;
    /* First what time has brought, then the event; what it brought may be late already. */
    (void)pass_time(s);
    take_event(s, event);
    bool all = pass_time(s) && fill_workers(s);
    *actions = (struct scheduler_actions){
        .items = s->actions, .count = s->action_count, .more = !all, .wake_ns = next_wake(s)};
}

/* ---- counts ---- */

bool scheduler_has_room(const struct scheduler *s, size_t bytes)
{
    uint32_t jobs = s->count.ready + s->count.delayed + s->count.held + s->count.running;
    return jobs == 0 || (jobs < s->options.jobs_max && s->bytes + bytes <= s->options.bytes_max);
}

struct scheduler_count scheduler_count(const struct scheduler *s)
{
    return s->count;
}

size_t scheduler_memory_bytes(const struct scheduler *s)
{
    return s->memory_bytes;
}
