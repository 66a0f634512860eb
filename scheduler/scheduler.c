/*
 * DESIGN
 *
 * A waiting job is either delayed (a heap by time) or ready. Ready jobs stand in two orders: one
 * list by the time they became ready, and one heap per group, where a group is what may travel
 * together under one judgement: class, tenant, model and size. A worker with room picks among
 * groups, of which there are few, not among jobs.
 *
 * The starvation bound needs no counter per overtaking. `departed` counts the jobs that have left
 * the ready list. A job that became ready when `departed` was D with Q jobs before it, and has i of
 * these still before it, has been overtaken at most departed - D - (Q - i) times: exactly, but for
 * younger jobs that left unassigned. Whoever overtakes a job overtakes all that became ready before
 * it too, so the first of the list that the worker can take is always the most overtaken, and
 * looking at that one is enough. (Jobs that no asking worker can take gather at the front of the
 * list; the walk over them ends after HEAD_WALK_MAX.)
 *
 * Rejected: a bound in seconds. In a bulk run every job waits for hours; past the bound the order
 * would fall back to first come first served, and a model be loaded for every job.
 */
#include "scheduler/scheduler.h"

#include "scheduler/heap.h"

#include <stdlib.h>

#define HEAD_WALK_MAX 256
#define NO_WORKER UINT32_MAX
#define FROM_NODE(type, member, node) ((type *)((char *)(node)-offsetof(type, member)))

enum state { FREE, DELAYED, READY, RUNNING };

struct group {
    struct scheduler_job like; /* class, tenant, model and size of all its jobs */
    struct heap ready;
    struct group *chain;       /* of its hash bucket, or of free groups */
    struct group *next, *prev; /* of its class */
};

struct slot {
    struct scheduler_job job;
    enum state state;
    uint32_t worker;
    int attempt;
    int64_t wake_ns;           /* DELAYED */
    uint64_t sequence;         /* order of becoming ready */
    uint64_t departed_then;    /* READY: scheduler.departed at that moment */
    uint32_t before_then;      /* READY: jobs that were ready at that moment */
    struct slot *next, *prev;  /* READY: the list in that order */
    struct group *group;       /* READY */
    struct heap_node by_time;  /* DELAYED */
    struct heap_node by_group; /* READY */
    struct heap_node by_end;   /* DELAYED or READY, with a deadline */
};

struct worker {
    struct scheduler_worker is;
    bool present;
    bool has_model;
    struct scheduler_job last; /* model and size of the latest assignment */
    int pictures, jobs;        /* in flight */
};

struct tenant {
    double weight;
    double served; /* work-seconds over weight, brought forward after idling */
    uint32_t ready;
};

struct scheduler {
    struct scheduler_options options;
    int64_t now_ns;
    bool paused;
    struct slot *slots;
    struct worker *workers;
    struct tenant *tenants;
    struct group *groups, *free_groups;
    struct group **buckets;
    uint32_t bucket_mask;
    struct group *classes[CLASS_COUNT];
    struct slot *first, *last; /* ready jobs, oldest first */
    struct heap delayed, ending;
    uint64_t departed, sequence;
    size_t bytes;
    struct scheduler_count count;
    struct scheduler_action actions[SCHEDULER_ACTIONS_MAX];
    size_t action_count;
};

/* ---- orders ---- */

static bool wakes_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct slot *x = FROM_NODE(const struct slot, by_time, a);
    const struct slot *y = FROM_NODE(const struct slot, by_time, b);
    return x->wake_ns < y->wake_ns || (x->wake_ns == y->wake_ns && x < y);
}

static bool ends_before(const struct heap_node *a, const struct heap_node *b)
{
    const struct slot *x = FROM_NODE(const struct slot, by_end, a);
    const struct slot *y = FROM_NODE(const struct slot, by_end, b);
    return x->job.deadline_ns < y->job.deadline_ns;
}

static int64_t end_of(const struct slot *slot)
{
    return slot->job.deadline_ns == SCHEDULER_TIME_NONE ? INT64_MAX : slot->job.deadline_ns;
}

/* Earliest deadline first, then first come. */
static bool leads_group(const struct heap_node *a, const struct heap_node *b)
{
    const struct slot *x = FROM_NODE(const struct slot, by_group, a);
    const struct slot *y = FROM_NODE(const struct slot, by_group, b);
    if (end_of(x) != end_of(y))
        return end_of(x) < end_of(y);
    return x->sequence < y->sequence;
}

static struct slot *leader(const struct group *group)
{
    return FROM_NODE(struct slot, by_group, group->ready.top);
}

/* ---- creation ---- */

int scheduler_create(struct scheduler **out, const struct scheduler_options *options,
                     struct err *err)
{
    struct scheduler *s = calloc(1, sizeof(*s));
    uint32_t buckets = 16;
    *out = NULL;
    while (buckets < options->jobs_max && buckets < 1u << 30)
        buckets *= 2;
    if (s) {
        s->options = *options;
        s->slots = calloc(options->jobs_max, sizeof(*s->slots));
        s->groups = calloc(options->jobs_max, sizeof(*s->groups));
        s->workers = calloc(options->workers_max, sizeof(*s->workers));
        s->tenants = calloc(options->tenants_max, sizeof(*s->tenants));
        s->buckets = calloc(buckets, sizeof(*s->buckets));
    }
    if (!s || !s->slots || !s->groups || !s->workers || !s->tenants || !s->buckets) {
        scheduler_free(s);
        return err_set(err, ERR_MEMORY, ERR_RETRY, "out of memory for a window of %u jobs",
                       options->jobs_max);
    }
    s->now_ns = INT64_MIN;
    s->bucket_mask = buckets - 1;
    s->delayed.before = wakes_before;
    s->ending.before = ends_before;
    for (uint32_t i = options->jobs_max; i-- > 0;) {
        s->groups[i].chain = s->free_groups;
        s->free_groups = &s->groups[i];
    }
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
    free(s->workers);
    free(s->tenants);
    free(s->buckets);
    free(s);
}

/* ---- groups ---- */

static bool same_model(const struct scheduler_job *a, const struct scheduler_job *b)
{
    return a->model == b->model;
}

static bool same_shape(const struct scheduler_job *a, const struct scheduler_job *b)
{
    return same_model(a, b) && a->width == b->width && a->height == b->height;
}

static bool same_group(const struct scheduler_job *a, const struct scheduler_job *b)
{
    return same_shape(a, b) && a->class == b->class && a->tenant == b->tenant &&
           a->memory_bytes == b->memory_bytes && a->needs == b->needs;
}

static struct group **bucket_of(const struct scheduler *s, const struct scheduler_job *job)
{
    uint64_t h = job->model;
    h = h * 0x9E3779B97F4A7C15u + (uint64_t)job->width;
    h = h * 0x9E3779B97F4A7C15u + (uint64_t)job->height;
    h = h * 0x9E3779B97F4A7C15u + job->tenant * CLASS_COUNT + job->class;
    h = h * 0x9E3779B97F4A7C15u + (job->memory_bytes ^ (uint64_t)job->needs << 32);
    return &s->buckets[(h * 0x9E3779B97F4A7C15u) >> 32 & s->bucket_mask];
}

static struct group *group_of(struct scheduler *s, const struct scheduler_job *job)
{
    struct group **bucket = bucket_of(s, job);
    for (struct group *group = *bucket; group; group = group->chain)
        if (same_group(&group->like, job))
            return group;
    struct group *group = s->free_groups;
    s->free_groups = group->chain;
    *group = (struct group){.like = *job, .ready.before = leads_group, .chain = *bucket};
    *bucket = group;
    group->next = s->classes[job->class];
    if (group->next)
        group->next->prev = group;
    s->classes[job->class] = group;
    return group;
}

static void drop_group(struct scheduler *s, struct group *group)
{
    struct group **link = bucket_of(s, &group->like);
    while (*link != group)
        link = &(*link)->chain;
    *link = group->chain;
    if (group->prev)
        group->prev->next = group->next;
    else
        s->classes[group->like.class] = group->next;
    if (group->next)
        group->next->prev = group->prev;
    group->chain = s->free_groups;
    s->free_groups = group;
}

/* ---- a job's states ---- */

/* A tenant that comes back from idling has no claim on the time it did not use. */
static void wake_tenant(struct scheduler *s, struct tenant *tenant)
{
    double least = -1;
    for (uint32_t i = 0; i < s->options.tenants_max; i++) {
        const struct tenant *other = &s->tenants[i];
        if (other->ready > 0 && (least < 0 || other->served < least))
            least = other->served;
    }
    if (tenant->served < least)
        tenant->served = least;
}

static void enter_ready(struct scheduler *s, struct slot *slot)
{
    struct tenant *tenant = &s->tenants[slot->job.tenant];
    if (tenant->ready == 0)
        wake_tenant(s, tenant);
    tenant->ready++;
    slot->state = READY;
    slot->sequence = s->sequence++;
    slot->departed_then = s->departed;
    slot->before_then = s->count.ready++;
    slot->prev = s->last;
    slot->next = NULL;
    *(s->last ? &s->last->next : &s->first) = slot;
    s->last = slot;
    slot->group = group_of(s, &slot->job);
    heap_insert(&slot->group->ready, &slot->by_group);
}

static void leave_ready(struct scheduler *s, struct slot *slot)
{
    heap_remove(&slot->group->ready, &slot->by_group);
    if (!slot->group->ready.top)
        drop_group(s, slot->group);
    slot->group = NULL;
    *(slot->prev ? &slot->prev->next : &s->first) = slot->next;
    *(slot->next ? &slot->next->prev : &s->last) = slot->prev;
    s->tenants[slot->job.tenant].ready--;
    s->count.ready--;
    s->departed++;
}

static void enter_waiting(struct scheduler *s, struct slot *slot, int64_t wake_ns)
{
    s->count.work_s += slot->job.work_s;
    if (slot->job.deadline_ns != SCHEDULER_TIME_NONE)
        heap_insert(&s->ending, &slot->by_end);
    if (wake_ns <= s->now_ns) {
        enter_ready(s, slot);
        return;
    }
    slot->state = DELAYED;
    slot->wake_ns = wake_ns;
    s->count.delayed++;
    heap_insert(&s->delayed, &slot->by_time);
}

static void leave_waiting(struct scheduler *s, struct slot *slot)
{
    s->count.work_s -= slot->job.work_s;
    if (slot->job.deadline_ns != SCHEDULER_TIME_NONE)
        heap_remove(&s->ending, &slot->by_end);
    if (slot->state == READY) {
        leave_ready(s, slot);
    } else {
        heap_remove(&s->delayed, &slot->by_time);
        s->count.delayed--;
    }
}

static void free_slot(struct scheduler *s, struct slot *slot)
{
    s->bytes -= slot->job.bytes;
    slot->state = FREE;
}

static void leave_worker(struct scheduler *s, struct slot *slot)
{
    struct worker *worker = &s->workers[slot->worker];
    worker->pictures -= slot->job.pictures;
    worker->jobs--;
    s->count.running--;
}

static void act(struct scheduler *s, enum action_type type, const struct slot *slot)
{
    ASSERT(s->action_count < SCHEDULER_ACTIONS_MAX);
    s->actions[s->action_count++] = (struct scheduler_action){
        .type = type, .slot = (uint32_t)(slot - s->slots), .worker = NO_WORKER};
}

/* ---- choosing ---- */

static bool can_take(const struct worker *worker, const struct scheduler_job *job)
{
    return worker->present && (job->needs & ~worker->is.offers) == 0 &&
           job->memory_bytes <= worker->is.memory_bytes;
}

static bool has_room(const struct worker *worker, const struct scheduler_job *job)
{
    return worker->jobs == 0 || worker->pictures + job->pictures <= worker->is.pictures_max;
}

/* The first of the ready list that the worker can take, if it has been overtaken enough. */
static struct slot *starving(const struct scheduler *s, const struct worker *worker)
{
    uint32_t position = 0;
    for (struct slot *slot = s->first; slot && position < HEAD_WALK_MAX; slot = slot->next) {
        if (can_take(worker, &slot->job)) {
            uint64_t overtaken = s->departed - slot->departed_then - (slot->before_then - position);
            return overtaken >= s->options.overtake_max ? slot : NULL;
        }
        position++;
    }
    return NULL;
}

/* What a group is judged by, the most important first. */
struct judgement {
    bool over_share; /* its tenant has had more than its share */
    bool not_urgent;
    int64_t end_ns; /* of an urgent one */
    int change;     /* 0: the worker's model and size; 1: its model; 2: another model */
    uint64_t sequence;
};

static struct judgement judge(const struct scheduler *s, const struct worker *worker,
                              const struct slot *slot, double least_served)
{
    const struct scheduler_job *job = &slot->job;
    int64_t end = end_of(slot);
    bool urgent =
        end != INT64_MAX && end - s->now_ns < s->options.urgent_ns + (int64_t)(job->work_s * 1e9);
    return (struct judgement){.over_share = s->tenants[job->tenant].served >
                                            least_served + s->options.fairness_s,
                              .not_urgent = !urgent,
                              .end_ns = urgent ? end : 0,
                              .change = !worker->has_model               ? 2
                                        : same_shape(&worker->last, job) ? 0
                                        : same_model(&worker->last, job) ? 1
                                                                         : 2,
                              .sequence = slot->sequence};
}

static bool is_better(const struct judgement *a, const struct judgement *b)
{
    if (a->over_share != b->over_share)
        return b->over_share;
    if (a->not_urgent != b->not_urgent)
        return b->not_urgent;
    if (a->end_ns != b->end_ns)
        return a->end_ns < b->end_ns;
    if (a->change != b->change)
        return a->change < b->change;
    return a->sequence < b->sequence;
}

static struct slot *best_of_class(const struct scheduler *s, const struct worker *worker,
                                  enum job_class class)
{
    struct slot *best = NULL;
    struct judgement best_judgement = {0};
    double least_served = -1;
    for (const struct group *group = s->classes[class]; group; group = group->next) {
        double served = s->tenants[group->like.tenant].served;
        if (least_served < 0 || served < least_served)
            least_served = served;
    }
    for (const struct group *group = s->classes[class]; group; group = group->next) {
        struct slot *slot = leader(group);
        if (!can_take(worker, &slot->job))
            continue;
        struct judgement judgement = judge(s, worker, slot, least_served);
        if (!best || is_better(&judgement, &best_judgement)) {
            best = slot;
            best_judgement = judgement;
        }
    }
    return best;
}

static struct slot *choose(const struct scheduler *s, const struct worker *worker)
{
    struct slot *slot = starving(s, worker);
    for (int class = 0; !slot && class < CLASS_COUNT; class ++)
        slot = best_of_class(s, worker, class);
    return slot;
}

static void assign(struct scheduler *s, struct slot *slot, struct worker *worker)
{
    struct scheduler_action *action = &s->actions[s->action_count++];
    leave_waiting(s, slot);
    slot->state = RUNNING;
    slot->worker = (uint32_t)(worker - s->workers);
    slot->attempt++;
    s->count.running++;
    s->tenants[slot->job.tenant].served += slot->job.work_s / s->tenants[slot->job.tenant].weight;
    *action = (struct scheduler_action){.type = ACTION_ASSIGN,
                                        .slot = (uint32_t)(slot - s->slots),
                                        .worker = slot->worker,
                                        .attempt = slot->attempt,
                                        .change_model = worker->has_model &&
                                                        !same_model(&worker->last, &slot->job)};
    worker->jobs++;
    worker->pictures += slot->job.pictures;
    worker->last = slot->job;
    worker->has_model = true;
}

/* The chosen job waits for room rather than let a smaller one pass: else large ones would starve.
 */
static bool fill_workers(struct scheduler *s)
{
    for (uint32_t i = 0; i < s->options.workers_max && !s->paused; i++) {
        struct worker *worker = &s->workers[i];
        while (worker->present && s->count.ready > 0) {
            if (worker->jobs > 0 && worker->pictures >= worker->is.pictures_max)
                break;
            struct slot *slot = choose(s, worker);
            if (!slot || !has_room(worker, &slot->job))
                break;
            if (s->action_count == SCHEDULER_ACTIONS_MAX)
                return false;
            assign(s, slot, worker);
        }
    }
    return true;
}

/* ---- events ---- */

static bool pass_time(struct scheduler *s)
{
    while (s->ending.top) {
        struct slot *slot = FROM_NODE(struct slot, by_end, s->ending.top);
        if (slot->job.deadline_ns > s->now_ns)
            break;
        if (s->action_count + 1 >= SCHEDULER_ACTIONS_MAX) /* one stays for the event's own */
            return false;
        act(s, ACTION_EXPIRE, slot);
        leave_waiting(s, slot);
        free_slot(s, slot);
    }
    while (s->delayed.top) {
        struct slot *slot = FROM_NODE(struct slot, by_time, s->delayed.top);
        if (slot->wake_ns > s->now_ns)
            break;
        heap_remove(&s->delayed, &slot->by_time);
        s->count.delayed--;
        enter_ready(s, slot);
    }
    return true;
}

static void submit(struct scheduler *s, struct slot *slot, const struct scheduler_job *job)
{
    ASSERT(slot->state == FREE);
    ASSERT(job->tenant < s->options.tenants_max && job->class < CLASS_COUNT && job->pictures > 0);
    *slot = (struct slot){.job = *job};
    s->bytes += job->bytes;
    enter_waiting(s, slot, job->not_before_ns);
}

static int64_t backoff_ns(const struct scheduler *s, int attempt)
{
    int64_t wait = s->options.retry_first_ns;
    while (--attempt > 0 && wait < s->options.retry_max_ns)
        wait *= 2;
    return wait < s->options.retry_max_ns ? wait : s->options.retry_max_ns;
}

static void finish(struct scheduler *s, struct slot *slot, enum outcome outcome)
{
    ASSERT(slot->state == RUNNING);
    if (outcome == OUTCOME_RETRY && slot->attempt >= slot->job.attempts_max) {
        act(s, ACTION_GIVE_UP, slot);
        outcome = OUTCOME_DONE;
    }
    leave_worker(s, slot);
    if (outcome == OUTCOME_DONE) {
        free_slot(s, slot);
    } else if (outcome == OUTCOME_RETRY) {
        enter_waiting(s, slot, s->now_ns + backoff_ns(s, slot->attempt));
    } else {
        slot->attempt--;
        enter_waiting(s, slot, s->now_ns);
    }
}

static void lose_worker(struct scheduler *s, uint32_t worker)
{
    s->workers[worker].present = false;
    for (uint32_t i = 0; i < s->options.jobs_max; i++) {
        struct slot *slot = &s->slots[i];
        if (slot->state != RUNNING || slot->worker != worker)
            continue;
        leave_worker(s, slot);
        enter_waiting(s, slot, s->now_ns);
    }
    s->workers[worker] = (struct worker){0};
}

static void cancel(struct scheduler *s, struct slot *slot)
{
    ASSERT(slot->state != FREE);
    if (slot->state == RUNNING)
        return;
    leave_waiting(s, slot);
    free_slot(s, slot);
}

static void take_event(struct scheduler *s, const struct scheduler_event *event)
{
    struct slot *slot = &s->slots[event->slot];
    ASSERT(event->slot < s->options.jobs_max && event->worker < s->options.workers_max &&
           event->tenant < s->options.tenants_max);
    switch (event->type) {
    case EVENT_TICK:
        break;
    case EVENT_SUBMIT:
        submit(s, slot, &event->job);
        break;
    case EVENT_CANCEL:
        cancel(s, slot);
        break;
    case EVENT_FINISH:
        finish(s, slot, event->outcome);
        break;
    case EVENT_WORKER:
        s->workers[event->worker].is = event->worker_is;
        s->workers[event->worker].present = true;
        break;
    case EVENT_WORKER_GONE:
        lose_worker(s, event->worker);
        break;
    case EVENT_WEIGHT:
        ASSERT(event->weight > 0);
        s->tenants[event->tenant].weight = event->weight;
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
        wake = FROM_NODE(struct slot, by_time, s->delayed.top)->wake_ns;
    if (s->ending.top) {
        int64_t end = FROM_NODE(struct slot, by_end, s->ending.top)->job.deadline_ns;
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

/* ---- questions ---- */

bool scheduler_has_room(const struct scheduler *s, size_t bytes)
{
    uint32_t jobs = s->count.ready + s->count.delayed + s->count.running;
    return jobs == 0 || (jobs < s->options.jobs_max && s->bytes + bytes <= s->options.bytes_max);
}

struct scheduler_count scheduler_count(const struct scheduler *s)
{
    return s->count;
}

enum waiting scheduler_why(const struct scheduler *s, uint32_t number, uint32_t *ahead)
{
    const struct slot *slot = &s->slots[number];
    if (ahead)
        *ahead = 0;
    if (slot->state == FREE)
        return WAITING_NOT;
    if (slot->state == RUNNING)
        return WAITING_RUNNING;
    if (slot->state == DELAYED)
        return WAITING_TIME;
    for (const struct slot *other = slot->prev; ahead && other; other = other->prev)
        ++*ahead;
    for (uint32_t i = 0; i < s->options.workers_max; i++)
        if (can_take(&s->workers[i], &slot->job))
            return WAITING_TURN;
    return WAITING_WORKER;
}
