/*
 * state.h: what the scheduler's own files share; nobody else includes it.
 *
 * DESIGN
 *
 * A waiting job is held, delayed (a heap by time), promised (a worker is being emptied for it) or
 * ready. Ready jobs stand like goods in a hall, so that a worker with room looks at few things and
 * never at jobs:
 *
 *     lane    what all workers judge alike: route, needs and memory; profiles that agree share one
 *     pool    a device class with its workers and the lanes at home there
 *     stall   one tenant's jobs of a lane and priority: a list by age, and a heap of groups
 *     shelf   the stalls of a pool and priority: what a worker walks when it has room
 *     group   what travels together: a stall's jobs of one profile, model and size
 *     aisle   the groups of a pool, priority and model, by hash: where a worker finds its model
 *
 * Workers likewise: a `kind` is all workers of a class that can take the same jobs. If nothing can
 * be placed on one worker of a kind, nothing can be on the others, so a step ends after one look
 * per kind. Workers with room are also found by the models they have, so that a job goes where its
 * model is even when many workers are idle.
 *
 * The chosen job waits for room rather than let a smaller one pass, or large ones would starve. It
 * is then promised to that worker, which takes nothing else until the job fits, and leaves the
 * line, so that no second worker waits for it.
 *
 * The starvation bound needs no counter per overtaking. Every ready job has a place in line, in the
 * order of becoming ready, and each pool knows how many of its jobs stand before a place (order.h).
 * A pool counts in `departed` the jobs that left it and those that visited from elsewhere. When a
 * job became ready, departed + (jobs before it) was its `mark`; each older one that leaves raises
 * one and lowers the other, so what the sum has grown by since is how often it has been overtaken.
 * Whoever overtakes a job overtakes all of that home that became ready before it too; so the oldest
 * that a worker can take is the most overtaken, and looking at that one is enough.
 *
 * Rejected: a bound in seconds. In a bulk run every job waits for hours; past the bound the order
 * would fall back to first come first served, and a model be loaded for every job.
 * Rejected: one list of ready jobs for all. Jobs that no asking worker can take would gather at its
 * front and every look would walk over them.
 */
#ifndef ATELIER_SCHEDULER_STATE_H
#define ATELIER_SCHEDULER_STATE_H

#include "scheduler/explain.h"
#include "scheduler/heap.h"
#include "scheduler/order.h"
#include "scheduler/scheduler.h"

#define FROM_NODE(type, member, node) ((type *)((char *)(node)-offsetof(type, member)))

enum state { FREE, DELAYED, HELD, READY, PROMISED, RUNNING };

struct group {
    struct stall *stall;
    uint32_t model;
    uint16_t profile, width, height;
    bool alone;
    uint8_t home; /* of the aisle it stands in */
    struct heap ready;
    struct heap_node by_leader;
    struct group *chain; /* of its hash bucket, or of free groups */
    struct group *aisle_next, **aisle_link;
};

struct stall {
    struct lane *lane;
    uint32_t tenant;
    uint8_t class;
    bool blocked;               /* by its tenant's quota: on no shelf, and without age */
    struct slot *first, *last;  /* ready jobs, oldest first */
    struct heap groups;         /* by leader */
    struct heap_node by_age;    /* in its lane */
    struct stall *chain;        /* of its hash bucket, or of free stalls */
    struct stall *next, **link; /* on its shelf */
    struct stall *lane_next, **lane_link;
    struct stall *tenant_next, **tenant_link;
};

struct lane {
    uint8_t route[SCHEDULER_CLASSES_MAX], route_count;
    uint16_t allowed; /* the same as bits */
    uint16_t takers;  /* bits of the classes with a worker that can take it */
    uint8_t home;
    uint32_t needs;
    uint64_t memory_bytes;
    uint32_t profiles; /* that use it; 0: free */
    uint32_t ready;
    struct heap ages; /* stalls that are not blocked, by their oldest job */
    struct stall *stalls;
    struct lane *next, **link; /* of those with ready jobs */
};

struct profile {
    struct scheduler_profile is; /* route_count 0: not registered */
    struct lane *lane;
    double waiting;            /* units of all its waiting jobs */
    double ready[CLASS_COUNT]; /* units of its ready jobs */
};

/* What was compared when a job was placed. */
struct placed {
    float charged_s; /* predicted seconds on the class it runs on */
    float here, waiting, wait_s;
};

struct slot {
    uint32_t model, tenant;
    uint16_t profile, width, height, pictures;
    float units; /* pictures × effort: multiplies the profile's seconds */
    uint32_t bytes;
    int64_t deadline_ns;
    uint8_t class, state;
    uint8_t attempts_max;
    uint8_t placement;
    bool alone, held;
    uint16_t crashes, returns;
    uint32_t attempt;
    uint32_t worker; /* PROMISED, RUNNING */
    union {
        int64_t wake_ns; /* DELAYED, HELD */
        struct {
            uint32_t place; /* in line; READY */
            uint32_t mark;  /* departed + jobs before it, less how often it was overtaken */
        };
        struct placed placed; /* PROMISED, RUNNING */
    };
    struct slot *next, *prev;  /* READY: in its stall; RUNNING: on its worker */
    struct group *group;       /* READY */
    struct heap_node by_order; /* DELAYED: by time; READY: in its group */
    struct heap_node by_end;   /* waiting, with a deadline */
};

enum open {
    CLOSED, /* absent, draining, full, promised, or kept by a job that must be alone */
    IDLE,
    PARTLY,
    DUE, /* the job that it is promised to fits now */
};

/* A worker with room, among those that have a model. */
struct resident {
    uint32_t model;
    struct worker *worker;
    struct resident *next, *prev;
};

struct worker {
    struct scheduler_worker is;
    bool present;
    struct kind *kind; /* NULL: absent or draining */
    bool has_model;
    uint32_t model; /* of the latest assignment, and its size */
    uint16_t width, height;
    uint32_t pictures, jobs, alone; /* in flight; of the jobs, those that must be alone */
    double charged_s;
    struct slot *first;    /* of what it runs */
    struct slot *promised; /* or NULL */
    enum open open;
    struct worker *next, **link; /* of those alike in `open`, in their kind; DUE: of all */
    struct resident residents[SCHEDULER_RESIDENT_MAX + 1];
    uint32_t resident_count; /* linked now */
};

struct kind {
    uint32_t device_class, offers;
    uint64_t memory_bytes;
    uint32_t workers;
    struct worker *idle, *partly;
    struct kind *next; /* of its pool, or of free kinds */
};

struct pool {
    struct order order; /* of the ready jobs at home here */
    uint32_t departed;
    uint32_t ready;             /* at home here */
    double home_s[CLASS_COUNT]; /* their work */
    uint32_t preferring;        /* ready jobs that would like to be at home here */
    double preferring_s;
    uint32_t running;
    double running_s;
    uint32_t workers, draining;
    double prices; /* of the workers, summed */
    struct kind *kinds;
    struct stall *shelves[CLASS_COUNT];
};

struct tenant {
    double weight;
    double served; /* work-seconds over weight, brought forward after idling */
    uint32_t ready, running, running_max;
    bool blocked; /* runs as many as it may */
    struct stall *stalls;
    struct tenant *next, **link; /* of those with ready jobs */
};

struct resident_chain {
    struct resident *first, *last; /* idle workers in front */
};

struct scheduler {
    struct scheduler_options options;
    int64_t now_ns;
    bool paused;
    struct slot *slots;
    struct worker *workers;
    struct worker *due;
    struct tenant *tenants;
    struct tenant *awake; /* with ready jobs */
    struct profile *profiles;
    struct lane *lanes;
    uint32_t lanes_used; /* lanes from here on were never used */
    struct lane *busy;   /* with ready jobs */
    struct kind *kinds, *free_kinds;
    uint32_t kinds_used;
    struct group *groups, *free_groups;
    struct stall *stalls, *free_stalls;
    uint32_t groups_used, stalls_used;
    struct group **group_buckets, **aisles;
    struct stall **stall_buckets;
    struct resident_chain *resident_buckets;
    uint32_t bucket_mask, aisle_mask, resident_mask;
    uint64_t *order_bits;              /* of all pools' orders */
    uint32_t *order_sums, *renumbered; /* the same; per 64 places */
    uint32_t places, next_place;
    struct pool pools[SCHEDULER_CLASSES_MAX];
    struct heap delayed, ending;
    size_t bytes, memory_bytes;
    struct scheduler_count count;
    struct scheduler_action actions[SCHEDULER_ACTIONS_MAX];
    size_t action_count;
};

/* ---- scheduler.c ---- */

void act(struct scheduler *s, enum action_type type, const struct slot *slot);

/* A waiting job of any kind leaves the queue; one enters it, to be ready at `wake_ns`. */
void leave_waiting(struct scheduler *s, struct slot *slot);
void enter_waiting(struct scheduler *s, struct slot *slot, int64_t wake_ns);

static inline uint32_t slot_number(const struct scheduler *s, const struct slot *slot)
{
    return (uint32_t)(slot - s->slots);
}

/* ---- ready.c: lanes, stalls, groups ---- */

bool leads_group(const struct heap_node *a, const struct heap_node *b);
int64_t end_of(const struct slot *slot);
struct slot *leader(const struct group *group);

/* Where a lane should be at home: the first class of its route that can take it; or the first. */
uint8_t lane_home(const struct lane *lane);

void enter_ready(struct scheduler *s, struct slot *slot);
void leave_ready(struct scheduler *s, struct slot *slot);

/* Where the groups of a home's priority and model begin, among others of the same hash. */
struct group **aisle_of(const struct scheduler *s, uint32_t model, uint32_t home,
                        enum job_class class);

/* How many jobs have overtaken a ready one. */
uint32_t overtaken(const struct scheduler *s, const struct slot *slot);

/* Opens or shuts a tenant's stalls according to its quota. */
void judge_quota(struct scheduler *s, uint32_t tenant);

void set_profile(struct scheduler *s, uint32_t number, const struct scheduler_profile *is);

/* A class has got its first worker of a kind, or lost the last: where lanes are at home. */
void update_takers(struct scheduler *s, uint32_t device_class);

/* Predicted seconds of a job on a class. */
static inline double seconds_on(const struct scheduler *s, const struct slot *slot,
                                uint32_t device_class)
{
    return (double)slot->units * (double)s->profiles[slot->profile].is.seconds[device_class];
}

static inline double seconds_preferred(const struct scheduler *s, const struct slot *slot)
{
    return seconds_on(s, slot, s->profiles[slot->profile].is.route[0]);
}

/* ---- workers.c: kinds, room, residents ---- */

bool can_take(const struct kind *kind, const struct lane *lane);
bool fits(const struct worker *worker, const struct slot *slot);
bool has_model(const struct worker *worker, uint32_t model);

/* A worker of the class with room for the job that has its model: an idle one, or one that has less
 * to do than loading would take; or NULL. */
struct worker *worker_with_model(const struct scheduler *s, uint32_t device_class,
                                 const struct slot *slot);

/* Puts a worker into the lists where it belongs after something about it has changed. */
void refile(struct scheduler *s, struct worker *worker);

void set_worker(struct scheduler *s, struct worker *worker, const struct scheduler_worker *is);
void remove_worker(struct scheduler *s, struct worker *worker);

/* A job comes to and leaves a worker. */
void enter_worker(struct scheduler *s, struct slot *slot, struct worker *worker);
void leave_worker(struct scheduler *s, struct slot *slot);

/* ---- place.c: choosing ---- */

/* False when there is more to assign than actions to say so. */
bool fill_workers(struct scheduler *s);

/* A promised job is ready again. */
void break_promise(struct scheduler *s, struct slot *slot);

/* A worker of the class that has room and can take the lane. */
bool has_open(const struct pool *pool, const struct lane *lane);

/* Seconds that a job of a priority expects to wait in a pool behind what is there, `own_s` of
 * which is itself. */
double expected_wait(const struct pool *pool, enum job_class class, double own_s);

#endif
